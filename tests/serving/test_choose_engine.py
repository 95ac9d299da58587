"""Which engine serves a model: what was asked for, the machine, and the model exam decide."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.cluster_deployment import serving_spec
from tasks.local_deployment import deploy_here
from tests.serving import trained
from trainer.contract.errors import RequestError
from trainer.contract.outcome import Outcome
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import DeployConfig, ServeConfig
from trainer.serving import step
from trainer.serving.deploy import choose_engine
from trainer.serving.deploy import deploy as deploy_step
from trainer.serving.deploy.choose_engine import engine_for, engine_here, wrong_of

WRONG = "off by 2"
VOLUME = "finetune-data"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with a finished model, which the exam's check d) failed."""
    root = tmp_path / VOLUME / "town"
    trained.save(root / "final")
    (root / "run.json").write_text(json.dumps({"request": {}, "created": "now"}))
    folder = RunFolder(tmp_path / VOLUME, "town")
    table = {"final": "passes", "cache": WRONG}
    folder.record_outcome(Outcome(step="fetch", status="done", result={"exam": table}))
    return folder


def machine(patch: pytest.MonkeyPatch, *, vllm: bool, gpu: bool) -> None:
    patch.setattr(choose_engine.importlib.util, "find_spec", lambda name: vllm or None)
    patch.setattr(choose_engine, "has_gpu", lambda: gpu)


@pytest.mark.parametrize(
    ("vllm", "gpu", "expected"),
    [
        (True, True, "vllm"),
        (True, False, "builtin"),
        (False, True, "builtin"),
        (False, False, "builtin"),
    ],
)
def test_auto_takes_vllm_where_it_is_installed_and_there_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch, vllm: bool, gpu: bool, expected: str
) -> None:
    machine(monkeypatch, vllm=vllm, gpu=gpu)
    assert engine_here("auto") == expected
    assert [engine_here(asked) for asked in ("builtin", "vllm")] == ["builtin", "vllm"]


@pytest.mark.parametrize("asked", ["builtin", "vllm", "auto"])
def test_where_the_exam_finds_nothing_it_is_what_was_asked_for(asked: str) -> None:
    assert engine_for(asked, "", "town") == asked


def test_where_the_built_in_engine_is_wrong_it_is_vllm_or_a_refusal(run: RunFolder) -> None:
    assert wrong_of(run) == WRONG
    assert engine_for("auto", WRONG, "town") == engine_for("vllm", WRONG, "town") == "vllm"
    with pytest.raises(RequestError, match=r"serving.engine=builtin would answer wrongly.*off by"):
        engine_for("builtin", WRONG, "town")


@pytest.mark.parametrize("table", [{}, {"cache": "passes"}, {"not examined": "too odd"}])
def test_a_model_that_passed_or_was_not_examined_is_served(run: RunFolder, table: Any) -> None:
    run.record_outcome(Outcome(step="fetch", status="done", result={"exam": table}))
    assert wrong_of(run) == ""
    (run.outcomes / "fetch.json").unlink()
    assert wrong_of(run) == ""


def deploy(run: RunFolder, **given: Any) -> Outcome:
    values = Parameters(run_name="town", **given).model_dump()
    return deploy_here(values, run.root.parent, print)


@pytest.mark.parametrize("engine", ["builtin", "auto"])
def test_a_run_whose_model_nothing_here_serves_ends_done_and_says_so(
    run: RunFolder, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, vllm=False, gpu=False)
    for reused in (False, True):
        outcome = deploy(run, serving={"engine": engine})
        assert (outcome.status, outcome.reused, outcome.result["url"]) == ("done", reused, "")
        assert outcome.message.startswith("not tried: model town trains, but the built-in server")
    with pytest.raises(RequestError, match="would answer wrongly"):
        deploy(run, run_inference=True)


def test_the_server_takes_what_auto_is_on_its_machine(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "engine_here", lambda asked: "vllm")
    asked = ServeConfig(volume=str(run.root.parent), model="town/final", engine="auto")
    with pytest.raises(RequestError, match="engine vllm is not installed"):
        step.run(asked)


def test_the_deploy_step_hands_on_what_the_exam_found(run: RunFolder) -> None:
    asked = DeployConfig(volume=str(run.root.parent), run="town")
    assert deploy_step.run(asked).result["builtin_wrong"] == WRONG
    (run.outcomes / "fetch.json").unlink()
    assert "builtin_wrong" not in deploy_step.run(asked).result


def test_on_a_cluster_the_deploy_step_says_what_the_exam_found() -> None:
    found = {"model": "town/served/1", "model_digest": "1", "revision": 1, "loss": None}

    named = Parameters(run_name="town", serving={"image": "finetune-vllm:0.2.0"}).model_dump()
    assert serving_spec(named, found).image == "finetune-vllm:0.2.0"
    assert serving_spec(Parameters(run_name="town").model_dump(), found).image.startswith(
        "finetune-steps:"
    )

    def engine_of(engine: str, **more: str) -> str:
        values = Parameters(run_name="town", serving={"engine": engine}).model_dump()
        return str(serving_spec(values, {**found, **more}).config["engine"])

    assert [engine_of(engine) for engine in ("builtin", "auto")] == ["builtin", "auto"]
    assert engine_of("auto", builtin_wrong=WRONG) == "vllm"
    with pytest.raises(RequestError, match="would answer wrongly"):
        engine_of("builtin", builtin_wrong=WRONG)
