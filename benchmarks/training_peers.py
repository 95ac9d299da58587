"""What training is compared with, each as a process of its own: see training.py.

    python -m benchmarks.training_peers bare|Trainer [--steps 8] [--width 512] ...

Prints the seconds of each step, without the first, as JSON. Trainer gets transformers' model as
it is: nothing of this project is imported here.
"""

import argparse
import json
import math
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

VOCABULARY = 8192
BATCH, GRADIENTS = 2, 2
RATE, WARMUP = 1e-3, 0.1


def make_model(
    architecture: str, width: int, layers: int, context: int, attention: str = "sdpa"
) -> Any:
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
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def make_batches(steps: int, context: int) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [
            torch.randint(0, VOCABULARY, (BATCH, context), generator=generator)
            for _ in range(GRADIENTS)
        ]
        for _ in range(steps)
    ]


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


def trainer_run(
    model: Any, batches: list[list[torch.Tensor]], **changes: Any
) -> tuple[list[float], list[float]]:
    """Losses of transformers' Trainer on the same batches, and seconds of its steps.

    Args:
        changes: Of TrainingArguments.
    """
    rows = [row for step in batches for ids in step for row in ids]
    examples = [{"input_ids": row, "labels": row} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": GRADIENTS,
            "learning_rate": RATE,
            "warmup_steps": math.ceil(WARMUP * len(batches)),
            "num_train_epochs": 1,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        arguments = TrainingArguments(**{**given, **changes})
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
    if args.peer == "Trainer":  # GPT-J as transformers has it
        model = make_model("gptj", args.width, args.layers, args.context, attention="eager")
        return trainer_run(model, batches)[1]
    from trainer.models import gptj

    gptj.install()
    step, seconds = bare(make_model("gptj", args.width, args.layers, args.context)), []
    for ids in batches:
        began = time.perf_counter()
        step(ids, RATE)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--context", type=int, default=256)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=("bare", "Trainer"))
    add_sizes(parser)
    print(json.dumps(steps_alone(parser.parse_args())))
