"""Write `final/`: the finetuned model, ready for transformers, sealed.

It is made from the last checkpoint's files alone, so a process that was killed here
makes the same bytes when it is run again.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoints.folder import name_of, part_of
from trainer.checkpoints.seal import seal
from trainer.checkpoints.tensors import SliceReader
from trainer.models import base_dtype, load_tokenizer
from trainer.tokens.store import TokenStore
from trainer.training.adapters import add_adapters, merge
from trainer.training.base import base_model
from trainer.training.job import Job
from trainer.training.plan import TrainingPlan

SHARD_BYTES = 5 * 10**9
GOLDEN_PROMPTS = 4
GOLDEN_TOKENS = 16


def write_final(job: Job, figures: dict[str, Any]) -> None:
    """Make `final/` from the checkpoint of the run's last step."""
    place, plan = job.run.final, job.plan
    part = part_of(place)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model = checkpointed_model(job, job.run.checkpoints / name_of(plan.steps), part / "adapter")
    model.to(base_dtype(job.path("model")))
    model.save_pretrained(part, max_shard_size=SHARD_BYTES)
    tokenizer = load_tokenizer(job.tokenizer_path, job.config.trust_remote_code)
    tokenizer.save_pretrained(part)
    golden = golden_answers(model, golden_prompts(TokenStore.open(job.path("tokens"))))
    (part / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    (part / "README.md").write_text(model_card(job, figures), encoding="utf-8")
    about = {"kind": "final", "step": plan.steps, "request": job.config.request, "figures": figures}
    shutil.rmtree(place, ignore_errors=True)  # a damaged one: a good one is never written again
    seal(part, place, about)


def checkpointed_model(job: Job, checkpoint: Path, adapter: Path) -> Any:
    """The model of a checkpoint, whole, in fp32; LoRA's adapters alone go to `adapter`."""
    config = job.config
    model = base_model(job, torch.float32, filled_later=config.lora is None)
    adapted = config.lora and add_adapters(model, config.lora, config.model, config.random_seed)
    reader = SliceReader(checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                numbers = parameter.view(-1).numpy()
                reader.read(f"weight/{name}", 0, numbers, whole=numbers.size)
    return merge(adapted, adapter) if adapted else model


def golden_prompts(store: TokenStore) -> list[list[int]]:
    """Ids of the beginnings of a few contexts."""
    count = min(GOLDEN_PROMPTS, store.manifest.num_contexts)
    lengths = [max(2, min(GOLDEN_TOKENS, int(store.lengths[index]))) for index in range(count)]
    return [store.contexts[index, :length].tolist() for index, length in enumerate(lengths)]


@torch.no_grad()
def golden_answers(model: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """What the model says to a few prompts, for whoever serves it to compare.

    Returns:
        For each prompt its ids, the log-probability of each id after the first, and
        the likeliest next id with its own.
    """
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        log_probs = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        given = log_probs[:-1].gather(1, ids[0, 1:, None])[:, 0]
        best = int(log_probs[-1].argmax())
        answers.append(
            {
                "ids": ids[0].tolist(),
                "log_probs": given.tolist(),
                "next_id": best,
                "next_log_prob": float(log_probs[-1, best]),
            }
        )
    return {"format": 1, "dtype": str(model.dtype).removeprefix("torch."), "prompts": answers}


def model_card(job: Job, figures: dict[str, Any]) -> str:
    """A short README.md: where the model came from and how good it is."""
    config, plan = job.config, job.plan
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {config.run_name}",
        "",
        f"`{config.model}` finetuned on `{config.tokens}` ({plan.num_contexts:,} contexts).",
        "",
        "| | |",
        "| --- | --- |",
        f"| steps | {_steps(plan)} of {plan.global_batch} contexts, {config.epochs} epoch(s) |",
        f"| tokens trained on | {figures['tokens']:,} |",
        f"| learning rate | {config.learn_rate} with {config.warmup_ratio:.0%} warm-up |",
        f"| seed | {config.random_seed} |",
        f"| training loss of the last step | {_shown(figures['loss'])} |",
        f"| loss on held-out text | {_shown(figures['eval_loss'])} |",
        "",
    ]
    if config.trust_remote_code:
        lines += [
            "The model was loaded with `trust_remote_code`: this code of its folder was run.",
            "",
            *(f"- `{name}`, SHA-256 `{digest}`" for name, digest in _recorded_code(job).items()),
            "",
        ]
    return "\n".join(lines)


def _steps(plan: TrainingPlan) -> str:
    by_budget = f" (of {plan.whole_steps:,}, by the budget)" if plan.shortened else ""
    return f"{plan.steps:,}{by_budget}"


def _recorded_code(job: Job) -> dict[str, str]:
    record = job.run.record() or {}
    return {**record.get("code", {}).get("files", {})}


def _shown(loss: float | None) -> str:
    return "not measured" if loss is None else f"{loss:.4f}"
