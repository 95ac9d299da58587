"""OpenAI's own Python client against the server, and what it may not ask."""

import math
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from infra.local.service import Service
from tests.serving import tiny_models
from trainer.models import load_model, load_tokenizer

PROMPT = "The sheriff rode"


@pytest.fixture(scope="module")
def api(service: Service) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(
        base_url=f"{service.url}/v1", api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


@pytest.fixture(scope="module")
def model(volume: Path) -> Any:
    return load_model(volume / "tales/final")


@pytest.fixture(scope="module")
def tokenizer(volume: Path) -> Any:
    return load_tokenizer(volume / "tales/final")


def test_completion_has_openais_fields_and_the_models_text(
    api: openai.OpenAI, model: Any, tokenizer: Any
) -> None:
    done = api.completions.create(model="final", prompt=PROMPT, max_tokens=20, temperature=0)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    expected = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[0]
    assert PROMPT + done.choices[0].text == tokenizer.decode(expected, skip_special_tokens=True)
    assert done.object == "text_completion"
    assert done.model == "final"
    assert done.choices[0].finish_reason == "length"
    assert done.usage is not None
    assert done.usage.prompt_tokens == ids.shape[1]
    assert done.usage.completion_tokens == 20
    assert done.usage.total_tokens == ids.shape[1] + 20


def test_stream_brings_the_same_pieces_and_the_usage_last(api: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "final", "prompt": [PROMPT, "Dust"], "max_tokens": 15}
    whole = api.completions.create(**settings, seed=3, n=2)
    texts = ["", "", "", ""]
    finished = {}
    chunks = list(
        api.completions.create(
            **settings, seed=3, n=2, stream=True, stream_options={"include_usage": True}
        )
    )
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            finished[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert finished == {c.index: c.finish_reason for c in whole.choices}
    assert chunks[-1].usage == whole.usage
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_seed_repeats_an_answer_and_choices_of_one_request_differ(api: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str]:
        done = api.completions.create(
            model="final", prompt=PROMPT, n=3, max_tokens=12, seed=seed, top_p=0.9
        )
        return [choice.text for choice in done.choices]

    assert texts(7) == texts(7)
    assert texts(7) != texts(8)
    assert len(set(texts(7))) == 3


def test_stop_is_cut_off_and_named_as_the_reason(api: openai.OpenAI) -> None:
    whole = api.completions.create(model="final", prompt=PROMPT, max_tokens=40, temperature=0)
    stop = whole.choices[0].text[12:14]
    cut = api.completions.create(
        model="final", prompt=PROMPT, max_tokens=40, temperature=0, stop=["never", stop]
    )
    text = whole.choices[0].text
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_echo_with_logprobs_streams_what_it_gives_whole(api: openai.OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "final",
        "prompt": PROMPT,
        "max_tokens": 8,
        "echo": True,
        "logprobs": 3,
        "temperature": 0,
    }
    (whole,) = api.completions.create(**settings).choices
    assert whole.text.startswith(PROMPT)
    assert whole.logprobs is not None
    scored = whole.logprobs
    assert scored.token_logprobs and scored.tokens and scored.text_offset and scored.top_logprobs
    assert scored.token_logprobs[0] is None
    for token, logprob, top in zip(
        scored.tokens[1:], scored.token_logprobs[1:], scored.top_logprobs[1:], strict=True
    ):
        assert len(top) <= 3
        assert max(top.values()) >= logprob
        if token in top:
            assert top[token] == pytest.approx(logprob)
    assert scored.text_offset[0] == 0
    text, tokens, offsets = "", [], []
    for chunk in api.completions.create(**settings, stream=True):
        text += chunk.choices[0].text
        if chunk.choices[0].logprobs:
            tokens += chunk.choices[0].logprobs.tokens or []
            offsets += chunk.choices[0].logprobs.text_offset or []
    assert text == whole.text
    assert tokens == scored.tokens
    assert offsets == scored.text_offset


def test_perplexity_through_the_endpoint_is_the_models_own(
    api: openai.OpenAI, model: Any, tokenizer: Any
) -> None:
    contexts = [tokenizer(tiny_models.TEXT * n)["input_ids"][: 60 * n] for n in (1, 2, 4)]
    done = api.completions.create(
        model="final", prompt=contexts, max_tokens=0, echo=True, logprobs=0
    )
    for ids, choice in zip(contexts, done.choices, strict=True):
        assert choice.logprobs and choice.logprobs.token_logprobs
        scores = choice.logprobs.token_logprobs[1:]
        with torch.inference_mode():
            loss = float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
        assert math.exp(-sum(scores) / len(scores)) == pytest.approx(math.exp(loss), rel=1e-5)


def test_best_of_returns_the_likeliest(api: openai.OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "final", "prompt": PROMPT, "max_tokens": 6, "seed": 1, "logprobs": 0
    }  # fmt: skip

    def mean(choice: Any) -> float:
        values = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    four = sorted(api.completions.create(**settings, n=4).choices, key=mean, reverse=True)
    best = api.completions.create(**settings, n=2, best_of=4).choices
    assert [c.text for c in best] == [c.text for c in four[:2]]


def test_logit_bias_and_penalties_change_the_answer(api: openai.OpenAI, tokenizer: Any) -> None:
    settings: dict[str, Any] = {"model": "final", "prompt": PROMPT, "max_tokens": 20}
    dust = tokenizer("D")["input_ids"][0]
    biased = api.completions.create(**settings, temperature=0, logit_bias={str(dust): 100})
    assert biased.choices[0].text == "D" * 20
    spread = api.completions.create(
        **settings, temperature=0, logit_bias={str(dust): 5}, frequency_penalty=2
    )
    assert spread.choices[0].text.count("D") < 20


def test_chat_follows_the_template_and_streams_the_same(api: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    prompt = "system: Be short.\nuser: Hi\nassistant:"
    chat = api.chat.completions.create(
        model="final",
        messages=messages,
        max_completion_tokens=15,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    plain = api.completions.create(model="final", prompt=prompt, max_tokens=15, temperature=0)
    assert chat.choices[0].message.content == plain.choices[0].text
    assert chat.choices[0].logprobs is not None
    assert len(chat.choices[0].logprobs.content or []) == 15
    assert chat.usage == plain.usage
    deltas = [
        chunk.choices[0].delta.content or ""
        for chunk in api.chat.completions.create(
            model="final", messages=messages, max_tokens=15, temperature=0, stream=True
        )
    ]
    assert "".join(deltas) == plain.choices[0].text
    # The client's users continue with the answer as it came.
    messages += [chat.choices[0].message, {"role": "user", "content": "Go on"}]
    prompt += f" {plain.choices[0].text}\nuser: Go on\nassistant:"
    settings: dict[str, Any] = {"model": "final", "max_tokens": 5, "temperature": 0}
    chat = api.chat.completions.create(messages=messages, **settings)
    plain = api.completions.create(prompt=prompt, **settings)
    assert chat.choices[0].message.content == plain.choices[0].text


def test_a_prompt_that_is_left_out_is_the_beginning_of_a_document(client: httpx.Client) -> None:
    settings = {"model": "final", "max_tokens": 5, "temperature": 0, "echo": True}
    settings["return_token_ids"] = True
    asked = [{}, {"prompt": None}, {"prompt": ""}]
    answers = [client.post("/v1/completions", json={**settings, **a}).json() for a in asked]
    choices = [answer["choices"] for answer in answers]
    assert choices[0] == choices[1] == choices[2]
    assert choices[0][0]["prompt_token_ids"] == [0]


def test_models_are_listed_for_openais_client_and_for_kserves(
    api: openai.OpenAI, client: httpx.Client, service: Service
) -> None:
    (listed,) = api.models.list().data
    assert listed.id == "final"
    assert api.models.retrieve("final").id == "final"
    both = client.get("/v1/models").json()
    assert both["models"] == ["final"]
    assert both["data"][0]["digests"]["model"] == service.model_digest
    assert client.get("/v1/models/final").json()["ready"] is True


@pytest.mark.parametrize(
    ("change", "status", "param", "words"),
    [
        ({"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 10_000}, 400, "max_tokens", "may have 256 tokens"),
        ({"max_tokens": "5"}, 400, "max_tokens", "valid integer"),
        ({"temperature": 2.1}, 400, "temperature", "less than or equal to 2"),
        ({"n": 0}, 400, "n", "greater than or equal to 1"),
        ({"prompt": [PROMPT] * 40, "n": 2}, 400, "n", "at most|may have 64"),
        ({"prompt": {"text": "hi"}}, 400, "prompt", "prompt"),
        ({"prompt": []}, 400, "prompt", "empty"),
        ({"prompt": [5, 300]}, 400, "prompt", "0 to 299"),
        ({"prompt": "x" * 20_000}, 400, "prompt", "256 tokens"),
        ({"prompt": "dust " * 300}, 400, "prompt", "256 tokens"),
        ({"stop": list("abcde")}, 400, "stop", "At most 4"),
        ({"logprobs": 21}, 400, "logprobs", "less than or equal to 20"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias", "0 to 299"),
        ({"logit_bias": {"300": 1}}, 400, "logit_bias", "0 to 299"),
        ({"best_of": 1, "n": 2}, 400, "best_of", "less than n"),
        ({"best_of": 2, "stream": True}, 400, "best_of", "streamed"),
        ({"max_tokens": 0}, 400, "max_tokens", "echo"),
        ({"min_tokens": 9, "max_tokens": 8}, 400, "min_tokens", r"got 9, 8 at most"),
        ({"prompt": ["a", 5]}, 400, "prompt", "valid string"),
        ({"stream_options": {"usage": True}, "stream": True}, 400, "stream_options.usage", "not a"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format.type", "'text'"),
        ({"suffix": "the end"}, 400, "suffix", "suffix"),
        ({"temprature": 1}, 400, "temprature", "Did you mean temperature"),
        ({"model": "gpt-4"}, 404, "model", "Here is 'final'"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_request_names_the_field_and_its_range(
    client: httpx.Client,
    change: dict[str, Any],
    status: int,
    param: str,
    words: str,
    stream: bool,
) -> None:
    body = {"model": "final", "prompt": PROMPT, "stream": stream, **change}
    response = client.post("/v1/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == status
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert re.search(words, error["message"])


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "got 'robot'"),
        ({"messages": [{"role": "developer", "content": "hi"}]}, "messages", "template"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "is required"),
        (
            {"messages": [{"role": "user", "content": "", "x": 1}]},
            "messages[0].x",
            "not a parameter",
        ),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content", "got [{}]"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"tools": []}, "tools", "not a parameter"),
    ],
)
def test_bad_chat_names_the_field(
    client: httpx.Client, change: dict[str, Any], param: str, words: str
) -> None:
    body = {"model": "final", "messages": [{"role": "user", "content": "hi"}], **change}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert words in response.json()["error"]["message"]


def test_openais_client_raises_its_own_errors(api: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        api.completions.create(model="final", prompt=PROMPT, max_tokens=10_000)
    with pytest.raises(openai.NotFoundError, match="Here is 'final'"):
        api.completions.create(model="other", prompt=PROMPT)


def test_a_temperature_near_zero_is_the_likeliest_token(client: httpx.Client) -> None:
    def text(**setting: Any) -> str:
        body = {"model": "final", "prompt": PROMPT, "max_tokens": 20, **setting}
        return client.post("/v1/completions", json=body).json()["choices"][0]["text"]

    for temperature in (1e-40, 5e-324, 1e-7):
        assert text(temperature=temperature) == text(temperature=0)


@pytest.mark.parametrize("seed", [-1, -2, 2**63 - 1, -(2**63)])
def test_choices_differ_for_any_first_seed(client: httpx.Client, seed: int) -> None:
    body = {"model": "final", "prompt": PROMPT, "max_tokens": 12, "n": 3, "seed": seed}
    choices = [
        [choice["text"] for choice in client.post("/v1/completions", json=body).json()["choices"]]
        for _ in range(2)
    ]
    assert choices[0] == choices[1]
    assert len(set(choices[0])) == 3


@pytest.mark.parametrize(
    "harmless",
    [
        {"response_format": {"type": "text"}},
        {"store": True},
        {"store": False, "metadata": {"run": "7"}},
        {"user": "someone"},
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": True, "include_obfuscation": True}, "stream": True},
        {"stream_options": None},
    ],
)
def test_fields_that_change_no_answer_are_accepted(
    client: httpx.Client, harmless: dict[str, Any]
) -> None:
    usual = {"model": "final", "max_tokens": 3, "temperature": 0}
    messages = [{"role": "user", "content": "Hi"}]
    for path, asked in (
        ("completions", {"prompt": "A"}),
        ("chat/completions", {"messages": messages}),
    ):
        given = client.post(f"/v1/{path}", json={**usual, **asked, **harmless})
        plain = client.post(f"/v1/{path}", json={**usual, **asked})
        assert given.status_code == 200, given.text
        if "stream" not in harmless:
            assert given.json()["choices"] == plain.json()["choices"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("completions", {"prompt": "A", "logit_bias": {"9" * 5000: 1}}, "0 to 299"),
        ("completions", {"prompt": "A", "logit_bias": {"\u0663": 1}}, "0 to 299"),
        ("completions", {"prompt": "A", "repetition_penalty": 1e300}, "less than or equal to 100"),
        ("completions", {"prompt": "A", "repetition_penalty": 1e-300}, "equal to 0.01"),
        ("completions", {"prompt": "A", "response_format": {"type": "json_schema"}}, "'text'"),
        ("chat/completions", {"messages": [{"role": "user", "content": "zero"}]}, "ZeroDivision"),
    ],
)
def test_what_no_number_can_hold_is_refused(
    client: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    refused = client.post(f"/v1/{path}", json={"model": "final", **body})
    assert refused.status_code == 400
    assert words in refused.json()["error"]["message"]
    assert len(refused.text) < 1000


HALF = '"a\\ud800"'
BODIES = {
    "/completion": '{"prompt": HALF}',
    "/v1/models/final:predict": '{"instances": [HALF]}',
    "/v2/models/final/infer": '{"id": HALF, "inputs": []}',
    "/v1/completions": '{"model": "final", "prompt": "A", "user": HALF}',
    "/v1/chat/completions": '{"model": "final", "messages": [{"role": "user", "content": HALF}]}',
}


@pytest.mark.parametrize("path", BODIES)
def test_half_a_character_is_refused_by_name(client: httpx.Client, path: str) -> None:
    refused = client.post(path, content=BODIES[path].replace("HALF", HALF).encode())
    assert refused.status_code == 400
    assert r"\\ud800" in refused.text
    number = BODIES[path].replace("HALF", "1e999")
    assert "larger than any number" in client.post(path, content=number.encode()).text


def test_a_long_answer_with_logprobs_does_not_keep_health_waiting(client: httpx.Client) -> None:
    """Each of 16,000 tokens with its 20 likeliest: made beside the event loop."""
    body = {"model": "final", "prompt": [[7] * 250] * 64, "max_tokens": 0, "echo": True}
    body |= {"logprobs": 20}
    answered: list[httpx.Response] = []
    ask = threading.Thread(
        target=lambda: answered.append(client.post("/v1/completions", json=body))
    )
    ask.start()
    asked = 0
    with httpx.Client(base_url=client.base_url, timeout=240, trust_env=False) as other:
        while not answered:
            assert other.get("/v2/health/live").status_code == 200
            asked += 1
    ask.join()
    assert asked > 5
    choices = answered[0].json()["choices"]
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [250] * 64
