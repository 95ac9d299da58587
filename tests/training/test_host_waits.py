"""How often the host asks the device for a number in a step: on a GPU it waits each time."""

from typing import Any

import pytest
import torch
from deepspeed.runtime.zero import stage_1_and_2
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.forking import run_forked
from tests.training.volume import make_model
from trainer.training.engine import engine as engine_module
from trainer.training.engine.engine import Engine, EngineOptions

# A number or a shape that the host wants, which only the device knows.
ASKS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.on_host: set[int] = set()  # where tensors are that were brought there

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = func.name().split(".")[0] in ASKS and args[0].data_ptr() not in self.on_host
        if asks or _by_mask(func, args):
            self.asked.append(func.name())
        return func(*args, **(kwargs or {}))


def _by_mask(func: Any, args: Any) -> bool:
    """Indexing by booleans, whose result has a shape that only the device knows."""
    if func.name().split(".")[0] not in ("aten::index", "aten::index_put_"):
        return False
    return any(t is not None and t.dtype == torch.bool for t in args[1])


def step_of(engine: Engine) -> Any:
    losses = []
    for _ in range(2):
        loss = engine.loss(torch.ones((2, 16), dtype=torch.int64), torch.tensor([16, 9]))
        engine.backward(loss / 46)
        losses.append(loss.detach())
    return engine.step(1e-3, losses)


def note_result(patch: pytest.MonkeyPatch, owner: Any, name: str, counting: Counting) -> None:
    """What the method answers with is in host memory."""
    original = getattr(owner, name)

    def noted(*given: Any, **options: Any) -> Any:
        found = original(*given, **options)
        counting.on_host.add(found.data_ptr())
        return found

    patch.setattr(owner, name, noted)


def forgive_what_asks_the_host(patch: pytest.MonkeyPatch, counting: Counting) -> None:
    """DeepSpeed's look at a norm that is in host memory costs nothing."""
    original = stage_1_and_2.is_invalid_grad_norm

    def looked(norm: Any) -> bool:
        before = len(counting.asked)
        found = original(norm)
        if norm.data_ptr() in counting.on_host:
            del counting.asked[before:]
        return found

    patch.setattr(stage_1_and_2, "is_invalid_grad_norm", looked)


def counted(precision: Any, stage: int) -> tuple[list[str], int]:
    """What the device was asked for in a step, and how often `fetch` was called."""
    engine = Engine(
        make_model("gptj"),
        EngineOptions(rank=0, world=1, batch_size=2, zero_stage=stage, precision=precision),
    )
    step_of(engine)  # Adam makes its moments
    fetched = 0
    original_fetch, original_places = engine_module.fetch, engine_module.trained_places

    def fetch(*values: Any) -> list[float]:
        nonlocal fetched
        fetched += 1
        return original_fetch(*values)

    with pytest.MonkeyPatch.context() as patch, Counting() as counting:
        patch.setattr(engine_module, "fetch", fetch)

        def places(*given: Any) -> Any:  # of lengths in host memory: nobody waits
            before = len(counting.asked)
            found = original_places(*given)
            del counting.asked[before:]
            return found

        patch.setattr(engine_module, "trained_places", places)
        if stage:
            note_result(patch, engine.zero, "scaled_global_norm", counting)
            note_result(patch, engine._engine, "get_global_grad_norm", counting)
            forgive_what_asks_the_host(patch, counting)
        step_of(engine)
    return counting.asked, fetched


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("bf16", 1)])
def test_a_step_asks_the_device_once(tmp_path: Any, precision: str, stage: int) -> None:
    def work() -> int:
        asked, fetched = counted(precision, stage)
        print(asked, fetched)
        return int(bool(asked) or fetched != 1)

    code, said = run_forked(tmp_path, work)
    assert code == 0, said
