"""Training speed against a bare torch loop and transformers' Trainer, each a process of its own.

Run: `python -m benchmarks.training [--steps 8] [--rounds 3] [--width 512] [--layers 6]`.
The contenders take turns on the same model, batches and dtype: the loop that anyone would
write first; Trainer; and a run of ours, `python -m trainer finetune`, with everything that
belongs to a step (data, measures, records, TensorBoard). Printed are each one's median and best
time for a step over all rounds, without the first steps of a round, and ratios of speed.
Also compares loss curves with Trainer's, for three architectures (`--curves`).
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
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

from tests.training.volume import make_tokenizer, write_store
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


def ours(model: Any) -> Callable[[list[torch.Tensor], float], float]:
    options = EngineOptions(rank=0, world=1, batch_size=BATCH, zero_stage=0, precision="fp32")
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


def trainer_run(model: Any, batches: list[list[torch.Tensor]]) -> tuple[list[float], list[float]]:
    """Losses of transformers' Trainer on the same batches, and seconds of its steps."""
    rows = [row for step in batches for ids in step for row in ids]
    examples = [{"input_ids": row, "labels": row} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=GRADIENTS,
            learning_rate=RATE,
            warmup_steps=math.ceil(WARMUP * len(batches)),
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
    return losses, [after - before for before, after in pairwise(clock.ends)]


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


def steps_alone(args: argparse.Namespace) -> list[float]:
    """Seconds of each step of the contender that this process is."""
    batches = make_batches(args.steps, args.context)
    model = make_model("gptj", args.width, args.layers, args.context)
    if args.alone == "Trainer":
        return trainer_run(model, batches)[1]
    step, seconds = bare(model), []
    for ids in batches:
        began = time.perf_counter()
        step(ids, RATE)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def steps_of_a_run(args: argparse.Namespace) -> list[float]:
    """Seconds of each step of a run of ours, by what it says of itself."""
    with tempfile.TemporaryDirectory() as folder:
        volume = Path(folder)
        make_model("gptj", args.width, args.layers, args.context).save_pretrained(volume / "model")
        make_tokenizer().save_pretrained(volume / "model")
        ids = torch.cat([ids for step in make_batches(args.steps, args.context) for ids in step])
        lengths = np.full(len(ids), args.context, dtype="<u4")
        write_store(volume / "tokens" / "random", ids.numpy().astype("<u2"), lengths, len(ids))
        config = {
            "volume": str(volume),
            "run_name": "run",
            "model": "model",
            "tokens": "tokens/random",
            "batch_size": BATCH,
            "gradients": GRADIENTS,
            "learn_rate": RATE,
            "save_steps": 0,
            "zero_stage": 0,
        }
        (volume / "config.json").write_text(json.dumps(config), encoding="utf-8")
        command = [sys.executable, "-m", "trainer", "finetune", str(volume / "config.json")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (volume / "run/metrics.jsonl").open()]
    ends = [line["seconds"] for line in lines if "loss" in line]
    return [after - before for before, after in pairwise(ends)]


def compare_speed(args: argparse.Namespace) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in ("bare", "Trainer", "ours")}
    options = ["steps", "width", "layers", "context"]
    sizes = [word for name in options for word in (f"--{name}", str(getattr(args, name)))]
    for _ in range(args.rounds):
        for name in ("bare", "Trainer"):
            command = [sys.executable, "-m", "benchmarks.training", "--alone", name, *sizes]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            seconds[name] += json.loads(done.stdout.splitlines()[-1])
        seconds["ours"] += steps_of_a_run(args)
    model = make_model("gptj", args.width, args.layers, args.context)
    found = {"parameters": sum(p.numel() for p in model.parameters())}
    for how, figure in (("median", statistics.median), ("best", min)):
        taken = {name: figure(values) for name, values in seconds.items()}
        found[f"{how}_seconds"] = {name: round(value, 4) for name, value in taken.items()}
        ratios = {f"over {name}": taken[name] / taken["ours"] for name in ("bare", "Trainer")}
        found[f"{how}_speed"] = {name: round(value, 3) for name, value in ratios.items()}
    return found


def compare_curves(args: argparse.Namespace) -> dict[str, Any]:
    """The largest difference between our losses and Trainer's, by architecture."""
    plan, found = schedule(args.steps), {}
    for architecture in ("gptj", "neox", "llama"):
        batches = make_batches(args.steps, args.context)
        theirs, _ = trainer_run(
            make_model(architecture, args.width, args.layers, args.context), batches
        )
        step = ours(make_model(architecture, args.width, args.layers, args.context))
        losses = [step(ids, plan.learning_rate(n)) for n, ids in enumerate(batches)]
        found[architecture] = max(abs(a - b) for a, b in zip(losses, theirs, strict=True))
    return {"largest_difference": found, "steps": args.steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--curves", action="store_true", help="compare losses instead of speed")
    parser.add_argument("--alone", choices=("bare", "Trainer"), help="be that one, print its steps")
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(steps_alone(args)))
        return
    result = compare_curves(args) if args.curves else compare_speed(args)
    machine = {
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps({**vars(args), **machine, **result}, indent=1))


if __name__ == "__main__":
    main()
