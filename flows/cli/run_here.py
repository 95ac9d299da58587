"""Run the flow in this process, for a person: `finetune run` and `finetune tokenize`."""

import contextlib
import functools
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.cli.prefect_server import answers, embedded_server, keep_proxies_off_loopback
from flows.cli.signals import ending_on_sigterm
from flows.cli.terminal import NoticesAlone, PlainWatcher, RichWatcher, watcher_for
from flows.cli.trial_process import end_with_sweep, wait_for_earlier
from flows.plan_request import (
    gather,
    missing_api_key,
    plan_with,
    problems_with_context,
    with_other_parameters,
)
from infra.backend import StepSpec
from infra.choose_backend import BACKEND_VARIABLE
from infra.local.processes import LocalBackend
from tasks import configs
from tasks.following import claimed, follow_step
from trainer.contract import run_files
from trainer.contract.errors import RequestError, StepError
from trainer.contract.json_files import readable_object
from trainer.contract.parameters import Parameters, cluster_settings
from trainer.contract.volume import path_on_volume
from trainer.contract.warm import warm_parents
from trainer.contract.wording import format_seconds
from trainer.contract.work_key import work_key

SAMPLE_WIDTH = 160  # characters of a sample in the summary

# Set before Prefect is loaded, and only where the user has not chosen otherwise.
PREFECT_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # it writes to the database at the same time as us
    # The watcher shows the run, its errors come as one message; the log itself goes to the server.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_CLI_PROMPT": "false",
    "DO_NOT_TRACK": "1",
}


def run_flow(
    parameters: Parameters,
    home: Path,
    *,
    on_cluster: bool,
    as_json: bool = False,
    only_compared: bool = False,
    paranoid: bool = False,
) -> None:
    """Run the flow and print what it made, for people or as JSON.

    Args:
        only_compared: As a trial of a sweep, which started this process: end with it, and start
            no server only to show that the model can be served.
        paranoid: Read every file of the dataset and of the tokens again.
    """
    clock, listing = time.monotonic(), uuid.uuid4().hex
    if only_compared:
        end_with_sweep()
        if not on_cluster:
            wait_for_earlier(LocalBackend(home), parameters.pvc, parameters.run_name)
    if on_cluster:
        cluster_settings(parameters)
    else:
        check_request(parameters, home, listing)
    watcher = watcher_for(sys.stderr)
    goes_on = functools.partial(_what_goes_on, parameters, None if on_cluster else home)
    try:
        with ending_on_sigterm(goes_on), warm_parents(), prefect_api(), _reading(paranoid):
            result = _call_flow(parameters, watcher, only_compared, listing)
    finally:
        watcher.close()
    if as_json:
        print(json.dumps(result))
    else:
        seconds = time.monotonic() - clock
        print(summary(parameters, None if on_cluster else home, result, seconds))


@contextlib.contextmanager
def _reading(everything: bool) -> Iterator[None]:
    from tasks.run_step import reading_everything

    with reading_everything(everything):
        yield


def check_request(parameters: Parameters, home: Path, listing: str = "") -> None:
    """Refuse a wrong request at once, before Prefect is loaded and its server started.

    Args:
        listing: Of the dataset, which the run then shares.
    Raises:
        RequestError: With everything that is wrong.
    """
    if key_problem := missing_api_key(parameters):
        raise RequestError(*key_problem)
    if parameters.inference_only:
        return
    path_on_volume(home / parameters.pvc, "logs", parameters.logs)
    backend = LocalBackend(home, parameters.logs)
    config = configs.fetch_config(parameters.model_dump(), parameters.request, listing=listing)
    with claimed(backend, parameters.pvc, parameters.run_name):
        if not backend.running_steps(parameters.pvc, parameters.run_name):
            check = _spec(parameters, "fetch", {**config, "check_only": True})
            try:
                follow_step(backend, check, [NoticesAlone()])
            except RequestError as refusal:
                also = problems_with_context(parameters, home / parameters.pvc)
                problems = with_other_parameters(refusal.problems, also)
                raise RequestError(*problems) from refusal
    facts = gather(parameters, home / parameters.pvc, listing=listing)
    problems = plan_with(facts, parameters, on_cluster=False).problems
    if problems and not facts.admitted:
        raise RequestError(*problems)


def _spec(parameters: Parameters, step: str, config: dict[str, Any]) -> StepSpec:
    key = work_key(step, config)
    return StepSpec(
        step=step, run_name=config["run_name"], volume=parameters.pvc, config=config, key=key
    )


@contextlib.contextmanager
def prefect_api() -> Iterator[None]:
    """Prefect's settings for a person's run, and a server where none is named."""
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    keep_proxies_off_loopback()
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if named := PREFECT_API_URL.value():
        if not answers(named):
            raise StepError(
                f"PREFECT_API_URL does not answer (got {named}). Start that server, correct the "
                "address, or unset it to use an embedded one."
            )
        yield
        return
    print("starting Prefect's embedded server (some seconds)", file=sys.stderr, flush=True)
    with embedded_server() as url, temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            # The last lines of the log are sent from a queue, while there is a server to take them.
            for name in ("prefect", "prefect.flow_runs", "prefect.task_runs"):
                for handler in logging.getLogger(name).handlers:
                    handler.flush()


