"""The champion step: whether to train again, and whether what was trained is better.

    retrain/{series}/champion.json     the run whose model is the best one so far
    retrain/{series}/decisions.jsonl   every decision with its figures, the oldest first
    retrain/{series}/pending.json      the run that is being trained, until it is decided on

Nothing but `record` changes who is the champion; all three can be done again after a kill.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer import checkpoints, events
from trainer.config import ChampionConfig
from trainer.durable import write_atomically
from trainer.errors import DamagedError, RequestError
from trainer.run_folder import RunFolder
from trainer.steps import StepResult
from trainer.tokens.store import TokenStore, file_digest
from trainer.volume_paths import path_on_volume

FOLDER = "retrain"
NAMES = {"data": "the text", "model": "the base model", "parameters": "the parameters"}


class Series:
    """What is kept of one series of retrainings."""

    def __init__(self, volume: str | Path, name: str) -> None:
        folder = Path(volume) / FOLDER / name
        self.champion_path = folder / "champion.json"
        self.decisions_path = folder / "decisions.jsonl"
        self.pending_path = folder / "pending.json"

    def champion(self) -> dict[str, Any] | None:
        """The run that is the best one so far."""
        return _read(self.champion_path)

    def decisions(self) -> list[dict[str, Any]]:
        """Every decision, the oldest first."""
        if not self.decisions_path.exists():
            return []
        return [json.loads(line) for line in self.decisions_path.read_text().splitlines()]

    def append(self, decision: dict[str, Any]) -> None:
        lines = [*self.decisions(), {"time": _now(), **decision}]
        write_atomically(self.decisions_path, "".join(f"{json.dumps(line)}\n" for line in lines))


def run(config: ChampionConfig) -> StepResult:
    """Look, judge or record, as the config's `action` says."""
    return {"look": _look, "judge": _judge, "record": _record}[config.action](config)


# --- look: is there anything new --------------------------------------------------------


def _look(config: ChampionConfig) -> StepResult:
    """Whether to train, and as what; a run that was begun for the same keeps its name."""
    series = Series(config.volume, config.series)
    fingerprint = _fingerprint(config)
    trained = [entry for entry in series.decisions() if entry["decision"] != "unchanged"]
    champion = series.champion()
    named = champion["run"] if champion else ""
    if trained and trained[-1]["fingerprint"] == fingerprint:
        series.append({"decision": "unchanged", "fingerprint": fingerprint, "champion": named})
        words = f"unchanged since {trained[-1]['run']}: nothing to do; the champion is {named}"
        return StepResult(result={"decision": "unchanged", "champion": named}, message=words)
    pending = _read(series.pending_path)
    if pending is None or pending["fingerprint"] != fingerprint:
        pending = {"fingerprint": fingerprint, "run": _new_name(config), "model": config.model}
        if config.start_from == "last" and champion:
            pending["model"] = f"{named}/final"
        write_atomically(series.pending_path, json.dumps(pending))
    if named == pending["run"]:
        # `record` was killed on its way: the run is to be decided on, and replaces no other.
        named = ""
    words = f"{_changed(trained, fingerprint)}: training {pending['run']} from {pending['model']}"
    result = {"decision": "train", "champion": named, "fingerprint": fingerprint}
    return StepResult(result={**result, **pending}, message=words)


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
    changed = [NAMES[name] for name in NAMES if before[name] != fingerprint[name]]
    return f"{' and '.join(changed)} changed"


def _new_name(config: ChampionConfig) -> str:
    """The series' name and the day, with a number where that is taken."""
    dated = f"{config.series}-{datetime.now(UTC):%Y%m%d}"
    names = [dated, *(f"{dated}-{number}" for number in range(2, 1000))]
    return next(name for name in names if not (Path(config.volume) / name).exists())


# --- judge: is it better ----------------------------------------------------------------


def _judge(config: ChampionConfig) -> StepResult:
    """Compare the candidate with the champion on the same held-out text; changes nothing."""
    store = TokenStore.open(path_on_volume(config.volume, "tokens", config.tokens))
    report = _read(RunFolder(config.volume, config.candidate).report)
    if report is None or report["compared"]["tokens"] != store.digest:
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
    if champion and champion["run"] != config.candidate:
        if champion["tokenizer_digest"] != store.manifest.tokenizer_digest:
            better, why = False, "its tokenizer is another, so losses can't be compared"
        else:
            figures["champion_loss"] = _champion_loss(config, champion["run"], store, report)
            better &= loss < figures["champion_loss"]
            why = f"{loss:.4f} against {figures['champion_loss']:.4f} of {champion['run']}"
    decision = "promoted" if better else "kept"
    words = f"{config.candidate} is {'better' if better else 'not better'}: {why}"
    return StepResult(result={"decision": decision, "why": why, **figures}, message=words)


def _champion_loss(
    config: ChampionConfig, run: str, store: TokenStore, report: dict[str, Any]
) -> float:
    """The champion's loss on the store's held-out contexts."""
    if report["compared"]["model"] == f"{run}/final":
        return report["base_loss"]  # the candidate was trained from it, and compared with it
    import torch

    from trainer.models import load_model
    from trainer.training.loss import CausalLoss
    from trainer.training.validation import held_out, held_out_loss

    final = RunFolder(config.volume, run).final
    if problems := checkpoints.verify(final):
        raise DamagedError(f"the champion {run} can't be compared with: {'; '.join(problems)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else None
    model = load_model(final, dtype=dtype, trust_remote_code=config.trust_remote_code).to(device)
    loss_of, total, done = CausalLoss(model), len(held_out(store)), 0

    def counted(ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done = min(total, done + len(ids))
        events.progress(label="evaluate champion", done=done, total=total, unit="contexts")
        return loss_of(ids.to(device), lengths.to(device))

    with torch.no_grad():
        loss = held_out_loss(counted, store, 4)
    assert loss is not None, "the candidate was measured on the same contexts"
    return loss


# --- record: keep what was decided ------------------------------------------------------


def _record(config: ChampionConfig) -> StepResult:
    series = Series(config.volume, config.series)
    pending = _read(series.pending_path)
    if pending is None or pending["run"] != config.candidate:
        return StepResult(message="recorded before", reused=True)
    if config.verdict["decision"] == "promoted":
        store = TokenStore.open(path_on_volume(config.volume, "tokens", config.tokens))
        digest = store.manifest.tokenizer_digest
        champion = {"run": config.candidate, "since": _now(), "tokenizer_digest": digest}
        write_atomically(series.champion_path, json.dumps(champion, indent=1))
    fingerprint = pending["fingerprint"]
    series.append({"run": config.candidate, "fingerprint": fingerprint, **config.verdict})
    series.pending_path.unlink()
    return StepResult(message=f"recorded: {config.candidate} {config.verdict['decision']}")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
