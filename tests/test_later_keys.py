"""A key that a topic got later changes no key of work and no request, where it is left alone."""

from pathlib import Path

import pytest

from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import RunFolder
from trainer.contract.work_key import differing, work_key

BEFORE = {"kernels": {"compile": True, "liger": False}, "epochs": 2}
DEFAULT = {"kernels": {"compile": True, "liger": False, "deterministic": True}, "epochs": 2}
CHANGED = {"kernels": {"compile": True, "liger": False, "deterministic": False}, "epochs": 2}


def test_keys_of_work_are_those_of_before() -> None:
    before, default, changed = (
        {**config, "request": config} for config in (BEFORE, DEFAULT, CHANGED)
    )
    assert work_key("finetune", default) == work_key("finetune", before)
    assert work_key("finetune", changed) != work_key("finetune", before)
    assert differing("finetune", before, default) == []
    assert differing("finetune", before, changed) == ["kernels"]


def test_a_run_of_before_goes_on_and_one_with_another_value_does_not(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "run")
    run.admit(BEFORE, "", {}, [])
    run.refuse_other_request(DEFAULT)
    with pytest.raises(RequestError, match="kernels was"):
        run.refuse_other_request(CHANGED)


def test_a_request_that_says_nothing_is_that_of_before() -> None:
    assert "deterministic" not in Parameters(run_name="x").request["kernels"]
