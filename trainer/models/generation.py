"""Text from prompts: sampled, seeded, without touching torch's random state elsewhere."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from trainer.contract.step_configs import SamplingConfig
from trainer.decoding import decoded_answer
from trainer.planning.gates import most_sample_tokens
from trainer.planning.model_shape import positions_of
from trainer.tokens.model_tokenizer import encode_prompt


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]],
    sampling: SamplingConfig,
    seed: int,
    synced: bool = False,
    end_ids: Sequence[int] = (),
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[str]]:
    """What the model writes after each prompt, `prompt_samples` texts for each.

    Args:
        model: A causal language model of transformers.
        prompts: Texts, or ids. May be empty strings: the model then begins from its first token.
        seed: The same seed gives the same texts, whatever was drawn before.
        synced: All processes of a partitioned model take part until the last has ended.
        end_ids: What ends a text; empty: as the model's settings say.
        on_token: Told how many tokens of how many are written, counted for one text of each prompt.
    Returns:
        For each prompt its texts, without the prompt.
    """
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            return [
                _texts(
                    model,
                    tokenizer,
                    prompt,
                    sampling,
                    seed + number,
                    synced,
                    end_ids,
                    _Counting(on_token, number, len(prompts)) if on_token else None,
                )
                for number, prompt in enumerate(prompts)
            ]
    finally:
        model.train(was_training)


class _Counting(BaseStreamer):  # type: ignore[misc]  # transformers' has no types
    """Counts the tokens of the texts of prompt `number`, which are written side by side."""

    def __init__(self, told: Callable[[int, int], None], number: int, prompts: int) -> None:
        self._told, self._number, self._prompts = told, number, prompts
        self._done, self.most = -1, 0  # the first that comes is the prompt

    def put(self, value: torch.Tensor) -> None:
        self._done += 1
        self._told(self._number * self.most + self._done, self._prompts * self.most)

    def end(self) -> None:
        self._told((self._number + 1) * self.most, self._prompts * self.most)


def _texts(
    model: Any,
    tokenizer: Any,
    prompt: str | Sequence[int],
    sampling: SamplingConfig,
    seed: int,
    synced: bool,
    end_ids: Sequence[int],
    counting: _Counting | None,
) -> list[str]:
    torch.manual_seed(seed)
    new_tokens = most_new_tokens(model, sampling.prompt_tokens)
    if counting is not None:
        counting.most = new_tokens
    ids = prompt_ids(model, tokenizer, prompt, new_tokens)
    rows = torch.tensor([ids] * sampling.prompt_samples, device=model.device)
    out = model.generate(
        input_ids=rows,
        attention_mask=torch.ones_like(rows),
        do_sample=True,
        max_new_tokens=new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=max(sampling.top_p, 1e-6),
        repetition_penalty=sampling.repetition_penalty,
        **({"eos_token_id": list(end_ids)} if end_ids else {}),
        pad_token_id=_first(tokenizer.pad_token_id, tokenizer.eos_token_id, 0),
        use_cache=True,
        synced_gpus=synced,
        streamer=counting,
    )
    return [decoded_answer(tokenizer, ids, row[len(ids) :]) for row in out.tolist()]


def most_new_tokens(model: Any, asked: int) -> int:
    """`asked`, or what fits beside one token of prompt into the model's positions."""
    return most_sample_tokens(positions_of(model.config.to_dict()), asked)


def prompt_ids(
    model: Any, tokenizer: Any, prompt: str | Sequence[int], new_tokens: int
) -> list[int]:
    """The prompt's ids, its beginning cut off where prompt and answer would not fit."""
    ids = encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else list(prompt)
    ids = ids or [_first(tokenizer.bos_token_id, tokenizer.eos_token_id, 0)]
    limit = positions_of(model.config.to_dict())
    room = max(1, limit - new_tokens) if limit else len(ids)
    return ids[-room:]


def read_prompts(text: str) -> list[str]:
    """The prompts of a prompt file: one a line, `\\n` for a line break within one."""
    return [line.replace("\\n", "\n") for line in text.splitlines() if line.strip()]


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
