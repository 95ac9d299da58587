"""Text from prompts: sampled, seeded, without touching torch's random state elsewhere."""

from typing import Any

import torch

from trainer.topics import SamplingConfig


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: list[str],
    sampling: SamplingConfig,
    seed: int,
    synced: bool = False,
) -> list[list[str]]:
    """What the model writes after each prompt, `prompt_samples` texts for each.

    Args:
        model: A causal language model of transformers.
        prompts: May be empty strings: the model then begins from its first token.
        seed: The same seed gives the same texts, whatever was drawn before.
        synced: All processes of a partitioned model take part until the last has ended.
    Returns:
        For each prompt its texts, without the prompt.
    """
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            return [
                _texts(model, tokenizer, prompt, sampling, seed + number, synced)
                for number, prompt in enumerate(prompts)
            ]
    finally:
        model.train(was_training)


def _texts(
    model: Any, tokenizer: Any, prompt: str, sampling: SamplingConfig, seed: int, synced: bool
) -> list[str]:
    torch.manual_seed(seed)
    ids = prompt_ids(model, tokenizer, prompt, sampling.prompt_tokens)
    rows = torch.tensor([ids] * sampling.prompt_samples, device=model.device)
    out = model.generate(
        input_ids=rows,
        attention_mask=torch.ones_like(rows),
        do_sample=True,
        max_new_tokens=sampling.prompt_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=max(sampling.top_p, 1e-6),
        repetition_penalty=sampling.repetition_penalty,
        pad_token_id=_first(tokenizer.pad_token_id, tokenizer.eos_token_id, 0),
        use_cache=True,
        synced_gpus=synced,
    )
    return tokenizer.batch_decode(out[:, len(ids) :], skip_special_tokens=True)


def prompt_ids(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> list[int]:
    """The prompt's ids, its beginning cut off where prompt and answer would not fit."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = ids or [_first(tokenizer.bos_token_id, tokenizer.eos_token_id, 0)]
    limit = getattr(model.config, "max_position_embeddings", None)
    room = max(1, limit - new_tokens) if limit else len(ids)
    return ids[-room:]


def read_prompts(text: str) -> list[str]:
    """The prompts of a prompt file: one a line, `\\n` for a line break within one."""
    return [line.replace("\\n", "\n") for line in text.splitlines() if line.strip()]


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
