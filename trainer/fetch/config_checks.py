"""What config.json and the headers of the weights say against training a model; loads no torch.

The one place that decides it, before anything is loaded. What only the model's code can tell,
the model exam finds out (trainer/exam).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.fetch.weights import Tensor
from trainer.planning.model_shape import sizes_beyond_models, text_part

# Kinds that transformers makes causal only where the config says is_decoder.
# Source: transformers 5.23, "If you want to use ... as a standalone, add `is_decoder=True.`"
ENCODERS = frozenset(
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert reformer "
    "rembert roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod".split()
)
DTYPES = ("float32", "bfloat16", "float16", "float64")
_FLOATS = ("F32", "BF16", "F16", "F64")
_OBJECTS = ("rope_scaling", "rope_parameters")


def config_problems(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    """What stands in the way of training the model, a sentence each, with what to do.

    Args:
        name: Of the model's folder, for the message.
        config: Its config.json.
        tensors: Of its weight files, by name; empty where those are elsewhere.
    """
    yield from (f"model {name}: {wrong}" for wrong in sizes_beyond_models(text_part(config)))
    yield from _parts_that_are_no_objects(name, config)
    kind = str(config.get("model_type", ""))
    if kind in ENCODERS and not config.get("is_decoder"):
        yield (
            f"model {name} is an encoder (got model_type {kind!r} without is_decoder): each token "
            "sees the ones after it, so it cannot learn to predict them. Take a causal language "
            "model."
        )
    if quantized := config.get("quantization_config") or text_part(config).get(
        "quantization_config"
    ):
        method = quantized.get("quant_method") if isinstance(quantized, Mapping) else quantized
        yield (
            f"model {name} has quantized weights (got quant_method {method!r}). They cannot be "
            "trained. Take the model they were made from, in bfloat16, float16 or float32."
        )
        return  # its weights' types and shapes follow from that
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        yield (
            f"model {name} is stored in a type that cannot be trained (got dtype {dtype!r}). "
            f"Known are {', '.join(DTYPES)}. Convert the weights, or correct config.json."
        )
    yield from _weight_problems(name, config, tensors)
    yield from _router_problems(name, text_part(config))


def _parts_that_are_no_objects(name: str, config: Mapping[str, Any]) -> Iterator[str]:
    for key, value in [*config.items(), *text_part(config).items()]:
        is_part = key in _OBJECTS or key.endswith("_config")
        if is_part and value is not None and not isinstance(value, Mapping):
            yield (
                f"model {name} has a config.json whose {key} is not an object (got {value!r:.60}). "
                "Bring the model's own config.json."
            )
            return


def _weight_problems(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Iterator[str]:
    odd = [
        (key, tensor.dtype)
        for key, tensor in sorted(tensors.items())
        if key.endswith("weight") and len(tensor.shape) > 1 and tensor.dtype not in _FLOATS
    ]
    if odd:
        yield (
            f"model {name} has {len(odd)} weights of a type that cannot be trained (got "
            f"{odd[0][1]} for {odd[0][0]}). Types are {', '.join(_FLOATS)}. If they are quantized, "
            "take the model they were made from."
        )


def _router_problems(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    share = part.get("router_aux_loss_coef") or part.get("aux_loss_alpha") or 0
    if part.get("output_router_logits") and share:
        yield (
            f"model {name} asks for its router's auxiliary loss (got output_router_logits true and "
            f"a coefficient of {share} in its config.json), which is not computed here. Set "
            "output_router_logits to false to train without it."
        )
