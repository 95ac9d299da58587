"""`make bench`: ratios are compared with the recorded ones, and a loss of a fifth fails."""

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import ratios, start_up
from benchmarks.ratios import Ratio


def test_a_ratio_that_is_printed_is_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    ratios.say_ratio("stall over copy", 1.25, higher=False)
    found = [ratios.ratio_in(line) for line in capsys.readouterr().out.splitlines()]
    assert found == [Ratio("stall over copy", 1.25, False)]
    assert ratios.ratio_in("1.25 other words") is None


@pytest.mark.parametrize(
    ("now", "higher", "is_lost"),
    [(0.81, True, False), (0.80, True, True), (1.19, False, False), (1.20, False, True)],
)
def test_a_loss_of_a_fifth_is_one(now: float, higher: bool, is_lost: bool) -> None:
    before = {"x": {"value": 1.0}}
    assert ratios.lost([Ratio("x", now, higher)], before) == (["x"] if is_lost else [])
    assert ratios.lost([Ratio("new", now, higher)], before) == []


def run_bench(
    monkeypatch: pytest.MonkeyPatch, recorded: Path, value: float, *arguments: str
) -> int:
    monkeypatch.setattr(bench, "ALL", ("one",))
    monkeypatch.setattr(bench, "run", lambda command: (0, [Ratio("speed", value)]))
    monkeypatch.setattr(ratios.read, "__defaults__", (recorded,))
    monkeypatch.setattr(ratios.record, "__defaults__", (recorded,))
    return bench.main([*arguments])


def test_the_command_records_compares_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = tmp_path / "ratios.json"
    assert run_bench(monkeypatch, recorded, 1.0, "--record", "today, idle") == 0
    assert json.loads(recorded.read_text())["speed"]["measured"] == "today, idle"
    assert run_bench(monkeypatch, recorded, 0.9) == 0
    assert "speed: 0.9, was 1: worse by 10%" in capsys.readouterr().out
    assert run_bench(monkeypatch, recorded, 0.7) == 1
    assert "worse by a fifth or more: speed" in capsys.readouterr().err


def test_what_is_recorded_is_what_benchmarks_say() -> None:
    for name, entry in ratios.read().items():
        assert entry.keys() == {"value", "higher", "measured"}, name
        assert entry["value"] > 0


def test_a_command_that_fails_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        start_up.timed(["python3", "-c", "raise SystemExit(3)"], tmp_path)


def test_the_first_step_is_the_first_line_with_a_loss(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    write = f"open({str(metrics)!r}, 'w').write('{{\"loss\": 1}}\\\\n')"
    taken = start_up.timed(
        ["python3", "-c", f"import time; {write}; time.sleep(0.2)"], tmp_path, metrics
    )
    assert 0 < taken.first_step < taken.wall
    assert start_up.timed(["python3", "-c", ""], tmp_path, tmp_path / "none").first_step == 0
