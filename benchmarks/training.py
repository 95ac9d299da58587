"""Training speed against a bare torch loop and transformers' Trainer, each a process of its own.

Run: `python -m benchmarks.training [--steps 8] [--rounds 3] [--width 512] [--layers 6]`.
The contenders take turns on the same weights, batches and dtype: the loop that anyone would
write first, on GPT-J as we have it; Trainer, on GPT-J as transformers has it; and a run of ours,
`python -m trainer finetune`, with everything that belongs to a step (data, measures, records,
TensorBoard). Printed are each one's median and best time for a step over all rounds, without
the first steps of a round, and ratios of speed.
Also compares loss curves with Trainer's, for three architectures (`--curves`).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.ratios import say_ratio
from benchmarks.training_peers import (
    BATCH,
    GRADIENTS,
    RATE,
    WARMUP,
    add_sizes,
    make_batches,
    make_model,
    trainer_run,
)
from tests.training.volume import make_tokenizer, write_store
from trainer.models import gptj
from trainer.training.engine.engine import Engine, EngineOptions
from trainer.training.plan import TrainingPlan


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
            command = [sys.executable, "-m", "benchmarks.training_peers", name, *sizes]
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
    add_sizes(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--curves", action="store_true", help="compare losses instead of speed")
    args = parser.parse_args()
    gptj.install()
    result = compare_curves(args) if args.curves else compare_speed(args)
    machine = {
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps({**vars(args), **machine, **result}, indent=1))
    for name, ratio in result.get("median_speed", {}).items():
        say_ratio(f"training, speed {name}", ratio)


if __name__ == "__main__":
    main()
