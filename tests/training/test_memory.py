"""The memory model against the measured peak, and the choices it makes."""

import ctypes
import json
import os
import signal
import threading
from pathlib import Path

import psutil
import pytest
import torch
from torch.utils.file_baton import FileBaton
from transformers import AutoModelForCausalLM, GPTJConfig, GPTNeoXConfig, LlamaConfig

from tests.training.forking import Strike, ended_with, log_of, run_step, wait_for
from tests.training.volume import make_config, make_model, make_volume
from trainer.config import FinetuneConfig, LoraConfig
from trainer.errors import DoesNotFitError, RequestError
from trainer.training import sizing as sizing_module
from trainer.training import step
from trainer.training.engine import Engine, EngineOptions, compiling_alone
from trainer.training.loss import CausalLoss
from trainer.training.memory import need_of, shape_of
from trainer.training.sizing import Sizing, confirmed, fit

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


def test_adapters_alone_need_gradients_and_moments() -> None:
    config = make_model("gptj").config
    whole, adapted = shape_of(config), shape_of(config, LoraConfig(rank=4))
    # Two layers, queries and values, each a matrix of 32 x 4 and one of 4 x 32.
    assert adapted.trained == 2 * 2 * 2 * 32 * 4
    assert adapted.parameters == whole.parameters + adapted.trained
    needs = [need_of(shape, 1, 32) for shape in (whole, adapted)]
    assert needs[1].optimizer == 8 * adapted.trained
    assert needs[1].gradients == 4 * adapted.trained


def test_what_cannot_fit_is_refused_with_what_to_do(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"one context needs .* Take a shorter context"):
        sizing(folder, 0.1)


def full_memory(monkeypatch: pytest.MonkeyPatch, most: int, checkpointing: bool = True) -> None:
    """Have steps of more than `most` contexts at a time run out of memory, as on a GPU."""
    whole = CausalLoss.forward

    def forward(self: CausalLoss, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        saves = getattr(self.model, "is_gradient_checkpointing", False)
        if len(ids) > most or (checkpointing and not saves):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(self, ids, lengths)

    monkeypatch.setattr(CausalLoss, "forward", forward)
    monkeypatch.setattr(step, "has_gpu", lambda: True)
    monkeypatch.setattr(sizing_module, "has_gpu", lambda: True)
    monkeypatch.setattr(sizing_module, "_gpu", lambda config: (2.0**21, 4))


@pytest.mark.parametrize("processes", [1, 2])
def test_out_of_memory_steps_down_until_a_real_step_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    config = make_config(make_volume(tmp_path), batch_size=-1, processes=processes, epochs=1)
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
    config = make_config(make_volume(tmp_path), batch_size=-1, epochs=1)
    full_memory(monkeypatch, most=1)
    assert run_step("finetune", config) == 0, log_of(config)
    assert "a real step fits at batch_size 1 with gradient checkpointing" in log_of(config)


def test_what_fits_in_no_way_is_refused() -> None:
    def attempt(sizing: Sizing) -> float:
        tried.append((sizing.batch_size, sizing.gradient_checkpointing, sizing.offload))
        raise DoesNotFitError("a step does not fit")

    tried: list[tuple[int, bool, bool]] = []
    with pytest.raises(RequestError, match="does not fit"):
        confirmed(Sizing(batch_size=4), attempt)
    assert tried[:3] == [(4, False, False), (2, False, False), (1, False, False)]
    assert tried[3:] == [(1, True, False), (1, True, True)]


def test_out_of_memory_in_training_says_what_to_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(make_volume(tmp_path))
    full_memory(monkeypatch, most=1)
    assert run_step("finetune", config) == 1
    assert "Take a smaller batch_size" in ended_with(config)["message"]


def test_a_build_that_was_killed_does_not_stop_the_next(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()  # as torch leaves it
    baton = FileBaton(str(tmp_path / "lock"))
    with compiling_alone(tmp_path):
        assert baton.try_acquire()
