"""The parts of the exam and the cases that each consists of: names alone, nothing is loaded."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu import __name__ as package


@dataclass(frozen=True)
class Case:
    """`function` of a module of this package is called with the scale and `given`."""

    function: str
    given: Mapping[str, Any] = field(default_factory=dict)

    def run(self, scale: Any) -> dict[str, Any]:
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(f"{package}.{module}"), name)(scale, **self.given)


@dataclass(frozen=True)
class Part:
    """One command's worth, below nine minutes."""

    title: str
    aim: str
    cases: Mapping[str, Case]


def _ours(layers: int | None, compiled: bool) -> Case:
    return Case("speed:ours", {"layers": layers, "compiled": compiled})


_ATTENTION = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
_MEMORY = (
    "bf16",
    "bf16, one context",
    "bf16, all layers again",
    "bf16, half of the layers again",
    "fp32",
    "bf16, 8-bit Adam",
    "bf16, LoRA",
    "bf16, Adam in host memory",
)
_SETTINGS = (
    "plain",
    "whole logits",
    "LoRA",
    "QLoRA",
    "8-bit Adam",
    "fp16 with loss scaling",
    "Liger's kernels",
    "compiled layers",
)

PARTS: dict[str, Part] = {
    "speed": Part(
        "Training GPT-J 6B's shape: bf16, context 2048, batch 4",
        "11,000 tokens/s without recomputing on an H200",
        {
            "nothing again": _ours(0, False),
            "all layers again": _ours(None, False),
            "nothing again, compiled": _ours(0, True),
            "all layers again, compiled": _ours(None, True),
        },
    ),
    "attention": Part(
        "A layer's attention by each of torch's kernels, sums in one order (and in any)",
        "what torch chooses is the fastest",
        {
            **{
                backend.lower().replace("_", " "): Case("attention:one", {"backend": backend})
                for backend in _ATTENTION
            },
            "flash attention, any order": Case(
                "attention:one", {"backend": "FLASH_ATTENTION", "deterministic": False}
            ),
        },
    ),
    "peers": Part(
        "The same by others",
        "ours is at least 0.95 of the bare loop",
        {
            "bare loop": Case("speed:bare", {"again": False}),
            "bare loop, all layers again": Case("speed:bare", {"again": True}),
            "transformers' Trainer, all layers again": Case("speed:transformers_trainer"),
            "torchtitan": Case("speed:torchtitan"),
        },
    ),
    "memory": Part(
        "Peak memory against the plan",
        "within 10 %",
        {name: Case("memory:against_plan", {"name": name}) for name in _MEMORY},
    ),
    "sizes": Part(
        "What is decided by what fits",
        "batch_size=-1 ends at what fits; a small card offloads",
        {
            "batch_size=-1 after real out-of-memory errors": Case("sizes:settled_by_error"),
            "offload on a card that is made to look small": Case("sizes:offloaded"),
        },
    ),
    "settings": Part(
        "Each setting beside the plain one (GPT-J, 1.4 billion weights; Liger: Llama)",
        "losses agree with the plain ones to the rounding of bf16",
        {name: Case("settings:one", {"name": name}) for name in _SETTINGS},
    ),
    "repeat": Part(
        "The same run twice",
        "kernels.deterministic: the same bits; its cost decides its default",
        {
            "deterministic": Case("resume:repeated", {"deterministic": True}),
            "not deterministic": Case("resume:repeated", {"deterministic": False}),
        },
    ),
    "killed": Part(
        "A run stopped by kill -9 against one that ran through",
        "the same bits",
        {"kill -9": Case("resume:stopped", {"with_kill": True})},
    ),
    "terminated": Part(
        "A run stopped by SIGTERM against one that ran through",
        "the same bits",
        {"SIGTERM": Case("resume:stopped", {"with_kill": False})},
    ),
    "saving": Part(
        "Checkpoints",
        "training stands still for less than a second for 20 GB",
        {"stall and seal": Case("saving:stall_and_seal")},
    ),
    "serving": Part(
        "Answers of 48 tokens, tokens/s (Llama's shape, 1.1 billion weights)",
        "0.9 of vLLM",
        {name: Case("serving:speed", {"engine_name": name}) for name in ("builtin", "vllm")},
    ),
    "gate": Part(
        "The gate's tolerance in bf16",
        "the largest difference is below it",
        {"log-probabilities": Case("serving:tolerance")},
    ),
}
