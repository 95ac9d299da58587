"""Memory at the peak of a real training step, by architecture and layers computed again.

python -m tests.training.memory_peaks       prints the bytes of each of KINDS
"""

import ctypes
import os
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, GPTJConfig, GPTNeoXConfig, LlamaConfig

from tests.training.forking import wait_for
from trainer.training.engine.engine import Engine, EngineOptions

WIDTH, LAYERS, HEADS, VOCABULARY, CONTEXT, BATCH = 192, 4, 4, 2048, 256, 8

Kind = tuple[str, int | None]
"""Architecture, and how many of its layers are computed again; None: all."""
KINDS: list[Kind] = [
    ("gptj", 0),
    ("neox", 0),
    ("llama", 0),
    ("gptj", 2),
    ("gptj", None),
    ("neox", None),
]

M_MMAP_THRESHOLD = -3  # of mallopt


def measured_peak(architecture: str, again: int | None) -> int:
    """Bytes at the peak of a real step, in a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, str(_measure(architecture, again)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    assert wait_for(pid) == 0
    with os.fdopen(reading) as pipe:
        return int(pipe.read())


def _measure(architecture: str, again: int | None) -> int:
    # Freed memory goes back to the system at once, so that the peak is what is in use.
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 65536)
    config = configuration(architecture)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    options = EngineOptions(
        rank=0,
        world=1,
        batch_size=BATCH,
        zero_stage=0,
        precision="fp32",
        checkpointed_layers=again,
    )
    engine = Engine(model, options)
    few = torch.ones((1, 8), dtype=torch.int64)
    engine.backward(engine.loss(few, torch.tensor([8])))  # weights and gradients are there now
    libc.malloc_trim(0)  # what loading left behind would be used first
    Path("/proc/self/clear_refs").write_text("5")  # the kernel notes the peak from here on
    before = psutil.Process().memory_info().rss
    ids = torch.randint(0, VOCABULARY, (BATCH, CONTEXT))
    for _ in range(2):  # Adam makes its moments in the first step
        engine.backward(engine.loss(ids, torch.full((BATCH,), CONTEXT)) / ids.numel())
        engine.step(1e-4)
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    weights = 4 * sum(p.numel() for p in model.parameters())
    return peak - before + 2 * weights


def configuration(architecture: str) -> Any:
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if architecture == "neox":
        return GPTNeoXConfig(**shared)
    if architecture == "llama":
        return LlamaConfig(**shared)
    return GPTJConfig(
        vocab_size=VOCABULARY,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        rotary_dim=32,
        n_positions=CONTEXT,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )


if __name__ == "__main__":
    for kind in KINDS:
        print(measured_peak(*kind), flush=True)
