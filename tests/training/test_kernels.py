"""How operations are carried out and where Adam is: choices that must not change a result.

Those that compile code take minutes the first time: `pytest tests/training/compiling.py`.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.training.forking import Strike, ended_with, log_of, run_step
from tests.training.test_resume import ENGINE, assert_same, unbroken
from tests.training.volume import make_config, make_volume, read_lines


def losses(config: dict[str, Any]) -> list[float]:
    lines = read_lines(Path(config["volume"]) / "run" / "metrics.jsonl")
    return [line.get("loss", line.get("eval_loss")) for line in lines]


def check(root: Path, within: float, asked: dict[str, Any], **shared: Any) -> None:
    """Train as asked, and so that it was killed once, and the plain way; compare."""
    shared = {"dropout": 0.0, "epochs": 1, "request": {}, **shared}
    plain = unbroken(root / "plain", **shared)
    whole, broken = (unbroken(root / name, **shared, **asked) for name in ("whole", "broken"))
    for config in (plain, whole):
        assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    assert losses(whole) == pytest.approx(losses(plain), abs=within)
    assert run_step("finetune", broken, Strike(f"{ENGINE}:Engine.step", 6)) == -9
    assert run_step("finetune", broken) == 0, log_of(broken)[-3000:]
    assert_same(broken, whole)


@pytest.mark.parametrize(("processes", "stage"), [(1, 0), (2, 2)])
def test_adam_in_8_bits_trains_like_the_plain_one_and_resumes_exactly(
    tmp_path: Path, processes: int, stage: int
) -> None:
    split = {"processes": processes, "gradients": 2 // processes, "zero_stage": stage}
    check(tmp_path, 0.05, {"optimizer": {"adam_bits": 8}}, **split)


REFUSED = [
    ({"optimizer": {"adam_bits": 8, "offload": "always"}}, "optimizer.adam_bits"),
    ({"kernels": {"liger": True}}, "kernels.liger needs a GPU"),
    ({"kernels": {"compile": True}, "processes": 2, "zero_stage": 3}, "Take zero_stage 2"),
]


@pytest.mark.parametrize(("asked", "said"), REFUSED)
def test_what_this_machine_cannot_do_is_refused_by_name(
    tmp_path: Path, asked: dict[str, Any], said: str
) -> None:
    config = make_config(make_volume(tmp_path), **asked)
    assert run_step("finetune", config) == 78
    assert said in ended_with(config)["message"]
