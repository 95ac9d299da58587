"""`finetune replay`, `blame` and `forget` where only Jobs have the volume."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.cli.main import cli
from flows.cli.runs.in_jobs import Jobs, with_processes_of
from tests.forgetting.small_run import CONTEXT, make_run, train
from tests.forgetting.test_forgetting import late_document
from tests.kubernetes.test_pipeline_as_jobs import real_cluster
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters

REQUEST = Parameters(
    run_name="one",
    model="models/tiny",
    context=CONTEXT,
    batch_size=4,
    gradients=2,
    epochs=2,
    learn_rate=0.003,
    save_steps=4,
    zero_stage=0,
    trainer_gpus=1,
    prompt_tokens=4,
    prompt_samples=1,
    checkpoints={"keep_last": 1, "keep_best": False, "keep_every": 8},
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that recorded all that it was asked; of the tests here alone."""
    return make_run(tmp_path_factory.mktemp("trained"), asked=REQUEST.request)


@pytest.mark.parametrize(("nodes", "each"), [(1, 6), (2, 3), (3, 2)])
def test_as_many_processes_are_spread_over_the_nodes(nodes: int, each: int) -> None:
    record = {"config": {"processes": 2, "nodes": 3}}
    asked = Parameters(run_name="one", cluster={"nodes": nodes}, trainer_gpus=8)
    assert with_processes_of(record, asked).trainer_gpus == each


def test_nodes_that_can_not_share_the_processes_are_refused() -> None:
    asked = Parameters(run_name="one", cluster={"nodes": 4})
    with pytest.raises(RequestError, match=r"cluster.nodes does not divide the 6 .*got 4"):
        with_processes_of({"config": {"processes": 6}}, asked)


def invoke(*words: str) -> str:
    said = CliRunner().invoke(cli, [*words])
    assert said.exit_code == 0, f"{said.output}\n{said.exception!r}"
    return said.output


def test_replay_and_blame_run_as_jobs(
    trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Path(trained["volume"])
    with real_cluster(volume.parent, monkeypatch):
        output = invoke("replay", "one", "--from", "9", "--to", "10", "--backend", "kubernetes")
        assert "steps 9 to 10 came out as recorded, to the last bit" in output
        question = {"context": 3, "max_replays": 1}
        code, result = Jobs(volume.name, "one", None).act("blame", given=question)
        assert (code, json.loads(result)["verdict"]) == (0, "not measured")
    assert (volume / "one/replays/steps-9-10.html").exists()
    assert (volume / "one/blame/context-3-worse.json").exists()
    assert not (volume / "one/outcomes/again.json").exists()


def test_forget_as_jobs_makes_the_model_that_was_never_trained_on_the_text(
    trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Path(trained["volume"])
    words = ["forget", "one", "--document", late_document(trained), "--as", "new", "--yes"]
    with real_cluster(volume.parent, monkeypatch):
        invoke(*words, "--backend", "kubernetes")
        # Interrupted, the same command meets its own repetition.
        found = Jobs(volume.name, "one", None).recorded("new")
    assert found["forgets"]["run"] == "one" and found["is_finished"]
    train(volume, "scratch", skip=found["request"]["skip"])
    weights = [volume / name / "final/model.safetensors" for name in ("new", "scratch")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    output = invoke("verify", "new", "--certificate", "--home", str(volume.parent))
    assert "new/certificate.json verifies" in output
