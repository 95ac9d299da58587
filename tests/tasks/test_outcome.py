"""A step's outcome in a termination message, of which Kubernetes takes 4,096 bytes."""

import json
from typing import Any

import pytest

from trainer.contract.outcome import TERMINATION_MESSAGE_BYTES, Outcome, termination_message


@pytest.mark.parametrize(
    "message",
    ["x" * 9000, "ж" * 3000, "数据" * 3000, '"\n\\' * 3000, "\udcff" * 9000],
    ids=["long", "cyrillic", "chinese", "escaped", "no text"],
)
def test_an_outcome_of_any_length_is_whole_json_that_is_not_cut(message: str) -> None:
    result: dict[str, Any] = {"store": "tokens/tales-0123", "files": ["ein Märchen.txt"] * 900}
    outcome = Outcome(step="tokenize", status="done", message=message, result=result)
    text = termination_message(outcome)
    assert len(text.encode()) <= TERMINATION_MESSAGE_BYTES
    left = Outcome.from_json(text)
    assert (left.step, left.status) == ("tokenize", "done")
    assert left.result == {"store": "tokens/tales-0123"}  # what the next step needs
    assert len(left.message) >= 500


def test_text_of_any_language_that_fits_is_left_as_it_is() -> None:
    outcome = Outcome(step="fetch", status="refused", message="ж" * 1900)
    assert json.loads(termination_message(outcome))["message"] == outcome.message
