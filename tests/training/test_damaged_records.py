"""A damaged file of a run: it is named, it fails no step that is done, it hides no other run."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.cli.runs import overview
from flows.cli.runs.table import runs_table
from tests.training.forking import ended_with, log_of, run_step
from tests.training.volume import make_config, make_volume
from trainer.contract.errors import DamagedError
from trainer.contract.run_files import damages
from trainer.contract.run_folder import RunFolder
from trainer.report.page import page

DEEP = "[" * 100_000 + "]" * 100_000


def torn(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\n")


def as_folder(path: Path) -> None:
    path.unlink()
    (path / "inside").mkdir(parents=True)


def loop(path: Path) -> None:
    """A link to itself: no user can read it."""
    path.unlink()
    path.symlink_to(path.name)


def holding(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(content), None)[1]


def wrong_types(path: Path) -> None:
    """Valid JSON with the right keys and a list for each value."""
    text = path.read_text()
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    wrong = [{key: [value] for key, value in json.loads(line).items()} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in wrong))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "empty": holding(b"\n"),
    "torn": torn,
    "garbage": holding(b"\x80\xfe garbage \xff\n"),
    "zero bytes": holding(bytes(500) + b"\n"),
    "a list": holding(b"[1, 2]\n"),
    "another object": holding(b'{"what": 1}\n'),
    "wrong types": wrong_types,
    "nested": holding(DEEP.encode() + b"\n"),
    "a long number": holding(b'{"step": ' + b"9" * 5000 + b"}\n"),
    "a folder": as_folder,
    "a loop": loop,
}
OBJECTS = (
    *("run.json", ".run.json", "evaluation.json"),
    *("outcomes/fetch.json", "outcomes/finetune.json", "outcomes/evaluate.json"),
    *("times/1-finetune.json", "service.json", "went-back.json"),
)
LINES = ("metrics.jsonl", "samples.jsonl", "skipped.jsonl", "services.jsonl")
# They hold any object: what is in them is not read by steps.
ANY_OBJECT = ("service.json", "went-back.json")
# Made again by the steps whose work they record.
RECREATED = (
    *("run.json", "evaluation.json", "evaluation.md", "report.html"),
    *("outcomes/fetch.json", "outcomes/finetune.json", "outcomes/evaluate.json"),
)
EARLIER = [{"step": step, "status": "done", "result": {}} for step in ("fetch", "tokenize")]


def run_steps(config: dict[str, Any]) -> None:
    """What `finetune run` does on this run: nothing but finding that all is done."""
    assert run_step("finetune", config) == 0, log_of(config)
    assert ended_with(config)["reused"]
    known = {key: config[key] for key in ("volume", "run_name", "model", "tokens")}
    sampling = {"prompt_tokens": 2, "prompt_samples": 1}
    assert run_step("evaluate", {**known, "sampling": sampling}) == 0, log_of(config, "evaluate")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A volume with the finished runs `run` and `other`, each with every file a run may have."""
    volume = make_volume(tmp_path_factory.mktemp("home") / "finetune-data", contexts=8)
    (volume / "prompts.txt").write_text("w5 w6\n")
    config = make_config(volume, epochs=1, prompt_file="prompts.txt", earlier_outcomes=EARLIER)
    config["sampling"] = {"prompt_tokens": 2, "prompt_samples": 1}
    assert run_step("finetune", config) == 0, log_of(config)
    run_steps(config)
    run = volume / "run"
    entry = {"event": "stopped", "revision": 1, "time": "2026-01-01T00:00:00+00:00"}
    (run / "services.jsonl").write_text(2 * (json.dumps(entry) + "\n"))
    (run / "skipped.jsonl").write_text('{"step": 1, "contexts": [], "documents": []}\n')
    for name in ANY_OBJECT:
        (run / name).write_text('{"pid": 1}')
    times = sorted((run / "times").glob("*-finetune.json"))[0]
    shutil.copy(times, run / "times/1-finetune.json")
    shutil.copytree(run, volume / "other")
    assert damages(run) == []
    shutil.copytree(run, volume.parent / "pristine")
    return config


