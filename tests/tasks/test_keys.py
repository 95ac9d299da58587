"""Keys for steps: found by name, never written anywhere."""

import dataclasses

import pytest

from tasks.keys import tracking_key
from tasks.specs import step_spec
from trainer.contract.parameters import Parameters


def test_a_key_is_named_to_the_cluster_and_handed_to_a_local_step_unseen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRACKING", "the key itself")
    parameters = Parameters(run_name="run", wandb_key="TRACKING").model_dump()
    spec = step_spec(parameters, "finetune", {"wandb_key": "TRACKING"})
    assert spec.secrets == ("TRACKING",) and not spec.environment
    assert step_spec(parameters, "evaluate", {}).secrets == ()
    handed = dataclasses.replace(spec, environment=tracking_key("TRACKING"))
    assert handed.environment == {"WANDB_API_KEY": "the key itself"}
    assert "the key itself" not in repr(handed)
