"""The reference's two APIs: what its users' scripts send, and what they get."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import pipeline

from trainer.models import load_model, load_tokenizer

PROMPT = "The sheriff rode"
V2 = "/v2/models/final/infer"
TENSOR = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["A"]}


@pytest.fixture(scope="module")
def pipe(volume: Path) -> Any:
    """What the reference had behind its endpoints."""
    folder = volume / "tales/final"
    return pipeline("text-generation", model=load_model(folder), tokenizer=load_tokenizer(folder))


def completion(client: httpx.Client, **body: Any) -> list[str]:
    response = client.post("/completion", json={"prompt": PROMPT, **body})
    assert response.status_code == 200, response.text
    return [answer["generated_text"] for answer in response.json()]


def predict(client: httpx.Client, instances: list[str], **parameters: Any) -> list[list[str]]:
    body = {"parameters": parameters, "instances": instances}
    response = client.post("/v1/models/final:predict", json=body)
    assert response.status_code == 200, response.text
    return [[a["generated_text"] for a in answers] for answers in response.json()["predictions"]]


def test_predict_answers_each_instance_as_the_pipeline_does(
    client: httpx.Client, pipe: Any
) -> None:
    instances = [PROMPT, "Dust", "“Where is he?” asked the café owner"]
    parameters = {"min_length": 40, "max_length": 60, "repetition_penalty": 1.2}
    expected = [
        [a["generated_text"] for a in answers]
        for answers in pipe(instances, max_new_tokens=None, do_sample=False, **parameters)
    ]
    assert predict(client, instances, **parameters) == expected


def test_predict_takes_a_body_without_a_content_type_as_plain_curl_sends_it(
    client: httpx.Client,
) -> None:
    body = json.dumps({"instances": [PROMPT], "parameters": {"max_new_tokens": 5}})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    sent = client.post("/v1/models/final:predict", content=body, headers=headers)
    assert sent.json()["predictions"][0][0]["generated_text"].startswith(PROMPT)


def test_predict_samples_where_a_setting_asks_for_it_and_a_seed_repeats_it(
    client: httpx.Client,
) -> None:
    settings = {"top_p": 0.9, "max_new_tokens": 15, "num_return_sequences": 3, "seed": 4}
    (first,) = predict(client, [PROMPT], **settings)
    assert predict(client, [PROMPT], **settings) == [first]
    assert len(set(first)) == 3
    greedy = {"max_new_tokens": 15}
    assert predict(client, [PROMPT], **greedy) == predict(client, [PROMPT], **greedy)


def test_v2_protocol_answers_the_same(client: httpx.Client) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2], "data": [PROMPT, "Dust"]}
    body = {"id": "42", "inputs": [tensor], "parameters": {"max_new_tokens": 6}}
    answer = client.post(V2, json=body).json()
    assert answer["id"] == "42"
    assert answer["outputs"][0]["shape"] == [2]
    expected = predict(client, [PROMPT, "Dust"], max_new_tokens=6)
    assert answer["outputs"][0]["data"] == [texts[0] for texts in expected]
    del body["id"]  # V2 asks for none
    assert client.post(V2, json=body).json()["outputs"] == answer["outputs"]


def test_completion_defaults_are_the_references(client: httpx.Client) -> None:
    (text,) = completion(client, temperature=0.0001, top_k=None)
    assert text == predict(client, [PROMPT], max_new_tokens=10)[0][0]


def test_completion_without_sampling_is_the_pipelines(client: httpx.Client, pipe: Any) -> None:
    settings = {"max_new_tokens": 25, "do_sample": False, "repetition_penalty": 1.5}
    (expected,) = pipe(PROMPT, **settings)
    assert completion(client, **settings) == [expected["generated_text"]]


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.0001},
        {"top_p": 0.0001},
        {"top_k": 1},
        {"do_sample": False},
    ],
)
def test_completion_setting_that_leaves_one_choice_is_greedy(
    client: httpx.Client, setting: dict[str, Any]
) -> None:
    (greedy,) = predict(client, [PROMPT], max_new_tokens=30)[0]
    assert completion(client, max_new_tokens=30, **setting) == [greedy]


def test_completion_typical_p_and_penalty_alpha_change_the_choice(client: httpx.Client) -> None:
    typical = {tuple(completion(client, max_new_tokens=4, typical_p=0.0001)) for _ in range(4)}
    assert len(typical) == 1
    (greedy,) = predict(client, [PROMPT], max_new_tokens=20)[0]
    contrastive = completion(client, max_new_tokens=20, penalty_alpha=0.6, top_k=4)
    assert contrastive == completion(client, max_new_tokens=20, penalty_alpha=0.6, top_k=4)
    assert contrastive != [greedy]


def test_completion_stops_behind_its_stop_sequence(client: httpx.Client) -> None:
    (whole,) = completion(client, max_new_tokens=40, do_sample=False)
    stop = whole[len(PROMPT) + 8 : len(PROMPT) + 10]
    (cut,) = completion(client, max_new_tokens=40, do_sample=False, stop_sequence=stop)
    assert cut == whole[: whole.index(stop, len(PROMPT)) + len(stop)]


def test_completion_keeps_bad_words_out_as_the_pipeline_does(
    client: httpx.Client, pipe: Any
) -> None:
    settings = {"max_new_tokens": 30, "do_sample": False}
    (whole,) = completion(client, **settings)
    words = sorted({c for c in whole[len(PROMPT) :] if c.isascii() and c.isprintable()} - {" "})
    forms = [form for word in words for form in (word, " " + word)]
    ids = [pipe.tokenizer(form)["input_ids"] for form in forms]
    (expected,) = pipe(PROMPT, bad_words_ids=ids, **settings)
    assert completion(client, bad_words=words, **settings) == [expected["generated_text"]]
    assert expected["generated_text"] != whole


def test_completion_returns_as_many_sequences_as_asked(client: httpx.Client) -> None:
    texts = completion(client, max_new_tokens=12, num_return_sequences=5)
    assert len(texts) == 5
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/completion", {}, "prompt is required"),
        ("/completion", {"prompt": 5}, "prompt should be a valid string"),
        ("/completion", {"prompt": "a", "top_p": 0}, "top_p should be greater than 0"),
        ("/completion", {"prompt": "a", "top_p": 1.5}, "less than or equal to 1"),
        ("/completion", {"prompt": "a", "temperature": 0}, "temperature should be greater"),
        ("/completion", {"prompt": "a", "max_new_tokens": 0}, "max_new_tokens should be greater"),
        ("/completion", {"prompt": "a", "max_new_tokens": 999}, "256 tokens"),
        ("/completion", {"prompt": "a", "bad_words": [""]}, "bad_words"),
        ("/completion", {"prompt": "a", "penalty_alpha": 0.6, "do_sample": True}, "do_sample"),
        ("/completion", {"prompt": "a", "penalty_alpha": 0.6, "top_k": 1}, "top_k"),
        ("/completion", {"prompt": "a", "max_tokens": 5}, "Did you mean max_new_tokens"),
        ("/completion", {"prompt": "a", "top_k": True}, "top_k should be a valid integer"),
        ("/v1/models/final:predict", {}, "instances is required"),
        ("/v1/models/final:predict", {"instances": []}, "instances is empty"),
        ("/v1/models/final:predict", {"instances": "a"}, "instances"),
        ("/v1/models/final:predict", {"instances": ["a"] * 65}, "64"),
        ("/v1/models/final:predict", {"instances": [{"text": "a"}]}, "instances"),
        (
            "/v1/models/final:predict",
            {"instances": ["a"], "parameters": {"max_lenght": 5}},
            "Did you mean max_length",
        ),
        (
            "/v1/models/final:predict",
            {"instances": ["The sheriff rode"], "parameters": {"max_length": 3}},
            "max_length leaves no room",
        ),
        (
            "/v1/models/final:predict",
            {"instances": ["a"], "parameters": {"min_length": 50, "max_length": 20}},
            "min_length is more",
        ),
        (
            V2,
            {"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [1]}]},
            "BYTES",
        ),
        (V2, {"inputs": [{**TENSOR, "shape": [3]}]}, "inputs holds no texts of its shape"),
        (V2, {"inputs": [{**TENSOR, "data": [5]}]}, "inputs holds what is no text (got 5)"),
        (V2, {"inputs": [{**TENSOR, "name": 1}]}, "inputs[0].name should be a valid string"),
        (V2, {}, "inputs is required"),
        (V2, [1], "the body is not a JSON object (got list)"),
    ],
)
def test_bad_request_is_a_4xx_that_names_the_field(
    client: httpx.Client, path: str, body: Any, words: str
) -> None:
    response = client.post(path, json=body)
    assert 400 <= response.status_code < 500
    assert words in response.json()["error"]


def test_unknown_model_and_path_are_404(client: httpx.Client) -> None:
    unknown = client.post("/v1/models/other:predict", json={"instances": ["a"]})
    assert unknown.status_code == 404
    assert "other" in unknown.json()["error"]
    assert client.get("/nowhere").status_code == 404
    assert client.get("/completion").status_code == 405


def binary_of(*texts: str) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(len(text).to_bytes(4, "little") + text for text in encoded)


def infer_binary(
    client: httpx.Client, data: bytes, size: Any, head_size: Any = None, **more: Any
) -> httpx.Response:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2]}
    tensor |= {"parameters": {"binary_data_size": size}}
    settings = {"max_new_tokens": 6, **more}
    head = json.dumps({"id": "42", "inputs": [tensor], "parameters": settings}).encode()
    given = len(head) if head_size is None else head_size
    headers = {"Inference-Header-Content-Length": str(given)}
    return client.post(V2, content=head + data, headers=headers)


def test_v2_takes_and_gives_binary_tensors(client: httpx.Client) -> None:
    expected = [texts[0] for texts in predict(client, [PROMPT, "café"], max_new_tokens=6)]
    data = binary_of(PROMPT, "café")
    plain = infer_binary(client, data, len(data)).json()
    assert plain["outputs"][0]["data"] == expected
    given = infer_binary(client, data, len(data), binary_data_output=True)
    size = int(given.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(given.content[:size])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(given.content) - size
    assert given.content[size:] == binary_of(*expected)


@pytest.mark.parametrize(
    ("data", "size", "head_size"),
    [
        (binary_of("A", "B"), 9, None),
        (binary_of("A", "B"), 11, None),
        (binary_of("A", "B"), -1, None),
        (binary_of("A", "B"), 10**30, None),
        (binary_of("A", "B")[:-1], 9, None),
        (b"\xff\xff\xff\xffAAAA", 8, None),
        (b"\x01\x00", 2, None),
        (binary_of("A"), 5, None),
        (b"\x01\x00\x00\x00\xff" * 2, 10, None),
        (binary_of("A", "B"), 10, 10**9),
        (binary_of("A", "B"), 10, -1),
        (binary_of("A", "B"), 10, "9" * 5000),
        (binary_of("A", "B"), 10, 0),
    ],
)
def test_wrong_binary_sizes_are_refused(
    client: httpx.Client, data: bytes, size: Any, head_size: Any
) -> None:
    refused = infer_binary(client, data, size, head_size)
    assert refused.status_code == 400
    assert refused.json()["error"]
