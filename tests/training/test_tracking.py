"""Where metrics go beside metrics.jsonl, and what is measured of time, memory and operations."""

import json
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from wandb.proto.wandb_internal_pb2 import Record

from tests.fetch.conftest import Step, step  # noqa: F401 - fixture
from tests.training.forking import Strike, log_of, run_step
from tests.training.volume import make_config, make_model, make_volume, read_lines
from trainer.contract.events import parse_event
from trainer.planning.catalogue import load_gpus
from trainer.planning.model_shape import ModelShape
from trainer.planning.operations import peak_flops, step_flops
from trainer.training.record.timing import RECENT, Pace, times_left

ENGINE = "trainer.training.engine.engine"


def tracked_lines(run_folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Step and values of each line that an offline run of Weights & Biases holds."""
    [path] = run_folder.glob("wandb/offline-run-*/run-*.wandb")
    found = []
    for data in records_of(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            values = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in items}
            found.append((record.history.step.num, values))
    return found


def records_of(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after seven bytes of its own."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that was killed, stopped and ended, tracked by the real client without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", "a" * 40)
        config = make_config(make_volume(tmp_path_factory.mktemp("tracked")))
        config |= {"wandb_key": "wandb-key", "project_id": "westerns"}
        assert run_step("finetune", config, Strike(f"{ENGINE}:Engine.step", 7)) == -signal.SIGKILL
        strike = Strike(f"{ENGINE}:Engine.step", 3, signum=signal.SIGTERM)
        assert run_step("finetune", config, strike) == 143
        assert run_step("finetune", config) == 0, log_of(config)
    return config


def test_weights_and_biases_has_each_line_once_after_going_on(tracked: dict[str, Any]) -> None:
    volume = Path(tracked["volume"])
    lines = read_lines(volume / "run" / "metrics.jsonl")
    found = tracked_lines(volume / "logs" / "run")
    assert [number for number, _ in found] == list(range(len(lines)))
    for (_, values), line in zip(found, lines, strict=True):
        assert {name: values[name] for name in line} == line


def test_the_key_is_in_no_file_of_the_volume(tracked: dict[str, Any]) -> None:
    files = [path for path in Path(tracked["volume"]).rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if b"a" * 40 in path.read_bytes()]


def test_a_line_says_what_was_measured(tracked: dict[str, Any]) -> None:
    lines = read_lines(Path(tracked["volume"]) / "run" / "metrics.jsonl")
    for line in (line for line in lines if "loss" in line):
        assert 0 <= line["data_wait_share"] <= 1 and 0 <= line["checkpoint_wait_share"] <= 1
        assert 0.05 < line["host_memory_gib"] < 8
        assert line["flops_per_second"] > 0
        assert "gpu_memory_gib" not in line and "peak_share" not in line  # a CPU's is not known


def test_time_left_falls_to_nothing(tracked: dict[str, Any]) -> None:
    events = [e for e in map(parse_event, log_of(tracked).splitlines()) if e]
    left = [e.fields["remaining_seconds"] for e in events if e.kind == "progress"]
    assert left[-1] == 0 and all(seconds > 0 for seconds in left[:-1])


def test_time_left_counts_validation_and_checkpoints() -> None:
    pace = Pace()
    pace.add("step", 2.0)
    pace.add("step", 4.0)
    pace.add("checkpoint", 1.0)
    left = {"step": 10, "checkpoint": 3, "validation": 2}
    assert pace.remaining_seconds(left, {"validation": 5.0}) == 10 * 3 + 3 * 1 + 2 * 5
    pace.add("validation", 7.0)
    assert pace.remaining_seconds(left, {"validation": 5.0}) == 10 * 3 + 3 * 1 + 2 * 7


def test_time_left_forgets_how_busy_the_machine_was_an_hour_ago() -> None:
    pace = Pace()
    for seconds in [30.0] * 300 + [1.0] * RECENT:
        pace.add("step", seconds)
    assert pace.remaining_seconds({"step": 50}, {}, recent=True) == 50
    assert pace.remaining_seconds({"step": 50}, {}) > 1000  # by which a budget decides


@pytest.mark.parametrize("total", [1, 12, 13])
@pytest.mark.parametrize("every", [0, 1, 4, 50])
def test_times_left_is_how_often_it_comes(every: int, total: int) -> None:
    for done in range(total + 1):
        steps = range(done + 1, total + 1)
        due = [s for s in steps if s == total or (every and s % every == 0)]
        assert times_left(every, done, total) == len(due)


@pytest.mark.parametrize("architecture", ["neox", "llama"])
def test_operations_are_those_that_torch_counts(architecture: str) -> None:
    model = make_model(architecture)
    model.set_attn_implementation("eager")  # the counter does not know fused attention on a CPU
    ids = torch.arange(1, 17)[None].repeat(3, 1)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    shape = ModelShape.from_config(model.config.to_dict())
    ours = step_flops(shape, np.full(3, 16))
    assert ours == counter.get_total_flops()


def test_frozen_weights_save_their_gradients() -> None:
    shape = ModelShape.from_config(make_model("gptj").config.to_dict())
    whole, frozen = (step_flops(shape, np.full(1, 1), frozen=f) for f in (False, True))
    assert frozen == pytest.approx(whole * 4 / 6, rel=0.01)


def test_peaks_are_those_of_the_catalogue() -> None:
    names = {  # of the devices, as CUDA has them
        "A40": "NVIDIA A40",
        "L40": "NVIDIA L40",
        "L40S": "NVIDIA L40S",
        "RTX_A4000": "NVIDIA RTX A4000",
        "RTX_A5000": "NVIDIA RTX A5000",
        "RTX_A6000": "NVIDIA RTX A6000",
        "A100_PCIE_40GB": "NVIDIA A100-PCIE-40GB",
        "A100_PCIE_80GB": "NVIDIA A100 80GB PCIe",
        "A100_NVLINK": "NVIDIA A100-SXM4-40GB",
        "A100_NVLINK_80GB": "NVIDIA A100-SXM4-80GB",
        "H100_PCIE": "NVIDIA H100 PCIe",
        "H100_NVLINK_80GB": "NVIDIA H100 80GB HBM3",
        "H200": "NVIDIA H200",
        "B200": "NVIDIA B200",
        "Tesla_V100_PCIE": "Tesla V100-PCIE-16GB",
        "Tesla_V100_NVLINK": "Tesla V100-SXM2-16GB",
        "Quadro_RTX_5000": "Quadro RTX 5000",
        "Quadro_RTX_4000": "Quadro RTX 4000",
    }
    for label, gpu in load_gpus().items():
        assert peak_flops(names[label]) == gpu.peak_tflops * 1e12, label
    assert peak_flops("A card of tomorrow") is None


def test_a_key_without_wandb_is_refused_by_name(step: Step) -> None:  # noqa: F811
    # What a machine without the package has, told to the step's own interpreter as it starts.
    hidden = 'import sys\nsys.modules["wandb"] = None\n'
    (step.folder / "sitecustomize.py").write_text(hidden)
    assert step.run(wandb_key="wandb-key").exit_code == 0
    step.environment["PYTHONPATH"] = str(step.folder)
    message = step.refused(wandb_key="wandb-key")
    assert "wandb_key needs the package wandb, which is not installed" in message
    assert "(got 'wandb-key')" in message and "finetune-pipeline[tracking]" in message
    assert step.run().exit_code == 0
