"""What a Hugging Face model folder holds, and what speaks against training it.

Reads config.json, the tokenizer's files and the headers of the weights; imports
neither torch nor transformers and runs none of the folder's code.
"""

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json
from trainer.fetch.config_checks import config_problems
from trainer.fetch.weights import Tensor, count_parameters, read_tensors, weight_files
from trainer.planning.model_shape import ModelShape, positions_of, text_part

# Names of the tensor that turns token ids into vectors, by what they end with:
# GPT-2, Neo and J; Llama and most others; NeoX; Bloom and Falcon; Mamba.
_EMBEDDINGS = (
    "wte.weight",
    "embed_tokens.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "backbone.embeddings.weight",
)


@dataclass(frozen=True)
class ModelFacts:
    """A model that can be trained, as far as its files tell."""

    folder: Path
    bytes: int
    """Size of the weight files."""
    parameters: int
    context_limit: int | None
    """Most tokens in a context; None: the model names no limit."""
    embeddings: int | None
    """Token ids it has vectors for; None: not told."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """By name; empty where its weights are not in the folder."""


def read_model(
    folder: Path, trust_remote_code: bool = False, weights_elsewhere: int | None = None
) -> ModelFacts:
    """Look at the model in `folder`.

    Args:
        weights_elsewhere: Bytes of its weights where those are not in the folder.
    Raises:
        RequestError: With everything that is wrong with it.
    """
    config = read_config(folder)
    problems = _code_problems(folder, config, trust_remote_code)
    if weights_elsewhere is not None:
        problems += config_problems(folder.name, config, {})
        if problems:
            raise RequestError(*problems)
        return _described(folder, config, weights_elsewhere)
    try:
        tensors = read_tensors(folder)
    except ValueError as error:
        problems += config_problems(folder.name, config, {})
        raise RequestError(*problems, f"model {folder.name} {error}.") from error
    problems += config_problems(folder.name, config, tensors)
    problems += shape_problems(folder.name, config, tensors)
    if problems:
        raise RequestError(*problems)
    return ModelFacts(
        folder=folder,
        bytes=sum(path.stat().st_size for path in weight_files(folder)),
        parameters=count_parameters(tensors),
        context_limit=context_limit(config),
        embeddings=_embeddings(config, tensors),
        tensors=tensors,
    )


def _described(folder: Path, config: dict[str, Any], weight_bytes: int) -> ModelFacts:
    """A model as its config.json alone tells."""
    try:
        parameters = ModelShape.from_config(config).parameters
    except ValueError as error:
        raise RequestError(f"model {folder.name}: {error}") from error
    return ModelFacts(
        folder=folder,
        bytes=weight_bytes,
        parameters=parameters,
        context_limit=context_limit(config),
        embeddings=_embeddings(config, {}),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of the model in `folder`.

    Raises:
        RequestError: There is none, or it is damaged.
    """
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(
            f"model {folder.name} has no config.json (got {folder}). "
            "A model's folder holds config.json, safetensors weights and a tokenizer."
        ) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"model {folder.name} has a damaged config.json ({error}).") from error
    if not isinstance(config, dict):
        raise RequestError(f"model {folder.name} has a config.json that is no JSON object.")
    return config


def context_limit(config: dict[str, Any]) -> int | None:
    """Most tokens that the model of a config.json takes, or None where it names no limit."""
    return positions_of(config)


def shape_problems(name: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> list[str]:
    """Whether the embedding is of another size than the config says."""
    part = text_part(config)
    width = next((part[n] for n in ("hidden_size", "n_embd", "d_model") if part.get(n)), None)
    expected = (part.get("vocab_size"), part.get("word_embed_proj_dim") or width)
    for key in sorted(tensors, key=len):
        shape = tensors[key].shape
        if not key.endswith(_EMBEDDINGS) or len(shape) != 2 or "per_layer" in key:
            continue
        if any(e is not None and e != s for e, s in zip(expected, shape, strict=True)):
            return [
                f"model {name} has weights of another shape than its config.json says (got "
                f"{shape[0]} x {shape[1]} for {key}; the config says {expected[0]} tokens of width "
                f"{expected[1]}). Bring the config.json that belongs to the weights."
            ]
        return []
    return []


def _embeddings(config: dict[str, Any], tensors: dict[str, Tensor]) -> int | None:
    for name in sorted(tensors, key=len):
        if name.endswith(_EMBEDDINGS) and len(tensors[name].shape) == 2:
            return tensors[name].shape[0]
    return text_part(config).get("vocab_size")


def _code_problems(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> list[str]:
    """What speaks against the code that the model needs."""
    kind = str(config.get("model_type", ""))
    if config.get("is_encoder_decoder"):
        return [
            f"model {folder.name} is an encoder-decoder (got model_type {kind!r}). "
            "Only causal language models are trained here. Take another model."
        ]
    if _known_to_transformers(kind):
        return []
    auto_map = config.get("auto_map")
    if not auto_map:
        version = importlib.metadata.version("transformers")
        return [
            f"model {folder.name} is of a kind that transformers {version} does not know "
            f"(got model_type {kind!r}). Take a model of a known kind."
        ]
    if not trust_remote_code:
        return [
            f"model {folder.name} needs code of its own, which is not run unasked "
            f"(got auto_map in its config.json). "
            "Read the code, then set trust_remote_code=true, or take another model."
        ]
    elsewhere = [str(code) for code in auto_map.values() if "--" in str(code)]
    if elsewhere:
        return [
            f"model {folder.name} needs code from another place (got {elsewhere[0]!r}). Only code "
            "in the model's own folder is run. Copy it there and correct auto_map in config.json."
        ]
    return []


def _known_to_transformers(kind: str) -> bool:
    # Its folder of models is looked at instead of importing it, which takes seconds.
    spec = importlib.util.find_spec("transformers")
    places = list(spec.submodule_search_locations or []) if spec else []
    name = {"openai-gpt": "openai"}.get(kind, kind.replace("-", "_"))
    # The text part of a model for text and pictures has its code in the model's folder.
    names = {name, name.removesuffix("_text")} - {""}
    return any((Path(place) / "models" / name).is_dir() for place in places for name in names)
