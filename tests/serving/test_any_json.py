"""Any JSON value in any field of any route: read, or refused with a sentence that names it."""

import json
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.serving import tiny_models
from trainer.serving.api.bodies import ApiError
from trainer.serving.api.openai_chat import ChatBody
from trainer.serving.api.openai_completions import CompletionsBody
from trainer.serving.api.reference import CompletionBody, PredictBody, PredictParameters
from trainer.serving.engine.sampling import Sampling
from trainer.serving.read_requests import read_request
from trainer.serving.service import ServedModel
from trainer.serving.v2_infer import InferBody

INPUT = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["A"]}
GOOD: dict[str, dict[str, Any]] = {
    "completions": {"model": "final", "prompt": "A"},
    "chat": {"model": "final", "messages": [{"role": "user", "content": "A"}]},
    "completion": {"prompt": "A"},
    "predict": {"instances": ["A"]},
    "infer": {"inputs": [INPUT]},
}
BODIES: dict[str, Any] = {
    "completions": CompletionsBody,
    "chat": ChatBody,
    "completion": CompletionBody,
    "predict": PredictBody,
    "infer": InferBody,
}
PLACES = [
    *((kind, (name,)) for kind, body in BODIES.items() for name in body.__dataclass_fields__),
    *(("predict", ("parameters", name)) for name in PredictParameters.__dataclass_fields__),
    *(("infer", ("parameters", name)) for name in PredictParameters.__dataclass_fields__),
    *(("infer", ("inputs", 0, name)) for name in (*INPUT, "parameters")),
    *(("chat", ("messages", 0, name)) for name in ("role", "content", "name")),
]
NASTY = [
    1e-40, 1e300, -1e300, 5e-324, 1e-5, -0.0, 2**31, 2**63, -(2**63), 2**64, 10**4000, True,
    "\ud800", "a\udfff", {"\ud800": 1}, "\x00", "\u202e", "", " ", "9" * 5000, {"9" * 5000: 1},
    {"-1": 1}, {"٣": 1}, {"²": 1}, [], [[]], {}, [None], [""], [[1], ["a"]], [True], [0.5],
    {"": None}, [{}], ["a"] * 2000, [0] * 300, [-1], [299], [300], "w" * 5000,
    {"type": "text"}, {"type": "json_object"}, {"include_usage": True, "include_obfuscation": True},
    {"binary_data_size": 5}, {"binary_data_size": -1}, {"temperature": 1e-40},
]  # fmt: skip
JSON = st.sampled_from(NASTY) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def model() -> ServedModel:
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = tiny_models.CHAT_TEMPLATE
    return ServedModel(
        name="final",
        tokenizer=tokenizer,
        vocabulary=300,
        max_total_tokens=256,
        longest_token_bytes=13,
    )


def put(body: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of `body` with `value` at that place."""
    first, *rest = place
    old = body[first] if isinstance(body, list) else body.get(first)
    new = put({} if old is None else old, tuple(rest), value) if rest else value
    if isinstance(body, list):
        return [*body[:first], new, *body[first + 1 :]]
    return {**body, first: new}


@pytest.mark.parametrize(("kind", "place"), PLACES, ids=lambda v: str(v).replace(" ", ""))
@hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)
@hypothesis.given(value=JSON)
def test_any_value_is_read_or_refused_by_name(
    model: ServedModel, kind: str, place: tuple[Any, ...], value: Any
) -> None:
    body = json.dumps(put(GOOD[kind], place, value)).encode()
    try:
        read = read_request(model, kind, body, {})
    except ApiError as error:
        assert 400 <= error.status < 500
        assert len(error.message) < 1000
        error.message.encode()
    else:
        for sequence in sequences_of(read):
            check(sequence.sampling)
            assert 0 < len(sequence.prompt_ids) <= 256
            assert sequence.max_new_tokens + len(sequence.prompt_ids) <= 256


def sequences_of(read: Any) -> list[Any]:
    if hasattr(read, "requests"):
        return read.requests
    return read.texts.sequences if hasattr(read.texts, "sequences") else read.sequences


def check(sampling: Sampling) -> None:
    """Settings with which the engine computes numbers that mean something."""
    assert not sampling.do_sample or sampling.temperature >= 1e-5
    assert sampling.temperature <= 100
    assert 0.01 <= sampling.repetition_penalty <= 100
    assert sampling.seed is None or 0 <= sampling.seed < 2**63
    assert all(0 <= token < 300 for token in sampling.logit_bias)


@pytest.mark.parametrize("kind", GOOD)
@hypothesis.settings(max_examples=200, deadline=None, database=None, derandomize=True)
@hypothesis.given(body=st.binary(max_size=40) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_body_is_read_or_refused(model: ServedModel, kind: str, body: bytes) -> None:
    with pytest.raises(ApiError) as refused:  # none of them has what is required
        read_request(model, kind, body, {})
    assert refused.value.status == 400


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"prompt":['])
def test_a_body_nested_without_end_is_refused(model: ServedModel, kind: str, opening: str) -> None:
    for depth in (90, 400, 900, 100_000):
        with pytest.raises(ApiError) as refused:
            read_request(model, kind, opening.encode() * depth, {})
        assert refused.value.status == 400
        closing = "".join({"[": "]", "{": "}"}.get(c, "") for c in reversed(opening))
        nested = f'"nested": {opening * depth}1{closing * depth}'
        text = json.dumps({**GOOD[kind], "nested": 0}).replace('"nested": 0', nested)
        if kind == "infer" and depth < 240:  # V2's clients may send what we do not know
            continue
        with pytest.raises(ApiError) as refused:
            read_request(model, kind, text.encode(), {})
        assert refused.value.status == 400


def binary(texts: list[bytes]) -> bytes:
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


@hypothesis.settings(max_examples=300, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    size=st.integers(-3, 40) | st.none(),
    shape=st.lists(st.integers(-2, 4), max_size=3),
    length=st.integers(0, 300).map(str) | st.text(max_size=6),
    data=st.binary(max_size=30) | st.lists(st.binary(max_size=5), max_size=3).map(binary),
)
def test_any_sizes_of_a_binary_tensor_are_read_or_refused(
    model: ServedModel, size: int | None, shape: list[int], length: str, data: bytes
) -> None:
    tensor = {**INPUT, "shape": shape, "parameters": {"binary_data_size": size}}
    del tensor["data"]
    head = json.dumps({"inputs": [tensor]}).encode()
    for given in (length, str(len(head))):
        with_size = {"inference-header-content-length": given}
        try:
            read_request(model, "infer", head + data, with_size)
        except ApiError as error:
            assert error.status == 400
