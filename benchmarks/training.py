"""Training speed against a bare torch loop and transformers' Trainer, in one process.

Run: `python -m benchmarks.training --trainer [--steps 6] [--rounds 3] [--width 384] [--layers 8]`.
The contenders take turns on the same model, batches and dtype; what is printed is each one's
time for a step, best of all rounds, and ratios of tokens per second. Trainer's start-up does
not count: its steps are timed by its callbacks, from the end of one to the end of the next.
Also compares loss curves with Trainer's, for three architectures (`--curves`).
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from trainer.models import gptj
from trainer.training.engine import Engine, EngineOptions
from trainer.training.plan import TrainingPlan

VOCABULARY = 8192
BATCH, GRADIENTS = 2, 2
RATE, WARMUP = 1e-3, 0.1


def make_model(architecture: str, width: int, layers: int, context: int) -> Any:
    torch.manual_seed(0)
    shared = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_size": width,
        "max_position_embeddings": context,
    }
    if architecture == "gptj":
        config: Any = GPTJConfig(
            vocab_size=VOCABULARY,
            n_embd=width,
            n_layer=layers,
            n_head=width // 64,
            rotary_dim=32,
            n_positions=context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
            tie_word_embeddings=False,
        )
    elif architecture == "neox":
        config = GPTNeoXConfig(**shared, intermediate_size=4 * width)
    else:
        config = LlamaConfig(**shared, intermediate_size=3 * width)
    gptj.install()
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def make_batches(steps: int, context: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [
            torch.randint(0, VOCABULARY, (BATCH, context), generator=generator)
            for _ in range(GRADIENTS)
        ]
        for _ in range(steps)
    ]


def schedule(steps: int) -> TrainingPlan:
    return TrainingPlan(
        num_contexts=steps * BATCH * GRADIENTS,
        global_batch=BATCH * GRADIENTS,
        batch_size=BATCH,
        epochs=1,
        seed=0,
        shuffle=False,
        learn_rate=RATE,
        warmup_ratio=WARMUP,
    )


def bare(model: Any) -> Callable[[list[torch.Tensor], float], float]:
    """The loop that anyone would write first."""
    adam = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    model.train()

    def step(batches: list[torch.Tensor], rate: float) -> float:
        total = 0.0
        for ids in batches:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss / len(batches)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        adam.zero_grad()
        return total

    return step


def ours(model: Any, stage: int) -> Callable[[list[torch.Tensor], float], float]:
    options = EngineOptions(rank=0, world=1, batch_size=BATCH, zero_stage=stage, precision="fp32")
    engine = Engine(model, options)

    def step(batches: list[torch.Tensor], rate: float) -> float:
        tokens = sum(ids.shape[0] * (ids.shape[1] - 1) for ids in batches)
        total = 0.0
        for ids in batches:
            loss = engine.loss(ids, torch.full((ids.shape[0],), ids.shape[1]))
            engine.backward(loss / tokens)
            total += float(loss.detach())
        engine.step(rate)
        return total / tokens

    return step


def trainer_run(model: Any, batches: list[list[torch.Tensor]]) -> tuple[list[float], float]:
    """Losses of transformers' Trainer on the same batches, and seconds of its fastest step."""
    rows = [row for step in batches for ids in step for row in ids]
    examples = [{"input_ids": row, "labels": row} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=GRADIENTS,
            learning_rate=RATE,
            warmup_steps=int(WARMUP * len(batches)),
            num_train_epochs=1,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        clock = _Clock()
        trainer = _InOrder(model=model, args=arguments, train_dataset=examples, callbacks=[clock])
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, min(after - before for before, after in pairwise(clock.ends))


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


class _InOrder(Trainer):
    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def log(self, logs: dict[str, float], *args: Any) -> None:
        # Trainer rounds the loss it logs to four digits or so: keep all of it.
        self.state.log_history.append({**logs, "step": self.state.global_step})


def compare_speed(args: argparse.Namespace) -> dict[str, Any]:
    makers = {
        "bare": lambda: bare(make_model("gptj", args.width, args.layers, args.context)),
        **{
            f"stage {stage}": lambda stage=stage: ours(
                make_model("gptj", args.width, args.layers, args.context), stage
            )
            for stage in args.stages
        },
    }
    batches = make_batches(args.steps, args.context)
    contenders = {name: make() for name, make in makers.items()}
    best = dict.fromkeys(contenders, float("inf"))
    for step in contenders.values():
        step(batches[0], 0.0)
    theirs = make_model("gptj", args.width, args.layers, args.context) if args.trainer else None
    for _ in range(args.rounds):
        if theirs is not None:
            seconds = trainer_run(theirs, batches)[1]
            best["Trainer"] = min(best.get("Trainer", float("inf")), seconds)
        for ids in batches:
            for name, step in contenders.items():
                began = time.perf_counter()
                step(ids, RATE)
                best[name] = min(best[name], time.perf_counter() - began)
    return {
        "parameters": sum(p.numel() for p in theirs.parameters()) if theirs is not None else None,
        "seconds_per_step": {name: round(value, 4) for name, value in best.items()},
        "speed_of_bare": {name: round(best["bare"] / value, 3) for name, value in best.items()},
    }


def compare_curves(args: argparse.Namespace) -> dict[str, Any]:
    """The largest difference between our losses and Trainer's, by architecture."""
    plan, found = schedule(args.steps), {}
    for architecture in ("gptj", "neox", "llama"):
        batches = make_batches(args.steps, args.context)
        theirs, _ = trainer_run(
            make_model(architecture, args.width, args.layers, args.context), batches
        )
        step = ours(make_model(architecture, args.width, args.layers, args.context), 0)
        losses = [step(ids, plan.learning_rate(n)) for n, ids in enumerate(batches)]
        found[architecture] = max(abs(a - b) for a, b in zip(losses, theirs, strict=True))
    return {"largest_difference": found, "steps": args.steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--stages", type=int, nargs="*", default=[0, 3])
    parser.add_argument("--trainer", action="store_true", help="also time transformers' Trainer")
    parser.add_argument("--curves", action="store_true", help="compare losses instead of speed")
    args = parser.parse_args()
    result = compare_curves(args) if args.curves else compare_speed(args)
    machine = {
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps({**vars(args), **machine, **result}, indent=1))


if __name__ == "__main__":
    main()
