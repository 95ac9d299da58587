"""What a finished run comes to: pure, from the outcomes of its steps."""

from collections.abc import Sequence
from typing import Any

from trainer.contract.outcome import Outcome


def losses(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures that say what the run achieved, of those steps that ran."""
    found: dict[str, Any] = {}
    for outcome in outcomes:
        if outcome.step == "finetune":
            found |= _chosen(outcome, "final", "steps", "loss")
        if outcome.step == "evaluate":
            found |= _chosen(outcome, "base_loss", "base_perplexity", "forgot")
            found |= {
                f"finetuned_{name}": value
                for name, value in _chosen(outcome, "loss", "perplexity").items()
            }
        if outcome.step == "deploy":
            found |= _chosen(outcome, "url")
    return found


def _chosen(outcome: Outcome, *names: str) -> dict[str, Any]:
    return {name: outcome.result[name] for name in names if outcome.result.get(name) is not None}
