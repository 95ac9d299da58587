"""lm-eval's tasks in the evaluate step, on a task of one's own; the lock has no lm-eval."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.evaluation.test_evaluate import evaluate_config, report_of
from tests.training.forking import log_of, run_step
from tests.training.volume import make_config, make_volume
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import ChampionConfig
from trainer.contract.task_scores import worse_tasks
from trainer.contract.topics import EvaluationConfig
from trainer.contract.work_key import work_key
from trainer.evaluation.tasks import compared_scores, refuse_tasks
from trainer.report.page import write_page

real = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="pip install 'finetune-pipeline[tasks]'"
)
TASK = """\
task: which-word
dataset_path: json
dataset_kwargs: {data_files: {test: my-tasks/which-word.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{before}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1}
"""
DOCUMENTS = [
    {"before": f"w{n} w{n * 7 % 95 + 2}", "choices": [f"w{n + 1}", f"w{n + 40}"], "label": n % 2}
    for n in range(1, 13)
]
ASKED = {"tasks": ["which-word"], "include_path": "my-tasks"}


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with a finished run and a task."""
    volume = make_volume(tmp_path_factory.mktemp("tasks"), "neox")
    config = make_config(volume, epochs=1)
    assert run_step("finetune", config) == 0, log_of(config)
    (volume / "my-tasks").mkdir()
    (volume / "my-tasks/which-word.yaml").write_text(TASK)
    lines = "".join(json.dumps(document) + "\n" for document in DOCUMENTS)
    (volume / "my-tasks/which-word.jsonl").write_text(lines)
    return volume


def accuracy(folder: Path) -> float:
    """By transformers alone: the share of documents whose likelier choice is the right one."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = 0
    for document in DOCUMENTS:
        scores = []
        for choice in document["choices"]:
            ids = tokenizer(f"{document['before']} {choice}", return_tensors="pt").input_ids
            with torch.no_grad():
                scores.append(float(model(ids).logits[0, -2].log_softmax(-1)[ids[0, -1]]))
        right += scores.index(max(scores)) == document["label"]
    return right / len(DOCUMENTS)


@real
def test_both_models_are_scored_as_the_library_would(
    volume: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = evaluate_config(volume, evaluation=ASKED)
    assert run_step("evaluate", config) == 0, log_of(config, "evaluate")
    [row] = report_of(volume)["tasks"]
    assert (row["task"], row["metric"], row["higher_is_better"]) == ("which-word", "acc", True)
    assert row["base"] == pytest.approx(accuracy(volume / "models/tiny"))
    assert row["finetuned"] == pytest.approx(accuracy(volume / "run/final"))
    assert "| which-word | acc |" in (volume / "run/evaluation.md").read_text()
    assert "<td>which-word acc</td>" in write_page(RunFolder(volume, "run")).read_text()
    refuse_tasks(EvaluationConfig(**ASKED), volume)  # type: ignore[arg-type]


@real
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tasks": ["which-wrod"], "include_path": "my-tasks"}, "Near it: which-word"),
        ({"tasks": ["which-word"]}, r"names no task of lm-eval \(got which-word\)"),
        ({"tasks": ["which-word"], "include_path": "none"}, "include_path is no folder"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    volume: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        refuse_tasks(EvaluationConfig(**asked), volume)


def test_without_the_library_the_topic_is_refused(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(RequestError, match=r"needs the package lm-eval.*got \['which-word'\]"):
        refuse_tasks(EvaluationConfig(**ASKED), volume)  # type: ignore[arg-type]
    refuse_tasks(EvaluationConfig(), volume)


def row(base: float, finetuned: float, better: bool | None) -> dict[str, Any]:
    return compared_scores(
        {"t": {"m": base}}, {"t": {"m": finetuned}}, {} if better is None else {"t": {"m": better}}
    )[0]


def test_a_drop_is_judged_in_the_metrics_own_direction() -> None:
    rows = [row(0.5, 0.4, True), row(2.0, 2.5, False), row(0.5, 0.1, None), row(0.5, 0.6, True)]
    assert worse_tasks(rows, None) == []
    assert len(worse_tasks(rows, 0.05)) == 2
    assert worse_tasks(rows, 0.2) == ["t m was 2.0000, is 2.5000"]


def test_retraining_keeps_a_run_that_lost_at_a_task(volume: Path) -> None:
    from trainer.retraining.step import run as judge

    report = volume / "run/evaluation.json"
    config = evaluate_config(volume)
    assert run_step("evaluate", config) == 0
    found = report_of(volume) | {"loss": 1.0, "base_loss": 2.0, "tasks": [row(0.9, 0.5, True)]}
    report.write_text(json.dumps(found))
    asked: dict[str, Any] = {"volume": str(volume), "series": "nightly", "action": "judge"}
    asked |= {"model": "models/tiny", "tokens": "tokens/tiny", "candidate": "run"}
    assert judge(ChampionConfig(**asked)).result["decision"] == "promoted"
    limit = EvaluationConfig(tasks=["t"], max_drop=0.1)
    judged = judge(ChampionConfig(**asked, evaluation=limit)).result
    assert judged["decision"] == "kept"
    assert "got worse at tasks: t m was 0.9000, is 0.5000" in judged["why"]


def test_where_no_tasks_are_asked_for_nothing_is_another_work() -> None:
    given = Parameters(run_name="run", model="models/m")
    assert "evaluation" not in given.request
    plain = evaluate_config(Path("/v"))
    unset = {"tasks": [], "limit": 0, "include_path": "", "max_drop": None, "max_forgetting": None}
    assert work_key("evaluate", plain | {"evaluation": unset}) == work_key("evaluate", plain)
    asked = plain | {"evaluation": unset | {"limit": 3}}
    assert work_key("evaluate", asked) != work_key("evaluate", plain)
