"""The exam on a GPU, in its small form on this CPU: nothing in it fails for a silly reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import memory, results, runner, settings, table
from benchmarks.gpu.parts import PARTS, Case, Part
from benchmarks.gpu.results import PartResult
from tests.training.forking import run_forked

# What a CPU has not, or a compiler would take minutes for: each says so itself.
NOT_HERE = {
    "speed": {"nothing again, compiled", "all layers again, compiled"},
    "attention": {"cudnn attention", "efficient attention"},
    "peers": {"torchtitan"},
    "memory": {"bf16, Adam in host memory"},
    "sizes": {"offload on a card that is made to look small"},
    "settings": {"QLoRA", "fp16 with loss scaling", "Liger's kernels", "compiled layers"},
    "serving": {"vllm"},
}


def cases(folder: Path, part: str) -> dict[str, Any]:
    return json.loads(results.path_of(folder, part).read_text())["cases"]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_in_its_small_form(tmp_path: Path, part: str) -> None:
    # In a fork, as each part is alone on a GPU: an engine leaves threads and groups behind.
    words = [part, "--small", "--results", str(tmp_path)]
    code, said = run_forked(tmp_path, lambda: command.main(words))
    assert code == 0, said[-3000:]
    found = cases(tmp_path, part)
    assert found.keys() == PARTS[part].cases.keys()
    assert {name for name, case in found.items() if "found" not in case} == NOT_HERE.get(
        part, set()
    )
    if part in ("killed", "terminated"):
        (stopped,) = (case["found"] for case in found.values())
        assert stopped["stopped"] == stopped["of"] and stopped["same_weights"]
        assert stopped["same_losses"] and stopped["lines"] == 12
    if part == "settings":
        plain, whole = (found[name]["found"]["first_loss"] for name in ("plain", "whole logits"))
        assert plain == pytest.approx(whole, abs=1e-5)


def test_names_of_cases_are_those_of_settings() -> None:
    assert [*PARTS["memory"].cases] == [*memory.SETTINGS]
    assert [*PARTS["settings"].cases] == [*settings.SETTINGS]


class Exam:
    """A part of two cases; what ran is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.fails = ""
        part = Part("title", "aim", {"one": Case("x:one"), "two": Case("x:two")})
        monkeypatch.setitem(PARTS, "made-up", part)
        monkeypatch.setattr(runner, "_in_process", self.run)

    def run(self, part: str, name: str, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
        self.ran.append(name)
        case = {"failed": "why"} if name == self.fails else {"found": {"tokens": 12345.6}}
        return {"device": "NVIDIA H200"}, case


def test_a_finished_case_is_not_run_again_and_a_failed_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exam = Exam(monkeypatch)
    exam.fails = "two"
    given = ["made-up", "--results", str(tmp_path)]
    assert runner.run_part("made-up", tmp_path) is False
    exam.fails = ""
    assert runner.run_part("made-up", tmp_path) is True
    assert runner.run_part("made-up", tmp_path) is True
    assert exam.ran == ["one", "two", "two"]
    assert runner.run_part(given[0], tmp_path, again=True)
    assert exam.ran[3:] == ["one", "two"]


def test_a_part_ends_before_nine_minutes_and_goes_on_with_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exam = Exam(monkeypatch)
    monkeypatch.setattr(runner, "PART_SECONDS", runner.LEAST_SECONDS - 1)
    assert runner.run_part("made-up", tmp_path) is False
    assert exam.ran == []
    monkeypatch.setattr(runner, "PART_SECONDS", 500.0)
    assert runner.run_part("made-up", tmp_path) is True


def test_a_case_that_takes_too_long_or_dies_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.sys, "executable", "/bin/false")
    assert "ended with 1" in runner._in_process("speed", "nothing again", 10)[1]["failed"]
    assert PARTS["speed"].cases.keys() >= {"nothing again"}


def test_the_page_shows_what_a_gpu_gave_and_nothing_that_a_cpu_gave() -> None:
    empty = {part: PartResult(part, False) for part in PARTS}
    page = "\n".join(table.lines(empty))
    assert table.NOTHING in page and all(f"## {part}" in page for part in PARTS)
    case = {"nothing again": {"found": {"tokens_per_second": 11234.5}}}
    on_gpu = PartResult("speed", False, {"device": "NVIDIA H200", "torch": "2.13"}, case)
    page = "\n".join(table.lines({**empty, "speed": on_gpu}))
    assert table.NOTHING not in page
    assert "tokens_per_second 11,23" in page and "NVIDIA H200, torch 2.13" in page
    on_cpu = PartResult("speed", False, {"device": "CPU x86_64"}, case)
    assert table.NOTHING in "\n".join(table.lines({**empty, "speed": on_cpu}))


def test_the_page_in_docs_is_the_one_that_is_written(tmp_path: Path) -> None:
    """Until a GPU gave results: then the page has them, and this test goes."""
    table.write(tmp_path, tmp_path / "gpu.md")
    assert (tmp_path / "gpu.md").read_text() == table.PAGE.read_text()
