"""The champion step: whether to train again, and whether what was trained is better.

What it keeps is described in series.py. Old runs go after each decision (trainer/retention).
Nothing but `record` changes who is the champion; all three can be done again after a kill.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.contract import checkpoints, events, service_history
from trainer.contract.checkpoints import remove
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.files import write_atomically
from trainer.contract.json_files import read_object, readable_object
from trainer.contract.part_losses import forgotten
from trainer.contract.run_files import ComparedLosses
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import ChampionConfig
from trainer.contract.task_scores import worse_tasks
from trainer.contract.volume import path_on_volume
from trainer.forgetting.forgotten import appearing, trained_on_it
from trainer.retention.after_night import after_night
from trainer.retraining.series import ABANDONED, DECIDED, Pending, Series, now
from trainer.steps import StepResult
from trainer.tokens.store import TokenStore, file_digest

NAMES = {"data": "the text", "model": "the base model", "parameters": "the parameters"}
NAMES |= {"forgotten": "what was forgotten"}


def run(config: ChampionConfig) -> StepResult:
    """Look, judge or record, as the config's `action` says."""
    return {"look": _look, "judge": _judge, "record": _record}[config.action](config)


# --- look: is there anything new --------------------------------------------------------


def _look(config: ChampionConfig) -> StepResult:
    """Whether to train, and as what; a run that was begun for the same keeps its name."""
    series = Series(config.volume, config.series)
    fingerprint, skip = _fingerprint(config), _without_forgotten(config)
    if skip:
        fingerprint["forgotten"] = _digest(skip)
    trained = [entry for entry in series.decisions() if entry["decision"] in DECIDED]
    champion = series.champion()
    named = champion["run"] if champion else ""
    if trained and trained[-1]["fingerprint"] == fingerprint:
        series.append({"decision": "unchanged", "fingerprint": fingerprint, "champion": named})
        words = f"unchanged since {trained[-1]['run']}: nothing to do; the champion is {named}"
        room = after_night(series, config.retention)
        result = {"decision": "unchanged", "champion": named, "room": room}
        return StepResult(result=result, message=words)
    pending = _begun(config, series, fingerprint, named)
    if named == pending["run"]:
        # `record` was killed on its way: the run is to be decided on, and replaces no other.
        named = ""
    words = f"{_changed(trained, fingerprint)}: training {pending['run']} from {pending['model']}"
    result = {"decision": "train", "champion": named, "fingerprint": fingerprint, "skip": skip}
    return StepResult(result={**result, **pending}, message=words)


def _begun(
    config: ChampionConfig, series: Series, fingerprint: dict[str, str], champion: str
) -> dict[str, Any]:
    """The run to train: one that was begun for the same, or a new one."""
    pending = series.pending()
    if pending is not None and pending["fingerprint"] == fingerprint:
        return pending
    if pending is not None:  # what it was begun for is no more; it goes with the older runs
        series.append(
            {"decision": ABANDONED, "run": pending["run"], "fingerprint": pending["fingerprint"]}
        )
    pending = {
        "fingerprint": fingerprint,
        "run": _new_name(config),
        "model": _base(config, champion),
    }
    write_atomically(series.pending_path, json.dumps(pending))
    return pending


def _base(config: ChampionConfig, champion: str) -> str:
    """The model to train from: never one that was trained on what is forgotten."""
    if config.start_from != "last" or not champion:
        return config.model
    if champion in trained_on_it(config.volume):
        events.notice(f"{champion} was trained on what is forgotten: begins at {config.model}")
        return config.model
    return f"{champion}/final"


def _without_forgotten(config: ChampionConfig) -> dict[str, Any]:
    """What the run is to skip, where documents that were forgotten are in the text again."""
    store = TokenStore.open(path_on_volume(config.volume, "tokens", config.tokens))
    dataset = str(config.request.get("dataset", ""))
    again = appearing(config.volume, store, dataset)
    if again is None:
        return {}
    names = ", ".join(again["figures"]["names"])
    events.notice(f"forgotten documents are in {dataset} again ({names}): not trained on")
    asked = {"documents": [], "sha256": [], **(config.request.get("skip") or {})}
    sha256 = [*asked["sha256"], *(d for d in again["sha256"] if d not in asked["sha256"])]
    return {"documents": asked["documents"], "sha256": sha256}


def _fingerprint(config: ChampionConfig) -> dict[str, str]:
    """What a run is made from, as digests of the tokens, the model's files and the request."""
    store = TokenStore.open(path_on_volume(config.volume, "tokens", config.tokens))
    folder = path_on_volume(config.volume, "model", config.model)
    files = [path for path in sorted(folder.glob("*.*")) if path.is_file()]
    model = [[path.name, file_digest(path)] for path in files]
    return {
        "data": store.digest,
        "model": _digest(model),
        "parameters": _digest({**config.request, "start_from": config.start_from}),
    }


def _changed(trained: list[dict[str, Any]], fingerprint: dict[str, str]) -> str:
    if not trained:
        return "the first of its series"
    before = trained[-1]["fingerprint"]
    changed = [NAMES[name] for name in NAMES if before.get(name) != fingerprint.get(name)]
    return f"{' and '.join(changed)} changed"


