"""`finetune doctor`: one line for each thing, also where it is missing."""

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import doctor as module
from flows.cli.main import cli
from infra.choose_backend import HOME_VARIABLE
from trainer.devices import Device

NAMES = "machine GPUs torch bf16 compilers memory disk hub versions extras".split()


@pytest.fixture(autouse=True)
def home_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, "")  # --home sets it, for this process


def lines(home: Path) -> dict[str, str]:
    done = CliRunner().invoke(cli, ["doctor", "--home", str(home)])
    assert done.exit_code == 0, done.output
    split = [line.split(maxsplit=1) for line in done.output.splitlines()]
    assert [name for name, _ in split] == NAMES
    return {name: text for name, text in split}  # noqa: C416 - each has two parts


def test_a_machine_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        address = f"http://127.0.0.1:{hub.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        said = lines(tmp_path)
    assert said["GPUs"].startswith("none that torch can use")
    assert "built for CPUs alone" in said["torch"]
    assert said["hub"] == "127.0.0.1 answers; no HF_TOKEN: public models only"
    assert "MISSING" not in said["versions"]
    assert str(tmp_path) in said["disk"]
    assert "does not answer" in lines(tmp_path)["hub"]


def test_a_machine_with_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = (Device("NVIDIA A40", 44.4, True), Device("Tesla V100", 15.8, False))
    monkeypatch.setattr(module, "devices", lambda: cards)
    monkeypatch.setattr(module, "torch_build", lambda: "CUDA 13.0")
    monkeypatch.setattr(module.shutil, "which", lambda name, path: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = lines(tmp_path)
    assert said["GPUs"].startswith("2: NVIDIA A40 (44.4 GiB), Tesla V100 (15.8 GiB)")
    assert said["bf16"] == "no: training uses fp16"
    assert "nvcc MISSING (for DeepSpeed's fused Adam)" in said["compilers"]
    assert said["hub"].startswith("HF_HUB_OFFLINE is set")
