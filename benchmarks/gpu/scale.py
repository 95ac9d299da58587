"""How large the exam's models are, here and in the test, and what all parts do with them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPTJConfig

from trainer.models import gptj
from trainer.planning.memory_model import Precision
from trainer.planning.model_shape import ModelShape
from trainer.training.engine.engine import DTYPES, Engine, EngineOptions


class NotRun(Exception):  # noqa: N818  it is no error: what is missing here is recorded
    """A case can't run on this machine; says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of one exam. The defaults are those of the real one."""

    small: bool = False
    width: int = 4096
    layers: int = 28
    heads: int = 16
    rotary: int = 64
    vocabulary: int = 50400
    context: int = 2048
    batch: int = 4
    warm_steps: int = 3
    steps: int = 8
    precision: Precision = "bf16"

    def config(self, **changes: Any) -> GPTJConfig:
        """Of GPT-J 6B; `changes` are of n_layer and the like."""
        return GPTJConfig(
            **{
                "vocab_size": self.vocabulary,
                "n_embd": self.width,
                "n_layer": self.layers,
                "n_head": self.heads,
                "rotary_dim": self.rotary,
                "n_positions": self.context,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
                "bos_token_id": 0,
                "eos_token_id": 0,
                "tie_word_embeddings": False,
                **changes,
            }
        )

    def middle(self) -> dict[str, Any]:
        """Changes of `config` that make 1.4 billion weights of it: what fits many times."""
        return {} if self.small else {"n_embd": 2048, "n_layer": 24}

    def little(self) -> dict[str, Any]:
        """Changes that make 0.25 billion: several checkpoints fit a disk of 64 GB."""
        return {} if self.small else {"n_embd": 1024, "n_layer": 12}


FULL = Scale()
SMALL = Scale(
    small=True,
    width=32,
    layers=2,
    heads=2,
    rotary=8,
    vocabulary=96,
    context=16,
    batch=2,
    warm_steps=1,
    steps=2,
    precision="fp32",
)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def needs_gpu(what: str) -> None:
    """Raise NotRun where there is no GPU."""
    if not torch.cuda.is_available():
        raise NotRun(f"{what} needs a GPU")


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_model(config: Any, precision: Precision, attention: str = "sdpa") -> Any:
    """Random weights, made on the device."""
    gptj.install()
    torch.manual_seed(0)
    with torch.device(device()):
        return AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[precision], attn_implementation=attention
        )


def options(scale: Scale, **changes: Any) -> EngineOptions:
    """Of one process; stage 1 in 16 bits, as a run takes for zero_stage 0 then."""
    precision = changes.get("precision", scale.precision)
    given: dict[str, Any] = {
        "rank": 0,
        "world": 1,
        "batch_size": scale.batch,
        "zero_stage": 0 if precision == "fp32" else 1,
        "precision": precision,
    }
    return EngineOptions(**{**given, **changes})


def random_ids(scale: Scale, batch: int = 0) -> torch.Tensor:
    """(B, T) ids in host memory, always the same."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch or scale.batch, scale.context)
    return torch.randint(0, scale.vocabulary, shape, generator=generator)


def make_engine(model: Any, chosen: EngineOptions) -> Engine:
    """The engine of a run. It is not closed: its process ends with the case.

    DeepSpeed keeps groups of the processes; a second engine after `close` would look for them.
    """
    return Engine(model, chosen)


def engine_step(engine: Engine, ids: torch.Tensor, rate: float = 1e-5) -> float:
    """One optimizer step on (B, T) ids as the loop does it; its loss."""
    loss = engine.loss(ids, torch.full((ids.shape[0],), ids.shape[1]))
    tokens = ids.shape[0] * (ids.shape[1] - 1)
    engine.backward(loss / tokens)
    engine.step(rate)
    return float(loss.detach()) / tokens


def seconds_of_steps(step: Callable[[], Any], scale: Scale) -> list[float]:
    """Seconds of each step after the warm ones."""
    seconds = []
    for number in range(scale.warm_steps + scale.steps):
        wait_for_device()
        began = time.perf_counter()
        step()
        wait_for_device()
        if number >= scale.warm_steps:
            seconds.append(time.perf_counter() - began)
    return seconds


def shape_of(config: Any) -> ModelShape:
    return ModelShape.from_config(config.to_dict())


def peak_gib() -> float | None:
    """Most of the GPU that tensors took since the process began; None without one."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