def _call_flow(
    parameters: Parameters,
    watcher: PlainWatcher | RichWatcher,
    only_compared: bool,
    listing: str,
) -> dict[str, Any]:
    from flows.finetune import finetune
    from tasks.cancelling import ending_as_cancelled, tagged_as_part
    from tasks.run_step import compared_by_loss, sharing_listing, watch_with

    watch_with(watcher)
    comparing = compared_by_loss() if only_compared else contextlib.nullcontext()
    with ending_as_cancelled(), tagged_as_part(), comparing, sharing_listing(listing):
        return finetune(**parameters.model_dump())


def _what_goes_on(parameters: Parameters, home: Path | None) -> str:
    """What a SIGTERM to this process alone leaves, and how to follow or stop it.

    Args:
        home: None: the steps are Jobs of a cluster.
    """
    what = "a step that has begun continues"
    if home is not None:
        steps = LocalBackend(home).running_steps(parameters.pvc, parameters.run_name)
        if not steps:
            return "stopped by SIGTERM; no step was running. Run it again to resume."
        what = f"the {' and '.join(steps)} step continues"
    return (
        f"stopped by SIGTERM; {what}. Follow it by running the same command again, see how far it "
        f"is: finetune show {parameters.run_name}, or stop it: "
        f"{_stop_command(parameters.run_name)}"
    )


def _stop_command(run_name: str) -> str:
    where = " --backend kubernetes" if os.environ.get(BACKEND_VARIABLE) == "kubernetes" else ""
    return f"finetune stop {run_name}{where}"


def summary(
    parameters: Parameters, home: Path | None, result: dict[str, Any], seconds: float
) -> str:
    """What was made, where, what it achieved, and how long each step took.

    Args:
        home: None: the volume is a claim, which cannot be read from here.
    """
    steps = ", ".join(f"{name} {format_seconds(took)}" for name, took in result["seconds"].items())
    rows = [("steps", steps)]
    for name in ("loss", "perplexity"):
        before, after = result.get(f"base_{name}"), result.get(f"finetuned_{name}")
        if before is not None and after is not None:
            rows.append((f"held-out {name}", f"{before:.4f} before, {after:.4f} after"))
    rows += _places(parameters, home)
    if result.get("url"):
        rows.append(("served at", f"{result['url']}  ({_stop_command(parameters.run_name)})"))
    width = max(len(name) for name, _ in rows) + 2
    head = f"{parameters.run_name} is done in {format_seconds(seconds)}"
    return "\n".join([head, *(f"{name:<{width}}{text}" for name, text in rows)])


def _places(parameters: Parameters, home: Path | None) -> list[tuple[str, str]]:
    """Samples, and where the model and the evaluation are."""
    if home is None:
        on_claim = f"{parameters.run_name}/{{}} on the claim {parameters.pvc}"
        names = (("model", "final"), ("samples", "evaluation.md"))
        return [(what, on_claim.format(name)) for what, name in names]
    folder = home / parameters.pvc / parameters.run_name
    rows = [(f"text {when}", text) for when, text in _texts(folder / "evaluation.json")]
    rows.append(("model", str(folder / "final")))
    if (folder / "evaluation.md").exists():
        rows.append(("samples", str(folder / "evaluation.md")))
    return rows


def _texts(report: Path) -> list[tuple[str, str]]:
    """How each model continues after the first prompt of the evaluation, on one line."""
    samples = (readable_object(report, run_files.Evaluation) or {}).get("samples")
    if not samples:
        return []
    first, prompt = samples[0], samples[0]["prompt"]
    texts = [
        (when, first[name][0])
        for when, name in (("before", "base"), ("after", "finetuned"))
        if first[name]
    ]
    return [(when, " ".join(f"{prompt}|{text}".split())[:SAMPLE_WIDTH]) for when, text in texts]


def run_tokenize(parameters: Parameters, home: Path, **options: Any) -> Path:
    """Run the fetch and tokenize steps without Prefect; return the store's folder.

    Args:
        options: Of TokenizeConfig, which no parameter of the flow sets.
    Raises:
        RequestError, Interrupted, StepError: As of a run.
    """
    backend = LocalBackend(home, parameters.logs)
    values, listing = parameters.model_dump(), uuid.uuid4().hex
    watcher = watcher_for(sys.stderr)

    def follow(step: str, config: dict[str, Any]) -> dict[str, Any]:
        # What it makes belongs to no run.
        spec = _spec(parameters, step, {**config, "run_name": ""})
        return follow_step(backend, spec, [watcher]).result

    try:
        fetched = follow("fetch", configs.fetch_config(values, {}, listing=listing))
        config = configs.tokenize_config(
            values, model=fetched["model"], tokenizer=fetched["tokenizer"], listing=listing
        )
        tokenized = follow("tokenize", {**config, **options})
    finally:
        watcher.close()
    return backend.volume(parameters.pvc) / tokenized["store"]
