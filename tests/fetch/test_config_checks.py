"""What config.json and the headers of the weights say against training a model."""

from typing import Any

import pytest

from trainer.contract.errors import RequestError
from trainer.contract.step_configs import FinetuneConfig
from trainer.contract.validation import load_json
from trainer.fetch.config_checks import config_problems
from trainer.fetch.model_folder import shape_problems
from trainer.fetch.weights import Tensor
from trainer.planning.model_shape import positions_of

EMBEDDING = "model.embed_tokens.weight"
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 8,
    "max_position_embeddings": 64,
}


def problems(tensors: dict[str, Tensor] | None = None, **changes: Any) -> str:
    found = tensors if tensors is not None else {EMBEDDING: Tensor("F32", (64, 8))}
    config = {**LLAMA, **changes}
    return " ".join(
        [*config_problems("tiny", config, found), *shape_problems("tiny", config, found)]
    )


def test_an_ordinary_model_is_accepted() -> None:
    mask = {"h.0.attn.bias": Tensor("U8", (1, 1, 8, 8)), EMBEDDING: Tensor("BF16", (64, 8))}
    assert problems(mask, dtype="bfloat16") == ""


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "electra"])
def test_an_encoder_is_refused_unless_its_config_makes_it_a_decoder(kind: str) -> None:
    assert f"is an encoder (got model_type '{kind}'" in problems(model_type=kind)
    assert problems(model_type=kind, is_decoder=True) == ""


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8", "mxfp4"])
def test_quantized_weights_are_refused_by_their_method(method: str) -> None:
    said = problems(quantization_config={"quant_method": method})
    assert f"has quantized weights (got quant_method '{method}')" in said
    inside = {**LLAMA, "quantization_config": {"quant_method": method}}
    assert f"(got quant_method '{method}')" in problems(text_config=inside)


def test_quantized_weights_are_refused_though_the_config_does_not_name_them() -> None:
    said = problems({"model.layers.0.mlp.weight": Tensor("I8", (8, 8))})
    assert "1 weights of a type that cannot be trained (got I8 for model.layers.0.mlp" in said


@pytest.mark.parametrize("key", ["text_config", "vision_config", "rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("value", ["llama", 3, [{}]])
def test_a_part_that_is_no_object_is_refused(key: str, value: Any) -> None:
    assert f"whose {key} is not an object (got {value!r})" in problems(**{key: value})
    assert problems(**{key: None}) == ""


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8", "auto", 3])
def test_an_odd_dtype_is_refused(dtype: Any) -> None:
    assert f"(got dtype {dtype!r})" in problems(dtype=dtype)


def test_weights_of_another_shape_than_the_config_says_are_refused() -> None:
    assert "got 65 x 8 for model.embed_tokens.weight" in problems(
        {EMBEDDING: Tensor("F32", (65, 8))}
    )
    assert "got 64 x 9 for model.embed_tokens.weight" in problems(
        {EMBEDDING: Tensor("F32", (64, 9))}
    )


def test_a_router_loss_that_is_asked_for_is_refused() -> None:
    assert problems(output_router_logits=False, router_aux_loss_coef=0.02) == ""
    said = problems(output_router_logits=True, router_aux_loss_coef=0.02)
    assert "asks for its router's auxiliary loss" in said


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({}, 64),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 128),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 64),
        (
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
            256,
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 4,
                }
            },
            64,
        ),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 64),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, 128),
    ],
)
def test_positions_count_what_rope_scaling_adds(changes: dict[str, Any], positions: int) -> None:
    assert positions_of({**LLAMA, **changes}) == positions


@pytest.mark.parametrize("rate", ["Infinity", "NaN"])
def test_a_rate_that_is_no_number_is_refused(rate: str) -> None:
    names = ("volume", "run_name", "model", "tokens")
    text = "{" + "".join(f'"{name}": "x", ' for name in names) + f'"learn_rate": {rate}' + "}"
    with pytest.raises(RequestError, match="learn_rate should be a finite number"):
        load_json(FinetuneConfig, text, "the config")
