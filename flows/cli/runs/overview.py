"""What is on a volume: runs, how far they are, what they made. Reads, and stops; loads no torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.cli.argo.claim import reference_runs, token_files
from infra.backend import PlaceError
from infra.local import service as local_service
from infra.local.processes import LocalBackend
from tasks.local_deployment import FINAL_MANIFEST, as_it_is_now, serving_final
from tasks.summary import losses
from trainer.contract.checkpoints import sealed_folders, steps_there
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.events import parse_event
from trainer.contract.json_files import parsed_line
from trainer.contract.outcome import Outcome
from trainer.contract.run_files import Metric, damages
from trainer.contract.run_folder import RunFolder, run_names
from trainer.contract.sealed_folder import verify
from trainer.contract.wording import describe_progress, format_seconds
from trainer.report.facts import times
from trainer.retention.space import run_bytes

STEPS = ("fetch", "tokenize", "finetune", "evaluate", "deploy")


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run in the list."""

    name: str
    state: str
    model: str = ""
    dataset: str = ""
    base_loss: float | None = None
    """On held-out text, as the finetuned model's."""
    loss: float | None = None
    dollars: float | None = None
    """By the plan's price, of the time that the trainer's machine was held; None: no price."""
    created: str = ""
    bytes: int = 0
    """On the volume, logs and events included."""
    damaged: list[str] = field(default_factory=list)
    """One phrase for each damaged record of the run."""


def list_runs(home: Path, pvc: str) -> list[RunRow]:
    """Every run on the volume, the reference's and its token files too, the newest first."""
    rows = [_row(home, pvc, name) for name in run_names(home / pvc)]
    rows += [RunRow(**found) for found in (*reference_runs(home / pvc), *token_files(home / pvc))]
    return sorted(rows, key=lambda row: row.created, reverse=True)


def _row(home: Path, pvc: str, run_name: str) -> RunRow:
    folder = RunFolder(home / pvc, run_name)
    damaged = damages(folder.root, lines=False)
    try:
        record = folder.record()
    except DamagedError:
        record = None
    if record is None:  # damaged, or removed since the runs were listed
        there = run_bytes(home / pvc, run_name)
        return RunRow(name=run_name, state="damaged", damaged=damaged, bytes=there)
    found = losses(_outcomes(folder))
    return RunRow(
        name=run_name,
        state=_state(home, pvc, run_name),
        model=str(record["request"].get("model", "")),
        dataset=str(record["request"].get("dataset", "")),
        base_loss=found.get("base_loss"),
        loss=found.get("finetuned_loss"),
        dollars=sum(part["dollars"] for part in times(folder, record.get("plan") or {})) or None,
        created=record["created"],
        bytes=run_bytes(home / pvc, run_name),
        damaged=damaged,
    )


def _outcomes(folder: RunFolder) -> list[Outcome]:
    return [outcome for step in STEPS if (outcome := folder.outcome(step)) is not None]


def _state(home: Path, pvc: str, run_name: str) -> str:
    backend = LocalBackend(home)
    running = backend.running_steps(pvc, run_name)
    if running:
        return f"running ({', '.join(running)})"
    if local_service.running(home / pvc, run_name) is not None:
        return "served"
    folder = RunFolder(home / pvc, run_name)
    outcomes = {outcome.step: outcome for outcome in _outcomes(folder)}
    if not outcomes and (folder.record() or {}).get("adopted"):
        return "adopted"
    for step in STEPS:
        if step == "deploy" and step not in outcomes:
            return "evaluated"  # a trial of a sweep, for one, is not served
        if step == "finetune" and step not in outcomes and folder.metrics.exists():
            return "stopped in finetune"  # killed: it left no outcome
        if step not in outcomes:
            return f"stopped before {step}"
        if outcomes[step].status != "done":
            return f"{outcomes[step].status} in {step}"
    return "done"


def known_run(home: Path, pvc: str, run_name: str) -> RunFolder:
    """The run's folder; raises RequestError, naming those there are, where it is none."""
    folder = RunFolder(home / pvc, run_name)
    if not folder.is_admitted:
        names = run_names(home / pvc)
        raise RequestError(
            f"RUN is not a run on {home / pvc} (got {run_name!r}). "
            f"There are: {', '.join(names) or 'none'}."
        )
    return folder


