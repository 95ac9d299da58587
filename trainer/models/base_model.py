"""The base model of a run: its weights from wherever they are, its embeddings as many as needed."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.loading import empty_model, load_model
from trainer.models.tensorized import load_tensorized

NOISE = 1e-5**0.5  # of a column's spread: enough to tell new tokens apart, too little to say more


def load_base(
    folder: Path,
    *,
    tensorizer: str = "",
    num_ids: int = 0,
    seed: int = 0,
    filled_later: bool = False,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The model in `folder` with an embedding for each of `num_ids` token ids.

    Args:
        tensorizer: Where tensorizer's file with its weights is; empty: in the folder.
        num_ids: Of the tokenizer; the model keeps its own number where that is larger.
        seed: Of the numbers of embeddings that the model lacks.
        filled_later: Leave the weights without numbers, as a checkpoint has all of them.
        dtype: Precision to load in; None: the one it is stored in.
    Raises:
        RequestError: There are no weights, only ones that would run code, or another model's.
    """
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if filled_later:
        model = empty_model(folder, **options)
    elif tensorizer:
        model = load_tensorized(empty_model(folder, **options), tensorizer)
    else:
        model = load_model(folder, **options)
    grow_embeddings(model, num_ids, seed)
    return model


@torch.no_grad()
def grow_embeddings(model: Any, num_ids: int, seed: int) -> int:
    """Give the model an embedding for each of `num_ids` ids; how many it lacked.

    A new embedding is the mean of the others and a little noise, in the output layer too:
    so a token that was never seen is about as likely as the average one, and never
    the likeliest, before it is trained.

    Source: Hewitt, Initializing New Word Embeddings for Pretrained Language Models (2021).
    """
    before = model.get_input_embeddings().weight.shape[0]
    if num_ids <= before:
        return 0
    model.resize_token_embeddings(num_ids, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    _begin_at_mean(inputs.weight, before, generator)
    if isinstance(outputs, nn.Linear):
        if outputs.weight is not inputs.weight:
            _begin_at_mean(outputs.weight, before, generator)
        if outputs.bias is not None:
            outputs.bias[before:] = outputs.bias[:before].mean()
    return num_ids - before


def _begin_at_mean(weight: Tensor, before: int, generator: torch.Generator) -> None:
    """Make rows `before` on of a (V, D) weight from those before them."""
    known = weight[:before].float()
    spread, mean = torch.std_mean(known, dim=0)
    drawn = torch.randn((len(weight) - before, weight.shape[1]), generator=generator)
    weight[before:] = (mean + NOISE * spread * drawn).to(weight.dtype)
