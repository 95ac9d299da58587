"""Deploy on this machine: a server that passes the gate takes over. Loads no Prefect."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.backend import PlaceError
from infra.local import service as local_service
from infra.local import service_client
from infra.local.server_process import ServiceError
from infra.local.service import Service
from infra.local.service_client import Endpoint, NoAnswerError
from infra.local.step_folder import writing
from tasks.local_adapters import adapters_of, problems_of, replace, replace_everywhere
from trainer.contract.adapters_record import Wanted
from trainer.contract.errors import DamagedError, RequestError, StepError
from trainer.contract.outcome import Outcome
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest
from trainer.contract.service_history import previous
from trainer.exam.kept import only_vllm
from trainer.serving.deploy.choose_engine import cannot_be_tried, engine_for, wrong_of
from trainer.serving.deploy.deploy import find_model, prompt_of
from trainer.serving.deploy.gate import Expected, GateError, check, expected_of

Say = Callable[[str], None]
FINAL_MANIFEST = "final_manifest"  # in the result of a deploy step: which model it was of


def deploy_here(parameters: Mapping[str, Any], volume: Path, say: Say) -> Outcome:
    """Serve the run's model, ask it, and stop it again unless it is to stay.

    Raises:
        RequestError: The run left no model, or the volume can't be written.
        StepError: The server did not pass; what served before serves on.
    """
    folder = RunFolder(volume, parameters["run_name"])
    outcome = _deployed(parameters, folder, volume, say)
    replace_everywhere(volume, folder.root.name, say)
    return outcome


def _deployed(parameters: Mapping[str, Any], folder: RunFolder, volume: Path, say: Say) -> Outcome:
    adapters = _adapters(parameters, volume)
    digest = _manifest_digest(find_model(folder, rollback=False))
    earlier = folder.outcome("deploy")
    if earlier is not None and earlier.result.get(FINAL_MANIFEST) == digest:
        service = serving_final(folder)
        if service is not None and serves_names(service, folder.root.name, adapters):
            if adapters:
                replace(volume, folder.root.name, service, adapters)
            return dataclasses.replace(as_it_is_now(earlier, service), reused=True, seconds=0.0)
        if not stays(parameters):
            return dataclasses.replace(as_it_is_now(earlier, service), reused=True, seconds=0.0)
    try:
        outcome = _deploy(parameters, folder, volume, say)
        with writing(volume):
            folder.record_outcome(outcome)
    except PlaceError as error:
        raise RequestError(str(error)) from error
    return outcome


def _adapters(parameters: Mapping[str, Any], volume: Path) -> dict[str, Wanted]:
    """What is to be served beside the run; none where nothing is to stay."""
    own = parameters["run_name"]  # its adapter is served in any case
    names = [name for name in parameters["serving"]["adapters"] if name != own]
    return adapters_of(volume, names) if stays(parameters) else {}


def serves_names(service: Service, run_name: str, adapters: Mapping[str, Wanted]) -> bool:
    """Whether the service has the adapters of these names, in any version."""
    return set(service.config.get("adapters", {})) - {run_name} == set(adapters)


def serving_final(folder: RunFolder) -> Service | None:
    """The run's service, where it lives and what it serves is the run's final model."""
    service = local_service.running(folder.root.parent, folder.root.name)
    try:
        final = read_manifest(folder.final).digest
    except DamagedError:
        return None
    return service if service is not None and service.model_digest == final else None


def as_it_is_now(deployed: Outcome, service: Service | None) -> Outcome:
    """What a deploy step of this machine left, with the address of the service that lives.

    Addresses are for as long as their process: it may have been stopped, or rolled back.
    """
    if not deployed.result.get("url") and service is None:
        return deployed
    lasting = {name: value for name, value in deployed.result.items() if name != "curl"}
    url = service.url if service else ""
    message = f"serves at {url}" if service else "answered; not served any more"
    return dataclasses.replace(deployed, message=message, result={**lasting, "url": url})


def stays(parameters: Mapping[str, Any]) -> bool:
    """Whether the server is to stay: who asks for nothing but a service wants one."""
    return parameters["run_inference"] or parameters["inference_only"]


def rollback_here(volume: Path, run_name: str, logs: str = "logs") -> Service:
    """Serve the model that served before the one that serves now.

    Raises:
        RequestError: There is no earlier one, it is gone, or the volume can't be written.
        StepError: Its server did not pass; what served serves on.
    """
    folder = RunFolder(volume, run_name)
    model, earlier = find_model(folder, rollback=True), previous(folder)
    try:
        # As it was served before: what comes after it is compared with its figures again.
        return _start(
            volume,
            run_name,
            model,
            expected_of(model),
            logs,
            earlier.get("config"),
            figures=earlier["figures"],
            event="rolled back",
        )
    except (ServiceError, GateError) as error:
        raise StepError(f"rolling {run_name!r} back failed: {error}") from error
    except PlaceError as error:
        raise RequestError(str(error)) from error


def _deploy(parameters: Mapping[str, Any], folder: RunFolder, volume: Path, say: Say) -> Outcome:
    started, clock = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic()
    run_name, keep = parameters["run_name"], stays(parameters)
    asked, wrong = parameters["serving"]["engine"], wrong_of(folder)
    if not keep and cannot_be_tried(asked, wrong):
        return _not_tried(folder, wrong, started)
    serving = local_service.running(volume, run_name)
    try:
        # A model that only shows that it can be served need not be better than another.
        expected = expected_of(
            folder.final,
            report=folder.report if keep else None,
            serving_loss=serving.figures.get("loss") if serving and keep else None,
            max_regression=parameters["serving"]["max_regression"],
        )
        config = {
            "trust_remote_code": parameters["trust_remote_code"],
            "engine": engine_for("auto" if wrong and not keep else asked, wrong, run_name),
            "engine_args": parameters["serving"]["engine_args"],
            "tensorizer_uri": parameters["serving"]["tensorizer_uri"],
        }
        named = {"api_key_variable": "api_key", "cors_origins": "cors_origins"}
        set_names = {key: parameters["serving"][name] for key, name in named.items()}
        config |= {key: value for key, value in set_names.items() if value}
        if adapters := _adapters(parameters, volume):
            config["adapters"] = {name: wanted.model for name, wanted in adapters.items()}
        if keep:
            service = _start(volume, run_name, folder.final, expected, parameters["logs"], config)
            told, url = _ask(service, prompt_of(folder), say, keep), service.url
        else:
            told, url = _try(folder, expected, parameters["logs"], config, say), ""
    except (ServiceError, NoAnswerError, GateError) as error:
        raise StepError(f"the deploy step of {run_name!r} failed: {error}") from error
    return Outcome(
        step="deploy",
        status="done",
        message=f"serves at {url}" if keep else "answered; stopped (run_inference=false)",
        started=started,
        seconds=round(time.monotonic() - clock, 3),
        result={
            "url": url,
            **told,
            FINAL_MANIFEST: _manifest_digest(folder.final),
        },
    )


def _not_tried(folder: RunFolder, wrong: str, started: str) -> Outcome:
    """How deploy ends where nobody asked for a service, and nothing here serves the model."""
    [note] = only_vllm(folder.root.name, wrong)
    return Outcome(
        step="deploy",
        status="done",
        message=f"not tried: {note}",
        started=started,
        result={"url": "", FINAL_MANIFEST: _manifest_digest(folder.final)},
    )


def _start(
    volume: Path,
    run_name: str,
    model: Path,
    expected: Expected,
    logs: str,
    config: dict[str, Any] | None = None,
    figures: dict[str, float] | None = None,
    event: str = "served",
) -> Service:
    place = model.relative_to(volume).as_posix()
    adapters: dict[str, str] = (config or {}).get("adapters", {})
    if adapters:  # the run is one of them: it answers under its own name, too
        config = {**(config or {}), "adapters": {**adapters, run_name: place}}

    def problems(service: Service) -> list[str]:
        wrong = check(service.url, service.name, expected, service.api_key_variable)
        return wrong + problems_of(service, volume, adapters)

    return local_service.start(
        volume,
        run_name,
        place,
        logs=logs,
        check=problems,
        figures=figures if expected.loss is None else {"loss": expected.loss},
        config=config,
        event=event,
    )


def _try(
    folder: RunFolder, expected: Expected, logs: str, config: dict[str, Any], say: Say
) -> dict[str, str]:
    """Have a server pass and answer for a moment; what serves the run is left alone."""
    volume, run_name = folder.root.parent, folder.root.name
    model, log = f"{run_name}/{folder.final.name}", volume / logs / run_name / "serve.log"
    with local_service.serving_for_a_while(volume, model, log=log, **config) as address:
        if problems := check(address.url, address.name, expected, address.api_key_variable):
            raise ServiceError("\n".join(problems))
        return _ask(address, prompt_of(folder), say, keep=False)


def _ask(service: Endpoint, prompt: str, say: Say, keep: bool) -> dict[str, str]:
    answer = service_client.ask(service, prompt)
    say(f"asked {prompt!r}, it answered {answer!r}")
    if not keep:
        return {"answer": answer}
    curl = service_client.curl_command(service, prompt)
    say(f"ask it yourself: {curl}")
    return {"curl": curl, "answer": answer}


def _manifest_digest(model: Path) -> str:
    return hashlib.sha256((model / "manifest.json").read_bytes()).hexdigest()