def show_run(home: Path, pvc: str, run_name: str) -> str:
    """One run in full, as text."""
    folder = known_run(home, pvc, run_name)
    record = folder.record()
    assert record is not None
    outcomes = [_as_it_is_now(folder, outcome) for outcome in _outcomes(folder)]
    lines = [f"{run_name}: {_state(home, pvc, run_name)}, begun {record['created']}", ""]
    for outcome in outcomes:
        state = "cached" if outcome.reused else outcome.status
        lines.append(
            f"{outcome.step:<9} {state:<13} {format_seconds(outcome.seconds):>9}  {outcome.message}"
        )
    if "finetune" in LocalBackend(home).running_steps(pvc, run_name):
        lines.append(
            f"{'finetune':<9} {'running':<13} {'':>9}  {_progress(folder, record)}".rstrip()
        )
    figures = losses(outcomes)
    url = figures.pop("url", "")
    if (service := local_service.running(home / pvc, run_name)) is not None:
        url = f"{service.url} (revision {service.revision}: {service.model})"
    if url:
        figures["served at"] = url
    if "loss" in figures:  # of the last step's own contexts: not to be compared with the others
        figures = {"training_loss": figures.pop("loss"), **figures}
    parts = times(folder, record.get("plan") or {})
    if dollars := sum(part["dollars"] for part in parts):
        figures["cost"] = f"${dollars:,.2f}"
    lines += ["", *(f"{name:<20} {_figure(value)}" for name, value in figures.items())]
    step = _last_step(folder.metrics)
    if step:
        lines.append(f"{'last step':<20} {step}")
    if saved := steps_there(folder.checkpoints):
        lines.append(f"{'last checkpoint':<20} {saved[-1]}")
    lines += ["", *(f"{p['name']:<20} {format_seconds(p['seconds'])}" for p in parts)]
    lines += ["", *(f"{name:<20} {value!r}" for name, value in record["request"].items())]
    if damaged := damages(folder.root):
        lines += ["", *damaged]
    return "\n".join(lines)


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _as_it_is_now(folder: RunFolder, outcome: Outcome) -> Outcome:
    """A deploy step of this machine leaves no address that is dead; a cluster's lasts."""
    if FINAL_MANIFEST not in outcome.result:
        return outcome
    return as_it_is_now(outcome, serving_final(folder))


def _progress(folder: RunFolder, record: dict[str, Any]) -> str:
    """How far training is, how fast, and how long it will take: what it said of that last."""
    logs = folder.root.parent / str(record.get("config", {}).get("logs", "logs"))
    for line in _last_lines(logs / folder.root.name / "finetune.log"):
        event = parse_event(line.decode(errors="replace"))
        if event is not None and event.kind == "progress":
            return describe_progress({**event.fields, "label": ""})
    return ""


def _last_lines(path: Path) -> Iterator[bytes]:
    """The last lines of a file, the very last one first; none where there is no file."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        yield from reversed(file.read().splitlines())


def _last_step(metrics: Path) -> Any:
    """The last step in metrics.jsonl, read from the file's end."""
    for line in _last_lines(metrics):
        if found := parsed_line(line, Metric):
            return found["step"]
    return None


def verify_run(home: Path, pvc: str, run_name: str, say: Callable[[str], Any]) -> bool:
    """Check the digests of all checkpoints and models of a run; True when all are good."""
    folder = known_run(home, pvc, run_name)
    good = True
    folders = sealed_folders(folder.root)
    for path in folders:
        problems = verify(path)
        good &= not problems
        name = path.relative_to(folder.root)
        say(f"{name}: good" if not problems else f"{name}: " + "; ".join(problems))
    if not folders:
        say(f"{run_name} has no checkpoint yet")
    damaged = damages(folder.root)
    for phrase in damaged:
        say(phrase)
    return good and not damaged and _verify_tokens(folder, say)


def _verify_tokens(folder: RunFolder, say: Callable[[str], Any]) -> bool:
    """Check the digests of the run's token store; True when it is good, or gone."""
    try:
        tokens = str((folder.record() or {}).get("tokens", ""))
    except DamagedError:
        return False
    if not tokens:
        return True  # an adopted run has none
    if not (folder.root.parent / tokens).exists():
        say(f"{tokens}: not on this volume any more; the models do not need it")
        return True
    return verify_store(folder.root.parent / tokens, tokens, say)


def verify_store(path: Path, name: str, say: Callable[[str], Any]) -> bool:
    """Check the digests of a token store; True when it is good."""
    from trainer.tokens.store import TokenStore

    try:
        TokenStore.open(path, verify=True)
    except DamagedError as error:
        say(f"{name}: {error}")
        return False
    say(f"{name}: good")
    return True


def stop_run(home: Path, pvc: str, run_name: str) -> list[str]:
    """Stop the run's steps, letting them save, and its service; return what was stopped."""
    stopped = LocalBackend(home).stop(pvc, run_name)
    try:
        if local_service.stop(home / pvc, run_name):
            stopped.append("service")
    except PlaceError as error:
        raise RequestError(f"stopped: {', '.join([*stopped, 'service'])}", str(error)) from error
    return stopped
