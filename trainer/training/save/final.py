"""Write `final/`: the finetuned model, ready for transformers, sealed.

It is made from the last checkpoint's files alone, so a process that was killed here
makes the same bytes when it is run again.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.checkpoints.tensors import SliceReader
from trainer.contract.checkpoints import name_of, part_of, remove
from trainer.contract.json_text import parse_json
from trainer.contract.later_keys import LATER
from trainer.contract.sealed_folder import read_manifest, seal
from trainer.contract.step_configs import FinetuneConfig
from trainer.fetch.weights import read_tensors
from trainer.models import base_dtype, load_tokenizer
from trainer.models.buffers import persistent_buffers
from trainer.models.chat_prompts import as_in_store, ids_before_answer, shortest_prompts
from trainer.models.end_of_text import set_end
from trainer.models.loading import dtypes_when_loaded
from trainer.tokens.model_tokenizer import save_tokenizer, tell_of_other_ids
from trainer.tokens.store import TokenStore
from trainer.training.engine.adapters import add_adapters, merge
from trainer.training.engine.base import base_model
from trainer.training.engine.engine import DTYPES
from trainer.training.engine.four_bits import round_to_four_bits
from trainer.training.job import Job
from trainer.training.plan import TrainingPlan
from trainer.training.save.saving import restore_buffers

SHARD_BYTES = 5 * 10**9
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
GOLDEN_PROMPTS = 4
GOLDEN_TOKENS = 16
GOLDEN_LOOKED_AT = 64  # chats, for the shortest questions: a server's answers take its time
GOLDEN_CHAT_TOKENS = 512
ANSWER_TOKENS = 24


def write_final(job: Job, figures: dict[str, Any]) -> None:
    """Make `final/` from the checkpoint of the run's last step."""
    place, plan = job.run.final, job.plan
    part = part_of(place)
    remove(part)
    part.mkdir(parents=True)
    model = checkpointed_model(job, job.run.checkpoints / name_of(plan.steps), part / "adapter")
    store = TokenStore.open(job.path("tokens"))
    eot = store.manifest.eot_token_id
    set_end(model, job.path("model"), eot)
    save_as_stored(model, job.path("model"), part, job.config.trust_remote_code)
    tokenizer = load_tokenizer(job.tokenizer_path, job.config.trust_remote_code)
    as_in_store(tokenizer, store.manifest)
    save_tokenizer(tokenizer, part, eot)
    tell_of_other_ids(tokenizer, part)
    prompts = golden_prompts(store, plan.kept(np.arange(store.manifest.num_contexts)))
    answers = golden_answers(model, prompts, end_ids_of(model, tokenizer))
    golden = {**answers, "end_id": eot}
    (part / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    (part / "README.md").write_text(model_card(job, figures), encoding="utf-8")
    about = {"kind": "final", "step": plan.steps, "request": job.config.request, "figures": figures}
    remove(place)  # a damaged one: a good one is never written again
    seal(part, place, about)


def checkpointed_model(job: Job, checkpoint: Path, adapter: Path) -> Any:
    """The model of a checkpoint, whole, in fp32; LoRA's adapters alone go to `adapter`."""
    config = job.config
    model = base_model(job, torch.float32, filled_later=config.lora is None)
    if config.lora and config.lora.base_bits == 4:
        trained_in = DTYPES[read_manifest(checkpoint).about["precision"]]
        round_to_four_bits(model, trained_in, config.lora.modules_to_save)
    adapted = config.lora and add_adapters(model, config.lora, config.model, config.random_seed)
    reader = SliceReader(checkpoint)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                numbers = parameter.view(-1).numpy()
                reader.read(f"weight/{name}", 0, numbers, whole=numbers.size)
    restore_buffers(persistent_buffers(model), reader)
    return merge(adapted, adapter, config.model) if adapted else model


@torch.no_grad()
def save_as_stored(model: Any, base: Path, folder: Path, trust_remote_code: bool = False) -> None:
    """Write the weights of `model`, in fp32, to `folder`, each in the type that `base` has it in.

    A base model may hold some tensors in fp32 and the others in 16 bits, such as decay rates
    of recurrent layers. Afterwards `model` is as transformers loads it from `folder`.
    """
    dtype = base_dtype(base)
    loaded = dtypes_when_loaded(model.config, dtype, trust_remote_code)
    try:
        stored = {name: FLOATS.get(t.dtype) for name, t in read_tensors(base).items()}
    except ValueError:
        stored = {}  # pickled, or elsewhere in a file of tensorizer's
    tensors = {**dict(model.named_parameters()), **persistent_buffers(model)}
    for name, tensor in tensors.items():
        tensor.data = tensor.to(stored.get(name) or loaded.get(name, dtype))
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")  # it took that of the first tensor
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model.config.dtype = dtype
    for name, tensor in {**dict(model.named_buffers()), **tensors}.items():
        tensor.data = tensor.to(loaded.get(name, dtype))


def golden_prompts(store: TokenStore, kept: np.ndarray) -> list[list[int]]:
    """Ids of the beginnings of a few contexts; of chats all that comes before an answer.

    Args:
        store: What the model was trained on.
        kept: The contexts that are not left out of training.
    """
    if store.manifest.chat:
        among = kept[:GOLDEN_LOOKED_AT].tolist()
        chosen = shortest_prompts(store, among, min(GOLDEN_PROMPTS, len(among)))
        return [ids_before_answer(store, index)[:GOLDEN_CHAT_TOKENS] for index in chosen]
    first = kept[:GOLDEN_PROMPTS].tolist()
    lengths = [max(2, min(GOLDEN_TOKENS, int(store.lengths[index]))) for index in first]
    pairs = zip(first, lengths, strict=True)
    return [store.contexts[index, :length].tolist() for index, length in pairs]


def end_ids_of(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end an answer, as the server will read them from the model's folder."""
    settings = getattr(model, "generation_config", None)
    named = settings.eos_token_id if settings else None
    named = tokenizer.eos_token_id if named is None else named
    return [] if named is None else list(named) if isinstance(named, list) else [named]


@torch.no_grad()
def golden_answers(model: Any, prompts: list[list[int]], end_ids: list[int]) -> dict[str, Any]:
    """What the model says to a few prompts; a server's answers are compared with it.

    All of it comes from passes over whole texts without any cache.

    Args:
        end_ids: Tokens that may not come, so that each answer has all of its tokens.
    Returns:
        For each prompt its ids, the log-probability of each id after the first, the likeliest
        next id with its own, and a greedy answer: ids and log-probabilities.
    """
    told = []
    for prompt, answer in zip(prompts, _greedy_answers(model, prompts, end_ids), strict=True):
        ids = torch.tensor([prompt])
        log_probs = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        given = log_probs[:-1].gather(1, ids[0, 1:, None])[:, 0]
        best = int(log_probs[-1].argmax())
        told.append(
            {
                "ids": ids[0].tolist(),
                "log_probs": given.tolist(),
                "next_id": best,
                "next_log_prob": float(log_probs[-1, best]),
                "answer_ids": answer[0],
                "answer_log_probs": answer[1],
            }
        )
    return {"format": 1, "dtype": str(model.dtype).removeprefix("torch."), "prompts": told}


def _greedy_answers(
    model: Any, prompts: list[list[int]], end_ids: list[int]
) -> list[tuple[list[int], list[float]]]:
    """Ids and log-probabilities after each prompt; prompts of one length share their passes."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    answers: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
        ids = torch.tensor([prompts[row] for row in rows])  # (rows, T)
        for _ in range(min(ANSWER_TOKENS, limit - length) if limit else ANSWER_TOKENS):
            scores = model(input_ids=ids, use_cache=False).logits[:, -1].float().log_softmax(-1)
            allowed = scores.clone()
            allowed[:, end_ids] = -torch.inf
            best = allowed.argmax(-1, keepdim=True)  # (rows, 1)
            for row, token, score in zip(rows, best[:, 0], scores.gather(1, best), strict=True):
                answers[row][0].append(int(token))
                answers[row][1].append(float(score))
            ids = torch.cat([ids, best], dim=1)
    return answers


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
        f"| learning rate | {config.learn_rate} with {_warmup(config)} warm-up |",
        *(f"| {name} | {_keys(keys)} |" for name, keys in _recipe(config).items()),
        f"| seed | {config.random_seed} |",
        f"| training loss of the last step | {_shown(figures['loss'])} |",
        f"| loss on held-out text | {_shown(figures['eval_loss'])} |",
        "",
    ]
    if config.lora and config.lora.base_bits == 4:
        lines += [
            "The base model's linear layers were in 4 bits in training (NF4). These weights are "
            "what the 4 bits stand for, with the adapters worked in: the model that was trained.",
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


def _warmup(config: FinetuneConfig) -> str:
    steps = config.schedule.warmup_steps
    return f"{steps:,} steps of" if steps else f"{config.warmup_ratio:.0%}"


RECIPE = ("schedule", "optimizer", "lora")  # of the topics that a card tells of


def _recipe(config: FinetuneConfig) -> dict[str, dict[str, Any]]:
    """Of the topics with later keys what is not at its default, where any of these is."""
    asked = {name: getattr(config, name) for name in RECIPE}
    found = {name: _changed(topic) for name, topic in asked.items() if topic is not None}
    # A card without the later keys stays as it was, byte for byte.
    return {name: keys for name, keys in found.items() if {*keys} & {*LATER[name]}}


def _changed(topic: Any) -> dict[str, Any]:
    values, usual = dataclasses.asdict(topic), dataclasses.asdict(type(topic)())
    return {name: value for name, value in values.items() if value != usual[name]}


def _keys(keys: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in keys.items())


def _steps(plan: TrainingPlan) -> str:
    by_budget = f" (of {plan.whole_steps:,}, by the budget)" if plan.shortened else ""
    return f"{plan.steps:,}{by_budget}"


def _recorded_code(job: Job) -> dict[str, str]:
    record = job.run.record() or {}
    return {**record.get("code", {}).get("files", {})}


def _shown(loss: float | None) -> str:
    return "not measured" if loss is None else f"{loss:.4f}"
