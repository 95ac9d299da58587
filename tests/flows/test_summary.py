"""What `finetune run` prints last names what is there, where it is."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.cli.run_here import summary
from tasks import deployment
from trainer.contract.outcome import Outcome
from trainer.contract.parameters import Parameters

PARAMETERS = Parameters(run_name="run", model="models/m")
RESULT: dict[str, Any] = {"seconds": {"finetune": 61.0}, "base_loss": 3.0, "finetuned_loss": 2.0}


def test_on_a_cluster_no_path_of_this_machine_is_named(tmp_path: Path) -> None:
    told = summary(PARAMETERS, None, RESULT, 70.0)
    assert "run/final on the claim finetune-data" in told
    assert "3.0000 before, 2.0000 after" in told
    assert str(tmp_path) not in told and "/finetune-data" not in told


def test_on_this_machine_what_is_named_is_there(tmp_path: Path) -> None:
    (tmp_path / "finetune-data/run/final").mkdir(parents=True)
    lines = summary(PARAMETERS, tmp_path, RESULT, 70.0).splitlines()
    (place,) = [line.split()[1] for line in lines if line.startswith("model")]
    assert Path(place).is_dir()
    assert not any(line.startswith("samples") for line in lines)


def test_a_deploy_on_a_cluster_takes_as_long_as_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    outcome = Outcome(step="deploy", status="done", seconds=0.2, result={"url": "http://x"})

    def deploy(*given: Any, **more: Any) -> Outcome:
        now[0] += 95.0  # the server starts
        return outcome

    monkeypatch.setattr(deployment, "deploy_on_cluster", deploy)
    monkeypatch.setattr(deployment, "_teller", lambda run: lambda line: None)
    monkeypatch.setattr(deployment.time, "monotonic", lambda: now[0])
    run: Any = SimpleNamespace(parameters=PARAMETERS.model_dump(), digests={}, attempt="a")
    place: Any = None
    assert deployment._on_cluster(run, place) == dataclasses.replace(outcome, seconds=95.0)
