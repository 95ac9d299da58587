"""The memory model against the measured peak, and the choices it makes."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.file_baton import FileBaton
from transformers import AutoModelForCausalLM

from tests.training.forking import Strike, ended_with, log_of, run_step
from tests.training.memory_peaks import BATCH, CONTEXT, KINDS, Kind, configuration
from tests.training.volume import make_config, make_volume
from trainer.contract.errors import DoesNotFitError, RequestError
from trainer.contract.step_configs import FinetuneConfig
from trainer.contract.topics import LoraConfig, OptimizerConfig
from trainer.planning.lora_counts import adapter_parameters
from trainer.planning.memory_choice import USABLE_SHARE
from trainer.planning.memory_model import CONTEXT_BYTES, Setting, gpu_bytes
from trainer.planning.model_shape import ModelShape
from trainer.training import step
from trainer.training.engine.adam import compiling_alone
from trainer.training.engine.adapters import add_adapters
from trainer.training.engine.loss import CausalLoss
from trainer.training.limits import sizing as sizing_module
from trainer.training.limits.sizing import Sizing, confirmed, fit


@pytest.fixture(scope="module")
def peaks() -> dict[Kind, int]:
    # In a process of its own: what tests before this one left in memory would be used first.
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.memory_peaks"], capture_output=True, check=True
    )
    return dict(zip(KINDS, map(int, done.stdout.split()), strict=True))


@pytest.mark.parametrize(("architecture", "again"), KINDS)
def test_the_model_is_within_15_percent_of_the_measured_peak(
    peaks: dict[Kind, int], architecture: str, again: int | None
) -> None:
    setting = Setting(
        context=CONTEXT,
        batch_size=BATCH,
        precision="fp32",
        checkpointed_layers=again,
        on_gpu=False,
    )
    shape = ModelShape.from_config(configuration(architecture).to_dict())
    assert gpu_bytes(shape, setting) == pytest.approx(peaks[architecture, again], rel=0.15)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    configuration("gptj").save_pretrained(folder)
    return folder


def sizing(folder: Path, mib: float, **changes: Any) -> Sizing:
    """What is chosen for a GPU that has so many MiB to plan with beside what CUDA takes."""
    config = FinetuneConfig(volume="v", model="m", tokens="t", **changes)
    return fit(
        config, folder, CONTEXT, 10**6, int((mib * 2**20 + CONTEXT_BYTES) / USABLE_SHARE), "bf16"
    )


def test_the_least_costly_way_that_fits_is_chosen(folder: Path) -> None:
    found = []
    for mib in range(40, 1400, 20):
        try:
            found.append(sizing(folder, mib))
        except RequestError:
            assert not found
    assert found[0].batch_size < 4
    assert found[-1].batch_size == 32 and found[-1].checkpointed_layers == 0
    some = [f.checkpointed_layers for f in found if f.batch_size == 32]
    assert some == sorted(some, reverse=True) and len(set(some)) > 2


def test_what_the_user_says_is_kept(folder: Path) -> None:
    assert sizing(folder, 1400, batch_size=3).batch_size == 3
    assert "layers computed again" in sizing(folder, 130, batch_size=8).reason
    offloaded = sizing(folder, 1400, optimizer=OptimizerConfig(offload="always"))
    assert offloaded.offload and "the optimizer in host memory" in offloaded.reason
    with pytest.raises(RequestError, match="Take a smaller batch_size, a shorter context"):
        sizing(folder, 40, batch_size=1)


def test_the_divisor_leaves_room(folder: Path) -> None:
    assert sizing(folder, 1400, batch_size_divisor=2.0).batch_size == 16


@pytest.mark.parametrize("architecture", ["gptj", "neox", "llama"])
@pytest.mark.parametrize("targets", [[], ["fc_in", "dense_h_to_4h", "gate_proj"]])
def test_adapters_are_counted_as_peft_makes_them(architecture: str, targets: list[str]) -> None:
    config = configuration(architecture)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        known = [t for t in targets if any(t in name for name, _ in model.named_modules())]
        add_adapters(model, LoraConfig(rank=4, target_modules=known), "the model", seed=0)
    made = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (
        adapter_parameters(
            ModelShape.from_config(config.to_dict()), {"rank": 4, "target_modules": known}
        )
        == made
    )


def full_memory(monkeypatch: pytest.MonkeyPatch, most: int, checkpointing: bool = True) -> None:
    """Have steps of more than `most` contexts at a time run out of memory, as on a GPU."""
    whole = CausalLoss.forward

    def forward(self: CausalLoss, ids: torch.Tensor, *more: Any) -> torch.Tensor:
        saves = getattr(self.model, "is_gradient_checkpointing", False)
        if len(ids) > most or (checkpointing and not saves):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(self, ids, *more)

    monkeypatch.setattr(CausalLoss, "forward", forward)
    monkeypatch.setattr(step, "has_gpu", lambda: True)
    monkeypatch.setattr(sizing_module, "has_gpu", lambda: True)
    monkeypatch.setattr(sizing_module, "_gpu", lambda config: (4 * 2**30, "fp32"))


@pytest.mark.parametrize("processes", [1, 2])
def test_out_of_memory_steps_down_until_a_real_step_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    # 512 contexts would fit by the memory model. For three steps no batch becomes smaller.
    changes = {"batch_size": -1, "batch_size_divisor": 128.0, "processes": processes}
    config = make_config(make_volume(tmp_path), schedule={"max_steps": 3}, **changes)
    with monkeypatch.context() as patch:
        full_memory(patch, most=2, checkpointing=False)
        strike = Strike("trainer.training.loop:Loop._train", 2, signum=signal.SIGTERM)
        assert run_step("finetune", config, strike) == 143, log_of(config)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["sizing"]["batch_size"] == 2
    assert "a real step fits at batch_size 2" in log_of(config)
    # A resumed run keeps the choice, on a machine of another kind too.
    assert run_step("finetune", config) == 0, log_of(config)
    assert ended_with(config)["result"]["batch_size"] == 2


def test_where_one_context_is_too_much_layers_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"batch_size": -1, "batch_size_divisor": 256.0, "schedule": {"max_steps": 1}}
    config = make_config(make_volume(tmp_path), epochs=1, **changes)
    full_memory(monkeypatch, most=1)
    assert run_step("finetune", config) == 0, log_of(config)
    assert "a real step fits at batch_size 1 with all layers computed again" in log_of(config)


def test_what_fits_in_no_way_is_refused() -> None:
    def attempt(sizing: Sizing) -> float:
        tried.append((sizing.batch_size, sizing.checkpointed_layers, sizing.offload))
        raise DoesNotFitError("a step does not fit")

    tried: list[tuple[int, int | None, bool]] = []
    with pytest.raises(RequestError, match="does not fit"):
        confirmed(FinetuneConfig(volume="v", model="m", tokens="t"), Sizing(batch_size=4), attempt)
    assert tried[:3] == [(4, 0, False), (2, 0, False), (1, 0, False)]
    assert tried[3:] == [(1, None, False), (1, None, True)]


def test_out_of_memory_in_training_says_what_to_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(make_volume(tmp_path))
    full_memory(monkeypatch, most=1)
    monkeypatch.setattr(step, "_attempt", lambda *tried: None)  # had room, which others took since
    assert run_step("finetune", config) == 1
    assert "Take a smaller batch_size" in ended_with(config)["message"]


def test_a_build_that_was_killed_does_not_stop_the_next(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()  # as torch leaves it
    baton = FileBaton(str(tmp_path / "lock"))
    with compiling_alone(tmp_path):
        assert baton.try_acquire()
