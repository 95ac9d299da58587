"""Host memory of a whole finetune step on the CPU, planned and measured.

python -m tests.training.host_peaks [tiny 27m 100m]     by processes and ZeRO stage

Measured is the peak of what all of the step's processes hold together, looked at twenty times a
second: each one's own pages, and mapped files (libraries) once, as they count for a container's
limit. Beside it stands what the run wrote into metrics.jsonl, which the report compares.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from transformers import GPTJConfig, GPTJForCausalLM

from tests.training.volume import make_config, make_tokenizer, read_lines, write_store
from trainer.planning.memory_model import GIB, Setting, host_parts
from trainer.planning.model_shape import ModelShape

VOCABULARY, CONTEXT, BATCH, STEPS = 2048, 128, 4, 4
SIZES = {"tiny": (192, 4), "27m": (512, 8), "100m": (1024, 7)}  # width, layers
CASES = ((1, 3), (2, 1), (2, 3))  # processes, ZeRO stage
LOOK_SECONDS = 0.05


def make_volume(root: Path, width: int, layers: int, processes: int) -> dict[str, Any]:
    """A volume with a GPT-J and contexts for a few steps; the model's config.json."""
    config = GPTJConfig(
        vocab_size=VOCABULARY,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        rotary_dim=32,
        n_positions=2 * CONTEXT,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    folder = root / "models" / "tiny"
    GPTJForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    contexts = BATCH * STEPS * processes
    ids = np.random.default_rng(3).integers(1, 96, (contexts + BATCH, CONTEXT)).astype("<u2")
    lengths = np.full(len(ids), CONTEXT, dtype="<u4")
    write_store(root / "tokens" / "tiny", ids, lengths, contexts)
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def held_bytes(process: psutil.Process) -> int:
    """Of a process and all that it started; what ended meanwhile counts nothing."""
    own, files = 0, 0
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{each.pid}/status").read_text(encoding="utf-8")
            sizes = [line.split() for line in status.splitlines() if line.endswith(" kB")]
            kib = {name: int(number) for name, number, _ in sizes}
            own += 1024 * kib.get("RssAnon:", 0)
            files = max(files, 1024 * kib.get("RssFile:", 0))
    return own + files


def measured(root: Path, config: dict[str, Any]) -> tuple[int, float]:
    """Peak of a step's memory, in bytes, and what its metrics say, in GiB."""
    path = root / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, "-m", "trainer", "finetune", str(path)]
    threads = max(1, (os.cpu_count() or 1) // config["processes"])
    step = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)},
    )
    peak, process = 0, psutil.Process(step.pid)
    try:
        while step.poll() is None:
            peak = max(peak, held_bytes(process))
            time.sleep(LOOK_SECONDS)
    finally:
        step.kill()
    assert step.returncode == 0, step.returncode
    lines = read_lines(root / "run" / "metrics.jsonl")
    return peak, max(line.get("host_memory_gib", 0) for line in lines)


def main(names: list[str]) -> None:
    for name in names or SIZES:
        for processes, zero_stage in CASES:
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                described = make_volume(root, *SIZES[name], processes)
                changes = {"batch_size": BATCH, "gradients": 1, "epochs": 1, "save_steps": 2}
                config = make_config(root, processes=processes, zero_stage=zero_stage, **changes)
                peak, told = measured(root, config)
            setting = Setting(
                context=CONTEXT,
                batch_size=BATCH,
                zero_stage=zero_stage,
                processes=processes,
                processes_per_node=processes,
                precision="fp32",
                checkpointed_layers=0,
                on_gpu=False,
            )
            parts = host_parts(ModelShape.from_config(described), setting)
            planned = sum(parts.values()) / GIB
            figures = f"planned {planned:.2f} GiB, measured {peak / GIB:.2f}, metrics {told:.2f}"
            print(f"{name}, {processes} process(es), stage {zero_stage}: {figures}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
