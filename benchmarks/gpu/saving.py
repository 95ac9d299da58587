"""How long training stands still for a checkpoint of a large model, and until it is sealed."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.scale import (
    Scale,
    make_engine,
    make_model,
    options,
    random_ids,
    wait_for_device,
)
from trainer.contract.topics import CheckpointsConfig
from trainer.training.engine.engine import Engine
from trainer.training.engine.partitions import bring_up_to_date, slices_to_save
from trainer.training.save.saving import Saver, slices_bytes


def stall_and_seal(scale: Scale, rounds: int = 3) -> dict[str, Any]:
    """Seconds that a save takes of the training's time, twice: until it returns, and in all.

    Between two saves are steps, as in a run: what a copy that is running takes of the next
    step is part of the stall.
    """
    engine = make_engine(
        make_model(scale.config(**scale.middle()), scale.precision), options(scale, batch_size=1)
    )
    ids = random_ids(scale, 1)
    with tempfile.TemporaryDirectory() as name:
        slices = slices_to_save(engine)
        saver = Saver(Path(name), slices, 0, 1, CheckpointsConfig(keep_last=1))
        plain, with_save, returned, sealed = [], [], [], []
        for number in range(scale.warm_steps + rounds):
            plain.append(_seconds(engine, ids, saver))
            wait_for_device()
            began = time.perf_counter()
            bring_up_to_date(engine)
            saver.save(number, {"step": number})
            returned.append(time.perf_counter() - began)
            with_save.append(_seconds(engine, ids, saver) + returned[-1])
            saver.wait()
            sealed.append(saver.seconds)
    warm = scale.warm_steps
    return {
        "gib": slices_bytes(slices) / 2**30,
        "returned_seconds": min(returned[warm:]),
        "stall_seconds": max(0.0, min(with_save[warm:]) - min(plain[warm:])),
        "seal_seconds": min(sealed[warm:]),
        "pinned": torch.cuda.is_available(),
    }


def _seconds(engine: Engine, ids: torch.Tensor, saver: Saver) -> float:
    wait_for_device()
    began = time.perf_counter()
    loss = engine.loss(ids, torch.full((ids.shape[0],), ids.shape[1]))
    engine.backward(loss / ids.numel())
    saver.let_change()
    engine.step(1e-5)
    wait_for_device()
    return time.perf_counter() - began