def _new_name(config: ChampionConfig) -> str:
    """The series' name and the day, with a number where that is taken."""
    dated = f"{config.series}-{datetime.now(UTC):%Y%m%d}"
    # A run that was removed leaves its decision, which must not be of two runs.
    taken = {d.get("run") for d in Series(config.volume, config.series).decisions()}
    names = [dated, *(f"{dated}-{number}" for number in range(2, 1000))]
    return next(n for n in names if n not in taken and not (Path(config.volume) / n).exists())


# --- judge: is it better ----------------------------------------------------------------


def _judge(config: ChampionConfig) -> StepResult:
    """Compare the candidate with the champion on the same held-out text; changes nothing."""
    store = TokenStore.open(path_on_volume(config.volume, "tokens", config.tokens))
    report = readable_object(RunFolder(config.volume, config.candidate).report, ComparedLosses)
    if report is None or report["compared"].get("tokens") != store.digest:
        raise DamagedError(f"{config.candidate} has no evaluation on {config.tokens}.")
    champion = Series(config.volume, config.series).champion()
    loss, base_loss = report["loss"], report["base_loss"]
    if loss is None:
        raise RequestError(
            "train_ratio leaves no held-out text to compare models on (got no held-out context). "
            "Set it below 1, or add text."
        )
    figures = {"loss": loss, "base_loss": base_loss, "champion_loss": None}
    better, why = loss < base_loss, f"{loss:.4f} against the base model's {base_loss:.4f}"
    if champion and champion["run"] in trained_on_it(config.volume):
        why += f"; {champion['run']} was trained on what is forgotten, and goes in any case"
    elif champion and champion["run"] != config.candidate:
        if champion["tokenizer_digest"] != store.manifest.tokenizer_digest:
            better, why = False, "its tokenizer is another, so losses can't be compared"
        else:
            figures["champion_loss"] = _champion_loss(config, champion["run"], store, report)
            better &= loss < figures["champion_loss"]
            why = f"{loss:.4f} against {figures['champion_loss']:.4f} of {champion['run']}"
    if worse := worse_tasks(report.get("tasks", []), config.evaluation.max_drop):
        better, why = False, f"{why}, but it got worse at tasks: {'; '.join(worse)}"
    most, rise = config.evaluation.max_forgetting, forgotten(report.get("parts", []))
    if most is not None and (rise is None or rise > most):
        measured = "was not measured" if rise is None else f"rose by {rise:.4f}"
        better, why = False, f"{why}, but its loss on general text {measured} (at most {most:g})"
    decision = "promoted" if better else "kept"
    words = f"{config.candidate} is {'better' if better else 'not better'}: {why}"
    return StepResult(result={"decision": decision, "why": why, **figures}, message=words)


def _champion_loss(
    config: ChampionConfig, run: str, store: TokenStore, report: dict[str, Any]
) -> float:
    """The champion's loss on the store's held-out contexts."""
    if report["compared"].get("model") == f"{run}/final":
        return report["base_loss"]  # the candidate was trained from it, and compared with it
    from trainer.evaluation.held_out_loss import loss_of_model

    final = RunFolder(config.volume, run).final
    if problems := checkpoints.verify(final):
        raise DamagedError(f"the champion {run} can't be compared with: {'; '.join(problems)}")
    loss = loss_of_model(final, store, "evaluate champion", config.trust_remote_code)
    assert loss is not None, "the candidate was measured on the same contexts"
    return loss


# --- record: keep what was decided ------------------------------------------------------


def _record(config: ChampionConfig) -> StepResult:
    series = Series(config.volume, config.series)
    try:
        pending = read_object(series.pending_path, Pending)
    except DamagedError as error:
        events.say(f"{error}; it is worked out again")
        pending = {"run": config.candidate, "fingerprint": _fingerprint(config)}
    if pending is None or pending["run"] != config.candidate:
        room = after_night(series, config.retention)
        return StepResult(result={"room": room}, message="recorded before", reused=True)
    if config.verdict["decision"] == "promoted":
        store = TokenStore.open(path_on_volume(config.volume, "tokens", config.tokens))
        digest = store.manifest.tokenizer_digest
        champion = {"run": config.candidate, "since": now(), "tokenizer_digest": digest}
        write_atomically(series.champion_path, json.dumps(champion, indent=1))
    if config.replaced:
        _note_that_it_was_stopped(RunFolder(config.volume, config.replaced))
    fingerprint = pending["fingerprint"]
    series.append({"run": config.candidate, "fingerprint": fingerprint, **config.verdict})
    remove(series.pending_path)
    room = after_night(series, config.retention, config.candidate)
    words = f"recorded: {config.candidate} {config.verdict['decision']}"
    return StepResult(result={"room": room}, message=words)


def _note_that_it_was_stopped(replaced: RunFolder) -> None:
    """Say in the history of the run that its service was ended; a cluster says it nowhere else."""
    served = service_history.read_history(replaced)
    if served and served[-1]["event"] != "stopped":
        service_history.append(replaced, "stopped", revision=served[-1]["revision"])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
