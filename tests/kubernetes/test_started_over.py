"""After a run of the flow that failed late, the next one takes what still stands, and no more."""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.kubernetes_backend.jobs import KubernetesBackend
from tasks import artifacts, steps
from tasks.following import claimed, follow_step
from tasks.run_step import Run
from tests.kubernetes.conftest import CLAIM, LOOK_SECONDS, cluster_of_stand_ins
from trainer.contract.errors import RequestError, StepError
from trainer.contract.outcome import Outcome
from trainer.contract.parameters import Parameters

RunFlow = Callable[..., dict[str, Outcome]]


@pytest.fixture
def run_flow(tmp_path: Path, volume: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The steps of the flow, by its own tasks, on a cluster; then deploy fails, if asked."""

    def follow(run: Run, spec: Any) -> Outcome:
        outcome = follow_step(run.backend, spec, [])
        run.outcomes.append(outcome)
        return outcome

    monkeypatch.setattr(steps, "run_step", follow)
    for name in ("show_tokens", "show_curves"):
        monkeypatch.setattr(artifacts, name, lambda *given: None)
    monkeypatch.setattr(steps, "ended", lambda outcome: outcome)

    def flow(attempt: str, *, fails: bool = False, **given: Any) -> dict[str, Outcome]:
        parameters = Parameters(run_name="run", model="models/m", **given)
        run = Run(
            parameters=parameters.model_dump(),
            request=parameters.request,
            attempt=attempt,
            backend=KubernetesBackend(look_seconds=LOOK_SECONDS, volumes=tmp_path),
        )
        with claimed(run.backend, CLAIM, "run"):
            fetched = steps.fetch.fn(run)
            tokenized = steps.tokenize.fn(run, fetched)
            steps.train.fn(run, fetched, tokenized)
            steps.evaluate.fn(run, fetched, tokenized)
            if fails:
                raise StepError("the server of the model is refused")
        return {outcome.step: outcome for outcome in run.outcomes}

    with cluster_of_stand_ins(tmp_path) as cluster:
        cluster.node.entrypoint = [sys.executable, "-m", "tests.kubernetes.stand_in_run"]
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        yield flow


def done(volume: Path) -> list[str]:
    """Steps that were started, in their order."""
    return (volume / "done").read_text().split()


@pytest.mark.parametrize("learn_rate", [1e-3, 5e-5])
def test_a_model_made_anew_is_evaluated_anew(
    run_flow: RunFlow, volume: Path, learn_rate: float
) -> None:
    with pytest.raises(StepError):
        run_flow("flow-run-1", fails=True, learn_rate=5e-5)
    outcomes = run_flow("flow-run-2", no_resume=True, learn_rate=learn_rate)
    assert outcomes["evaluate"].result["loss"] == learn_rate
    assert done(volume) == 2 * ["fetch", "tokenize", "finetune", "evaluate"]
    assert (volume / "run/evaluation.json").exists()  # what deploy holds the server to


def test_what_was_trained_and_evaluated_before_a_failure_is_taken(
    run_flow: RunFlow, volume: Path
) -> None:
    with pytest.raises(StepError):
        run_flow("flow-run-1", fails=True)
    outcomes = run_flow("flow-run-2")
    assert outcomes["evaluate"].result["loss"] == 5e-5
    assert done(volume)[4:] == ["fetch", "tokenize"]


@pytest.mark.parametrize(
    ("deleted", "again"),
    [("evaluation.json", ["evaluate"]), ("final", ["finetune"])],
)
def test_what_is_deleted_from_the_volume_is_made_again(
    run_flow: RunFlow, volume: Path, deleted: str, again: list[str]
) -> None:
    with pytest.raises(StepError):
        run_flow("flow-run-1", fails=True)
    path = volume / "run" / deleted
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_flow("flow-run-2")
    assert done(volume)[4:] == ["fetch", "tokenize", *again]


def test_starting_over_is_refused_while_the_training_that_is_to_go_runs(
    run_flow: RunFlow, volume: Path
) -> None:
    with pytest.raises(StepError):
        run_flow("flow-run-1", fails=True)
    (volume / "run/final").rename(volume / "run/elsewhere")
    (volume / "hold").touch()
    running = threading.Thread(target=run_flow, args=("flow-run-2",))
    running.start()
    while done(volume)[-1] != "finetune" or len(done(volume)) == 4:
        time.sleep(0.05)
    with pytest.raises(RequestError, match="no_resume") as refused:
        run_flow("flow-run-3", no_resume=True)
    (volume / "hold").unlink()
    running.join()
    assert "finetune stop run" in str(refused.value)
