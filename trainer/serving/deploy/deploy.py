"""The deploy step of a cluster: what needs both the volume and the server.

Asked without a URL it finds what is to be served, and keeps it for servers that start later
(see kept.py); with one it holds that server to what the training left (see gate.py), and
records that it takes over. Loads no torch.
"""

from pathlib import Path
from typing import Any

from trainer.contract import service_history as history
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.files import short_digest
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest
from trainer.contract.step_configs import DeployConfig
from trainer.fetch.checks import refusing_bad_volume
from trainer.report.facts import evaluation
from trainer.serving.deploy.choose_engine import wrong_of
from trainer.serving.deploy.gate import (
    Expected,
    GateError,
    Observed,
    expected_of,
    observe,
    problems,
)
from trainer.serving.deploy.kept_models import drop_unneeded, keep
from trainer.steps import StepResult


def run(config: DeployConfig) -> StepResult:
    """Find the model, or check its server.

    Raises:
        RequestError: There is no model, or its server is not to take over; with the reasons.
    """
    folder = RunFolder(config.volume, config.run)
    model = find_model(folder, rollback=config.rollback)
    try:
        expected = _expected(config, folder, model)
        observed = _observed(config, expected)
    except GateError as error:
        raise RequestError(str(error)) from error
    digest = read_manifest(model).digest
    place = folder.served_model(digest) if observed else _kept(folder, model)
    found = {
        "model": _on_volume(folder, place),
        "model_digest": digest,
        "revision": history.next_revision(folder),
        "loss": expected.loss,
        "digests": {"final": digest, **_records(folder)},
    }
    if builtin_wrong := wrong_of(folder):
        found["builtin_wrong"] = builtin_wrong
    if observed is None:
        return _to_be_served(config, folder, found)
    if wrong := problems(expected, observed):
        raise RequestError(*wrong)
    with refusing_bad_volume(folder.root.parent):
        _record(config, folder, found, observed)
    return StepResult(
        result={**found, "prompt": prompt_of(folder)},
        message=f"revision {found['revision']} answers as it was trained to",
    )


def find_model(folder: RunFolder, *, rollback: bool) -> Path:
    """The folder of the run's newest model, or of the one that served before.

    Raises:
        RequestError: There is none.
    """
    if rollback:
        return history.model_of(folder, history.previous(folder)["model_digest"])
    try:
        read_manifest(folder.final)
    except DamagedError as error:
        raise RequestError(
            f"run_name {folder.root.name!r} left no finished model ({error}). "
            "Finetune it first, without inference_only."
        ) from error
    return folder.final


def _observed(config: DeployConfig, expected: Expected) -> Observed | None:
    if not config.url:
        return None
    return observe(config.url, config.name, expected, config.api_key_variable)


def _expected(config: DeployConfig, folder: RunFolder, model: Path) -> Expected:
    return expected_of(
        model,
        report=folder.report if model == folder.final and not config.rollback else None,
        serving_loss=config.serving_loss,
        max_regression=config.max_regression,
    )


def _to_be_served(config: DeployConfig, folder: RunFolder, found: dict[str, Any]) -> StepResult:
    """What was found, with what serves now; models that nobody needs any more go."""
    found = {**found, "serving": _serving(folder, found["model_digest"])}
    if config.rollback:
        found["earlier"] = history.previous(folder).get("serving", {})
    drop_unneeded(folder, found["model_digest"])
    return StepResult(result=found, message=f"{found['model']} is to be served")


def _serving(folder: RunFolder, digest: str) -> dict[str, Any]:
    """What the server that passed last was made from, with the place where its model is kept.

    Where that is the model to be served, `digest`, it is told as it was made: a version that
    kept none had its servers start from `final/`, and those are to be replaced.
    """
    served = history.served(folder)
    if not served or not served[-1].get("serving"):
        return {}
    made_from = served[-1]["serving"]
    if made_from["model_digest"] == digest:
        return made_from
    try:
        place = _kept(folder, history.model_of(folder, made_from["model_digest"]))
    except RequestError:  # it was deleted, and its server has it in memory only
        return made_from
    return {**made_from, "model": _on_volume(folder, place)}


def _kept(folder: RunFolder, model: Path) -> Path:
    with refusing_bad_volume(folder.root.parent):
        return keep(folder, model)


def _records(folder: RunFolder) -> dict[str, str]:
    """Digests of the evaluation, and of the record of what served; empty where there is none."""
    paths = {"report": folder.report, "services": folder.services}
    return {name: short_digest(path) if path.exists() else "" for name, path in paths.items()}


def _on_volume(folder: RunFolder, place: Path) -> str:
    return place.relative_to(folder.root.parent).as_posix()


def _record(
    config: DeployConfig, folder: RunFolder, found: dict[str, Any], observed: Observed
) -> None:
    history.append(
        folder,
        "rolled back" if config.rollback else "served",
        revision=found["revision"],
        model=found["model"],
        model_digest=found["model_digest"],
        tokenizer_digest=observed.tokenizer_digest,
        dtype=observed.dtype,
        figures={} if found["loss"] is None else {"loss": found["loss"]},
        serving=config.serving,
    )


def prompt_of(folder: RunFolder) -> str:
    """A prompt that fits the text: the evaluation's first, else a word."""
    samples = evaluation(folder).get("samples", [])
    return samples[0]["prompt"] if samples else "The"
