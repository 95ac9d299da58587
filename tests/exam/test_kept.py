"""Results of the exam are kept, and a model that fails is refused before anything starts."""

import json
from pathlib import Path

import pytest

from tests.fetch.conftest import Step, model_files, step, write  # noqa: F401
from trainer.exam import kept
from trainer.exam.kept import Asked, ExamResult, exam_of, key_of

_CHECKS = ("final", "loss", "causal", "cache", "lora", "processes", "resume", "packed")
RIGHT = dict.fromkeys(_CHECKS, "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "models/tiny", model_files())


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINETUNE_EXAMS")


def test_the_exam_is_made_once_for_a_config(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made: list[Path] = []

    def make(folder: Path, asked: Asked) -> ExamResult:
        made.append(folder)
        return ExamResult("gptj", RIGHT)

    monkeypatch.setattr(kept, "_made", make)
    assert exam_of(tmp_path, folder, Asked()).table() == dict.fromkeys(RIGHT, "passes")
    exam_of(tmp_path, folder, Asked())
    assert len(made) == 1
    exam_of(tmp_path, folder, Asked(zero_stage=1))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"scale_attn_weights": False}))
    exam_of(tmp_path, folder, Asked())
    assert len(made) == 3
    assert capsys.readouterr().out.count("examining the model's architecture") == 3
    volume = tmp_path / "takes-no-writes"
    volume.mkdir()
    (volume / "cache").touch()
    for _ in "12":
        assert exam_of(volume, folder, Asked()).table() == dict.fromkeys(RIGHT, "passes")
    assert len(made) == 5


def test_what_fails_decides_what_is_refused() -> None:
    wrong = ExamResult("odd", {**RIGHT, "cache": "off by 2", "lora": "off by 3"})
    assert wrong.problems("m", with_lora=False) == []
    [refused] = wrong.problems("m", with_lora=True)
    assert refused.startswith("model m fails the model exam: its merged LoRA would not be")
    assert "(got model_type 'odd'; off by 3). Name other layers" in refused
    [note] = wrong.notes("m")
    assert (
        "the built-in server can't serve it (off by 2). Only vLLM may: serving.engine=vllm" in note
    )
    assert wrong.notes("m", engine="vllm") == []
    assert ExamResult("odd", RIGHT).notes("m") == []
    [note] = ExamResult("odd", not_examined="too odd").notes("m")
    assert "could not be examined" in note and "too odd" in note


def keep(volume: Path, result: ExamResult, **asked: object) -> None:
    key = key_of(volume / "models/tiny", Asked(**asked))  # type: ignore[arg-type]
    folder = volume / kept.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{key}.json").write_text(json.dumps(vars(result)))


def test_fetch_refuses_what_fails_and_records_what_passes(step: Step) -> None:  # noqa: F811
    keep(step.volume, ExamResult("gptj", {**RIGHT, "resume": "other losses"}), zero_stage=1)
    keep(step.volume, ExamResult("gptj", {**RIGHT, "cache": "off by 2"}))
    said = step.refused(request={"zero_stage": 1})
    assert "model models/tiny fails the model exam: an interrupted run would not resume" in said
    ended = step.run(request={"zero_stage": 3})
    assert ended.exit_code == 0, ended.errors
    assert "the built-in server can't serve it (off by 2)" in ended.output
    assert ended.outcome["result"]["exam"]["cache"] == "off by 2"
    assert ended.outcome["result"]["exam"]["final"] == "passes"


def test_the_exam_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    folder = write(tmp_path / "models/small", {"config.json": json.dumps(config).encode()})
    result = exam_of(tmp_path, folder, Asked(zero_stage=2))
    assert result.not_examined == ""
    assert result.checks == RIGHT
    assert len(list((tmp_path / kept.FOLDER).iterdir())) == 1


def test_a_process_that_crashes_is_told_of(tmp_path: Path) -> None:
    folder = write(tmp_path / "models/odd", {"config.json": b'{"model_type": "no-such-kind"}'})
    [note] = exam_of(tmp_path, folder, Asked()).notes("odd")
    assert "could not be examined" in note and "no-such-kind" in note
