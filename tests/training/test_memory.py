"""The memory model against the measured peak, and the choices it makes."""

import ctypes
import os
import threading
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, GPTJConfig, GPTNeoXConfig, LlamaConfig

from tests.training.forking import wait_for
from tests.training.volume import make_model
from trainer.config import FinetuneConfig
from trainer.errors import RequestError
from trainer.training.engine import Engine, EngineOptions
from trainer.training.memory import need_of, shape_of
from trainer.training.sizing import fit

WIDTH, LAYERS, HEADS, VOCABULARY, CONTEXT, BATCH = 192, 4, 4, 2048, 256, 8

M_MMAP_THRESHOLD = -3  # of mallopt


def measured_peak(architecture: str) -> int:
    """Bytes at the peak of a real step, in a process of its own."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, str(_measure(architecture)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    assert wait_for(pid) == 0
    with os.fdopen(reading) as pipe:
        return int(pipe.read())


def _measure(architecture: str) -> int:
    # Freed memory goes back to the system at once, so that the peak is what is in use.
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 65536)
    config = configuration(architecture)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    options = EngineOptions(rank=0, world=1, batch_size=BATCH, zero_stage=0, precision="fp32")
    engine = Engine(model, options)
    few = torch.ones((1, 8), dtype=torch.int64)
    engine.backward(engine.loss(few, torch.tensor([8])))  # weights and gradients are there now
    process, readings, running = psutil.Process(), [0], True
    libc.malloc_trim(0)  # what the tests before this one left behind would be used first
    before = process.memory_info().rss

    def watch() -> None:
        while running:
            readings.append(process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    ids = torch.randint(0, VOCABULARY, (BATCH, CONTEXT))
    for _ in range(2):  # Adam makes its moments in the first step
        engine.backward(engine.loss(ids, torch.full((BATCH,), CONTEXT)) / ids.numel())
        engine.step(1e-4)
    running = False
    thread.join()
    weights = 4 * sum(p.numel() for p in model.parameters())
    return max(readings) - before + 2 * weights


def configuration(architecture: str) -> object:
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


@pytest.mark.parametrize("architecture", ["gptj", "neox", "llama"])
def test_the_model_is_within_15_percent_of_the_measured_peak(architecture: str) -> None:
    measured = measured_peak(architecture)
    predicted = need_of(shape_of(configuration(architecture)), BATCH, CONTEXT).total
    assert predicted == pytest.approx(measured, rel=0.15)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model("gptj").save_pretrained(folder)
    return folder


def sizing(folder: Path, mib: float, divisor: float = 1.0, stage: int = 3, processes: int = 1):  # type: ignore[no-untyped-def]
    config = FinetuneConfig(
        volume="v",
        model="m",
        tokens="t",
        batch_size_divisor=divisor,
        zero_stage=stage,
        processes=processes,
    )
    return fit(config, folder, 32, mib * 2**20, element_bytes=2)


def test_the_least_costly_way_that_fits_is_chosen(folder: Path) -> None:
    roomy = sizing(folder, 100)
    assert roomy.batch_size == 64 and not roomy.gradient_checkpointing and not roomy.offload
    need = 0.0
    found = []
    while need < 3:
        need += 0.02
        try:
            found.append(sizing(folder, need))
        except RequestError:
            continue
    means = [(s.gradient_checkpointing, s.offload) for s in found]
    assert means == sorted(means, reverse=True)
    assert {(True, True), (True, False), (False, False)} == set(means)
    assert "gradient checkpointing and the optimizer in host memory" in found[0].reason


def test_the_divisor_leaves_room(folder: Path) -> None:
    assert sizing(folder, 3, divisor=2).batch_size < sizing(folder, 3).batch_size


def test_more_processes_share_what_zero_splits(folder: Path) -> None:
    shape = shape_of(make_model("gptj").config)
    needs = [
        need_of(shape, 1, 32, world=4, zero_stage=stage, element_bytes=2) for stage in (1, 2, 3)
    ]
    assert [n.optimizer for n in needs] == [shape.trained * 12 // 4] * 3
    assert needs[0].gradients == 4 * needs[1].gradients
    assert needs[1].weights == 4 * needs[2].weights


def test_what_cannot_fit_is_refused_with_what_to_do(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"one context needs .* Take a shorter context"):
        sizing(folder, 0.1)