@pytest.fixture
def damaged_run(finished: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The config of the run, whose folder a test may damage."""
    yield finished
    volume = Path(finished["volume"])
    shutil.rmtree(volume / "run")
    shutil.copytree(volume.parent / "pristine", volume / "run")


def look_at_others(volume: Path) -> None:
    """The commands that list, show and verify: the damaged run stops none of them."""
    home, pvc = volume.parent, volume.name
    rows = {row.name: row for row in overview.list_runs(home, pvc)}
    assert set(rows) == {"run", "other"}
    assert rows["other"].state == "evaluated" and not rows["other"].damaged
    assert "other" in runs_table(list(rows.values()))
    assert "held-out" not in overview.show_run(home, pvc, "other").splitlines()[0]
    said: list[str] = []
    assert overview.verify_run(home, pvc, "other", said.append), said


@pytest.mark.parametrize("name", [*OBJECTS, *LINES])
def test_damaged_record_is_named_and_fails_nothing(name: str, damaged_run: dict[str, Any]) -> None:
    volume = Path(damaged_run["volume"])
    run = volume / "run"
    for kind, damage in DAMAGES.items():
        if kind == "another object" and name in ANY_OBJECT:
            continue
        if kind == "wrong types" and name in ANY_OBJECT:
            continue
        shutil.rmtree(run)
        shutil.copytree(volume.parent / "pristine", run)
        damage(run / name)
        found = damages(run)
        assert len(found) == 1 and found[0].startswith(f"{name} is damaged ("), (kind, found)
        look_at_others(volume)
        said: list[str] = []
        assert not overview.verify_run(volume.parent, volume.name, "run", said.append), kind
        assert found[0] in said
        assert name in overview.show_run(volume.parent, volume.name, "run"), kind
        assert page(RunFolder(volume, "run")), kind
        if kind in ("torn", "wrong types", "a loop"):  # of JSON, of its content, of the file
            run_steps(damaged_run)
            left = damages(run)
            assert bool(left) is (name not in RECREATED), (kind, left)
    assert f"run: {name} is damaged" in log_of(damaged_run) + log_of(damaged_run, "evaluate")


@pytest.mark.parametrize("name", ["evaluation.md", "report.html"])
def test_damaged_page_is_made_again(name: str, damaged_run: dict[str, Any]) -> None:
    run = Path(damaged_run["volume"]) / "run"
    for damage in (torn, as_folder):
        before = (run / name).read_bytes()
        damage(run / name)
        run_steps(damaged_run)
        after = (run / name).read_bytes()
        assert after == before or (name == "report.html" and b"</html>" in after)
        assert damages(run) == []


@pytest.mark.parametrize("name", ["outcomes", "times"])
def test_file_in_the_place_of_a_folder(name: str, damaged_run: dict[str, Any]) -> None:
    run = Path(damaged_run["volume"]) / "run"
    shutil.rmtree(run / name)
    (run / name).write_text("a file")
    assert damages(run) == [f"{name} is damaged (it is no folder)"]
    look_at_others(run.parent)
    run_steps(damaged_run)
    look_at_others(run.parent)
    assert (run / "outcomes/finetune.json").is_file()


def test_report_that_cannot_be_made_fails_no_step(damaged_run: dict[str, Any]) -> None:
    run = Path(damaged_run["volume"]) / "run"
    record = json.loads((run / "run.json").read_text())
    # What no check of ours knows: the page divides a text.
    record["plan"] = {"gpu": "", "dollars_per_hour": 1.0, "num_contexts": {"a": 1}}
    for copy in ("run.json", ".run.json"):
        (run / copy).write_text(json.dumps(record))
    run_steps(damaged_run)
    assert "report.html could not be written" in log_of(damaged_run)


def test_record_without_a_good_copy_refuses_by_name(damaged_run: dict[str, Any]) -> None:
    run = Path(damaged_run["volume"]) / "run"
    for name in ("run.json", ".run.json"):
        (run / name).write_text("{")
    with pytest.raises(DamagedError, match=r"run/run.json is damaged .*no good copy"):
        RunFolder(run.parent, "run").record()
    look_at_others(run.parent)
    said: list[str] = []
    assert not overview.verify_run(run.parent.parent, run.parent.name, "run", said.append)
    assert "final: good" in said
    assert run_step("finetune", damaged_run) == 1
    assert "no_resume=true" in log_of(damaged_run)
    again = {**damaged_run, "no_resume": True, "attempt": "anew"}
    assert run_step("finetune", again) == 0, log_of(again)
    assert RunFolder(run.parent, "run").record() is not None


def test_training_goes_on_over_damaged_records(finished: dict[str, Any]) -> None:
    """Records that a running training appends to are set aside, or keep their good lines."""
    volume = Path(finished["volume"])
    config = {**finished, "run_name": "resumed", "logs": "logs", "epochs": 2}
    shutil.copytree(volume.parent / "pristine", volume / "resumed")
    shutil.rmtree(volume / "resumed/final")
    for name in ("metrics.jsonl", "samples.jsonl", "skipped.jsonl"):
        as_folder(volume / "resumed" / name)
    assert run_step("finetune", {**config, "epochs": 1}) == 0, log_of(config)
    assert (volume / "resumed/final/model.safetensors").is_file()
    assert "lines are lost" in log_of(config)
    shutil.rmtree(volume / "resumed")
