"""What compiles code, as other choices of kernels do, must not change a result.

Run: `pytest tests/training/compiling.py`. Not part of the other tests: torch.compile and
DeepSpeed's CPU Adam take a minute or more until a machine has their code.
"""

from pathlib import Path

import pytest

from tests.training.test_kernels import check


@pytest.mark.timeout(1800)
def test_compiled_layers(tmp_path: Path) -> None:
    check(tmp_path, 1e-4, {"kernels": {"compile": True}})


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("processes", "stage"), [(1, 1), (2, 3)])
def test_adam_in_host_memory(tmp_path: Path, processes: int, stage: int) -> None:
    split = {"processes": processes, "gradients": 2 // processes, "zero_stage": stage}
    check(tmp_path, 1e-4, {"optimizer": {"offload": "always"}}, **split)
