"""`finetune doctor`: what this machine offers and what is missing. Loads no torch."""

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import urllib.parse
from pathlib import Path

import click

from flows.cli.options import home_option
from trainer.devices import available_cores, devices, torch_build

GIB = 1 << 30
HUB = "https://huggingface.co"
ANSWER_SECONDS = 3.0
PACKAGES = ("torch", "transformers", "deepspeed", "prefect", "peft")
EXTRAS = (("kubernetes_asyncio", "kubernetes"), ("s3fs", "s3"), ("liger-kernel", "gpu"))


@click.command()
@home_option
def doctor(home: Path) -> None:
    """Say what this machine offers and what is missing, in ten lines.

    Exit code 0, also where something is missing: each line says what it is needed for.
    """
    rows = [
        ("machine", _machine()),
        ("GPUs", _gpus()),
        ("torch", _torch()),
        ("bf16", _bf16()),
        ("compilers", _compilers()),
        ("memory", f"{_memory_gib():.1f} GiB"),
        ("disk", _disk(home)),
        ("hub", _hub()),
        ("versions", ", ".join(f"{name} {_version(name) or 'MISSING'}" for name in PACKAGES)),
        ("extras", _extras()),
    ]
    for name, text in rows:
        click.echo(f"{name:<10} {text}")


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {available_cores()} cores free to use"


def _gpus() -> str:
    found = devices()
    if not found:
        return "none that torch can use: training and serving run on the CPU"
    names = sorted({f"{device.name} ({device.memory_gib:.1f} GiB)" for device in found})
    return f"{len(found)}: {', '.join(names)}; trainer_gpus={len(found)} trains on all"


def _torch() -> str:
    version = _version("torch")
    if not version:
        return "MISSING: steps need it. Run make setup"
    return f"{version}, built for {torch_build() or 'CPUs alone'}" + _card_without_build()


def _card_without_build() -> str:
    """A warning where a card's driver is here and torch is built for CPUs."""
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    if torch_build() or not any(map(os.path.exists, drivers)):
        return ""
    return "; a GPU's driver is here: install a torch build for it (README, On a machine with GPUs)"


def _bf16() -> str:
    found = devices()
    if not found:
        return "yes, slower than fp32 on most CPUs; fp32 is the default here"
    return "yes" if all(device.bf16 for device in found) else "no: training uses fp16"


def _compilers() -> str:
    tools = {"g++": "DeepSpeed's CPU Adam (offload)", "ninja": "the same"}
    if torch_build():
        tools["nvcc" if "CUDA" in torch_build() else "hipcc"] = "DeepSpeed's fused Adam"
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return ", ".join(
        name if shutil.which(name, path=here) else f"{name} MISSING (for {use})"
        for name, use in tools.items()
    )


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB


def _disk(home: Path) -> str:
    place = home if home.exists() else Path()
    free = shutil.disk_usage(place).free / GIB
    writable = "" if os.access(place, os.W_OK) else ", which can't be written"
    return f"{free:.1f} GiB free in {place.resolve()}{writable}"


def _hub() -> str:
    address = os.environ.get("HF_ENDPOINT") or HUB
    found = urllib.parse.urlsplit(address)
    port = found.port or (443 if found.scheme == "https" else 80)
    token = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN: public models only"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set: models have to be on the volume"
    try:
        socket.create_connection((found.hostname or "", port), ANSWER_SECONDS).close()
    except OSError as error:
        return f"{found.hostname} does not answer ({error}): models have to be on the volume"
    return f"{found.hostname} answers; {token}"


def _extras() -> str:
    return ", ".join(
        f"[{extra}] {'installed' if _version(package) else 'not installed'}"
        for package, extra in EXTRAS
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
