"""What this machine computes with is decided in one place, from what torch sees."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import devices
from trainer.planning.catalogue import gpu_of_device, load_gpus
from trainer.planning.setting_rules import process_problems


@pytest.fixture
def fresh() -> Iterator[None]:
    devices.devices.cache_clear()
    yield
    devices.devices.cache_clear()


def as_if_built_for_cuda(folder: Path, monkeypatch: pytest.MonkeyPatch, cards: list[str]) -> None:
    """A torch of the name that says what a build for CUDA says, of these cards."""
    (folder / "torch").mkdir()
    (folder / "torch/version.py").write_text("cuda = '13.0'\nhip = None\n")
    (folder / "torch/__init__.py").write_text(
        f"""from types import SimpleNamespace as N
cards = {cards!r}
cuda = N(
    device_count=lambda: len(cards), is_bf16_supported=lambda: True,
    get_device_properties=lambda n: N(name=cards[n], total_memory=80 << 30),
)
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def test_a_torch_for_cpus_answers_without_being_loaded(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices.subprocess, "run", lambda *_, **__: pytest.fail("torch was asked"))
    assert devices.torch_build() == ""
    assert not devices.has_gpu()


def test_a_torch_for_gpus_is_asked_for_what_it_sees(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_built_for_cuda(tmp_path, monkeypatch, ["NVIDIA H100 80GB HBM3"] * 2)
    assert devices.torch_build() == "CUDA 13.0"
    assert devices.devices() == (devices.Device("NVIDIA H100 80GB HBM3", 80.0, True),) * 2


def test_a_driver_that_does_not_answer_is_no_gpu(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_built_for_cuda(tmp_path, monkeypatch, [])
    (tmp_path / "torch/__init__.py").write_text("raise OSError('libcuda.so.1')")
    assert not devices.has_gpu()


@pytest.mark.parametrize(
    ("name", "memory", "label"),
    [
        ("NVIDIA A40", 44.4, "A40"),
        ("NVIDIA A100-SXM4-80GB", 79.1, "A100_NVLINK_80GB"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "A100_PCIE_40GB"),
        ("NVIDIA H200", 139.8, "H200"),
        ("NVIDIA RTX A6000", 47.4, "RTX_A6000"),
        ("NVIDIA RTX A5000", 23.6, "RTX_A5000"),
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX_A5000"),  # in no catalogue: the nearest in memory
    ],
)
def test_a_card_has_its_own_memory_and_the_rates_of_its_class(
    name: str, memory: float, label: str
) -> None:
    catalogue = load_gpus()
    gpu = gpu_of_device(catalogue, name, memory, bf16=True)
    assert (gpu.memory_gib, gpu.peak_tflops) == (memory, catalogue[label].peak_tflops)
    assert gpu.bandwidth_gbs == catalogue[label].bandwidth_gbs


@pytest.mark.parametrize(
    ("processes", "gpus", "cores", "said"),
    [
        (8, 1, 64, "It has 1 GPU. Set trainer_gpus=1 or less"),
        (9, 8, 64, "It has 8 GPUs. Set trainer_gpus=8 or less"),
        (8, 0, 2, "the CPU, which has 2 cores. Set trainer_gpus=2 or less"),
        (8, 8, 2, ""),
        (2, 0, 2, ""),
    ],
)
def test_more_processes_than_devices_are_refused(
    processes: int, gpus: int, cores: int, said: str
) -> None:
    assert said in json.dumps(list(process_problems(processes, gpus, cores)))
    assert bool(said) == bool(list(process_problems(processes, gpus, cores)))
