"""The exam of all architectures: a type that hangs or crashes ends nothing but its own exam."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tests.training.forking  # noqa: F401  DeepSpeed is loaded, with one thread
from trainer.exam import every_model
from trainer.exam.every_model import as_markdown, examine_all, examine_apart
from trainer.exam.examine import CHECKS, Examined

RIGHT = dict.fromkeys(CHECKS, "")


def instead_of_exams(
    monkeypatch: pytest.MonkeyPatch, work: Callable[[Examined, Callable[[Examined], None]], None]
) -> None:
    def examine(
        config: Any, *, only: tuple[str, ...], after_check: Callable[[Examined], None]
    ) -> Examined:
        found = Examined(config.model_type)
        work(found, after_check)
        return found

    monkeypatch.setattr(every_model, "examine", examine)


def test_a_type_that_hangs_keeps_the_checks_that_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(found: Examined, keep: Callable[[Examined], None]) -> None:
        found.checks["causal"] = ""
        keep(found)
        if os.fork() == 0:
            time.sleep(600)  # as a training process that waits for another
        time.sleep(600)

    instead_of_exams(monkeypatch, hang)
    found = examine_apart("llama", limit_seconds=0.5)
    assert found.checks in ({"causal": ""}, {})  # {}: a machine so busy that none was made
    assert found.not_examined == "it took more than 0.5 s"


def test_a_type_whose_exam_crashes_and_one_without_a_config_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instead_of_exams(monkeypatch, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert examine_apart("llama").not_examined == "its process ended with -9"
    monkeypatch.setattr(every_model, "default_config", lambda kind: 1 / 0)
    assert "it has no default configuration (division by zero)" in examine_apart("x").not_examined


def test_results_are_kept_and_those_that_most_people_want_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, tuple[str, ...]]] = []

    def apart(kind: str, only: tuple[str, ...]) -> Examined:
        made.append((kind, only))
        return Examined(kind, dict.fromkeys(only, ""))

    monkeypatch.setattr(every_model, "examine_apart", apart)
    results = tmp_path / "results.jsonl"
    known: list[dict[str, Any]] = [
        {"model_type": "bert", "not_examined": "odd"},
        {"model_type": "afmoe", "checks": {name: "" for name in CHECKS if name != "lora"}},
    ]
    results.write_text("".join(json.dumps(line) + "\n" for line in known))
    kinds = ["afmoe", "bert", "llama"]
    found = list(examine_all(kinds, results))
    assert made == [("llama", tuple(CHECKS)), ("afmoe", ("lora",))]
    assert found == list(examine_all(kinds, results)) and len(made) == 2
    page = as_markdown(found)
    assert "3 model types: 2 pass every check, 0 pass those that were made" in page
    assert page.index("| `afmoe` | yes") < page.index("| `llama` | yes")
    assert "## Not examined\n\n- `bert`: its default config cannot be made small: odd" in page


def test_a_type_with_checks_that_were_not_made_does_not_count_as_passing_all() -> None:
    page = as_markdown([Examined("llama", {"causal": ""}), Examined("bert", dict(RIGHT))])
    assert "2 model types: 1 pass every check, 1 pass those that were made, 0 have a gap" in page
