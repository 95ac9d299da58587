"""The engine against transformers' own `generate`, alone and with others in the batch."""

import dataclasses
import queue
import random
import threading
from typing import Any

import pytest
import torch

from tests.serving import tiny_models
from tests.serving.asking import END, ask, running
from trainer.serving.engine.engine import Engine, Limits, QueueFullError
from trainer.serving.engine.sampling import Sampling
from trainer.serving.engine.sequences import Event, SequenceRequest


def prompts(count: int, seed: int = 1) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [
        tuple(rng.randrange(1, 300) for _ in range(rng.choice([3, 10, 40, 70])))
        for _ in range(count)
    ]


def requests_for(
    prompt_ids: list[tuple[int, ...]], tokens: int = 30, **settings: Any
) -> list[SequenceRequest]:
    sampling = Sampling(**settings)
    return [
        SequenceRequest(prompt_ids=p, max_new_tokens=tokens + i, sampling=sampling, top_logprobs=0)
        for i, p in enumerate(prompt_ids)
    ]


def generate(model: Any, request: SequenceRequest, **settings: Any) -> list[int]:
    """What transformers answers to the one request alone, greedily."""
    ids = torch.tensor([request.prompt_ids])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
        **settings,
    )
    return out[0, ids.shape[1] :].tolist()


def worst_memory(like: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A buffer that holds what memory may hold."""
    return like.new_full((rows, like.shape[1], columns, like.shape[3]), torch.nan)


@pytest.mark.parametrize("architecture", sorted(tiny_models.CONFIGS))
def test_rows_that_join_and_leave_get_what_generate_gives_them_alone(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Little to spare, so that the buffers have to grow in both directions many times.
    monkeypatch.setattr("trainer.serving.engine.kv_cache.SPARE_COLUMNS", 5)
    monkeypatch.setattr("trainer.serving.engine.kv_cache.SPARE_ROWS", 0)
    monkeypatch.setattr("trainer.serving.engine.kv_cache._buffer", worst_memory)
    model = tiny_models.model(architecture)
    requests = requests_for(prompts(12))
    with running(model) as engine:
        answers = ask(engine, requests)
    assert [a.ids for a in answers] == [generate(model, r) for r in requests]


@pytest.mark.parametrize(
    ("settings", "of_generate"),
    [
        ({"repetition_penalty": 1.7}, {"repetition_penalty": 1.7}),
        ({"bad_words": ((7,), (9, 11), (250,))}, {"bad_words_ids": [[7], [9, 11], [250]]}),
        ({"logit_bias": {17: 4.0}}, {"sequence_bias": {(17,): 4.0}}),
    ],
)
def test_greedy_settings_mean_what_they_mean_to_generate(
    settings: dict[str, Any], of_generate: dict[str, Any]
) -> None:
    model = tiny_models.model("gptj")
    requests = requests_for(prompts(6), **settings)
    with running(model) as engine:
        answers = ask(engine, requests)
        plain = ask(engine, requests_for(prompts(6)))
    assert [a.ids for a in answers] == [generate(model, r, **of_generate) for r in requests]
    assert [a.ids for a in answers] != [a.ids for a in plain]


def test_end_of_text_stops_an_answer_but_not_before_its_least_length() -> None:
    model = tiny_models.model("gptj")
    with torch.no_grad():
        model.lm_head.bias[0] += 100  # end-of-text is always the likeliest
    request = requests_for(prompts(1))[0]
    with running(model) as engine:
        (stopped,) = ask(engine, [request])
        (longer,) = ask(engine, [dataclasses.replace(request, min_new_tokens=9)])
    assert (stopped.ids, stopped.finish, stopped.text) == ([0], "stop", "")
    assert len(longer.ids) == 10
    assert longer.ids == generate(model, request, min_new_tokens=9)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.8},
        {"top_k": 20},
        {"top_p": 0.7, "temperature": 1.4},
        {"typical_p": 0.6},
        {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    ],
)
def test_seeded_sample_is_the_same_alone_and_among_others(settings: dict[str, Any]) -> None:
    requests = requests_for(prompts(8), do_sample=True, seed=5, **settings)
    others = requests_for(prompts(7, seed=2), do_sample=True)
    with running(tiny_models.model("gptj"), max_batch=6) as engine:
        alone = [ask(engine, [r])[0].ids for r in requests]
        among = [a.ids for a in ask(engine, [*others, *requests])[len(others) :]]
        reseeded = dataclasses.replace(
            requests[0], sampling=dataclasses.replace(requests[0].sampling, seed=6)
        )
        assert ask(engine, [reseeded])[0].ids != alone[0]
    assert among == alone


@pytest.mark.parametrize("architecture", ["gptj", "gpt_neo", "llama"])
def test_prompt_read_in_pieces_scores_as_one_forward_pass(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.serving.engine.engine.PROMPT_PIECE_TOKENS", 24)
    model = tiny_models.model(architecture)
    rng = random.Random(3)
    texts = [tuple(rng.randrange(1, 300) for _ in range(n)) for n in (90, 5, 61, 1)]
    requests = [
        SequenceRequest(prompt_ids=t, max_new_tokens=0, prompt_logprobs=True, top_logprobs=2)
        for t in texts
    ]
    with running(model) as engine:
        answers = ask(engine, requests)
    for text, answer in zip(texts, answers, strict=True):
        with torch.inference_mode():
            scores = model(torch.tensor([text])).logits[0].log_softmax(-1)
        assert [t.token_id for t in answer.prompt] == list(text)
        assert answer.prompt[0].logprob is None
        expected = [float(scores[i, text[i + 1]]) for i in range(len(text) - 1)]
        assert [t.logprob for t in answer.prompt[1:]] == pytest.approx(expected, abs=1e-4)
        for i, token in enumerate(answer.prompt[1:]):
            assert [t for t, _ in token.top] == scores[i].topk(2).indices.tolist()
        assert answer.finish == "length"
        assert answer.ids == []


def contrastive(model: Any, request: SequenceRequest) -> list[int]:
    """Contrastive search straight from its definition, without a cache."""
    ids, sampling = list(request.prompt_ids), request.sampling
    for _ in range(request.max_new_tokens):
        with torch.inference_mode():
            shares = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
            likeliest, candidates = shares.topk(sampling.top_k)
            tried = torch.tensor([[*ids, int(c)] for c in candidates])
            hidden = model.base_model(tried).last_hidden_state
        alike = torch.cosine_similarity(hidden[:, -1:], hidden[:, :-1], dim=-1).amax(-1)
        worth = (1 - sampling.penalty_alpha) * likeliest - sampling.penalty_alpha * alike
        ids.append(int(candidates[int(worth.argmax())]))
        if ids[-1] in END:
            break
    return ids[len(request.prompt_ids) :]


@pytest.mark.parametrize("architecture", ["gptj", "gpt_neo"])
def test_contrastive_search_chooses_what_its_definition_says(architecture: str) -> None:
    model = tiny_models.model(architecture)
    searching = requests_for(prompts(3), tokens=12, penalty_alpha=0.6, top_k=4)
    greedy = requests_for(prompts(3), tokens=12)
    with running(model) as engine:
        answers = ask(engine, [*searching, *greedy])
    assert [a.ids for a in answers[:3]] == [contrastive(model, r) for r in searching]
    assert [a.ids for a in answers[3:]] == [generate(model, r) for r in greedy]
    assert answers[0].ids != answers[3].ids


def test_answer_text_is_cut_at_the_stop_sequence_wherever_tokens_end() -> None:
    tokenizer = tiny_models.tokenizer()
    (request,) = requests_for([tuple(tokenizer("The sheriff")["input_ids"])], tokens=60)
    with running(tiny_models.model("gptj")) as engine:
        (whole,) = ask(engine, [request])
        for stop in (whole.text[9:13], whole.text[20:21], whole.text[5:15]):
            (cut,) = ask(engine, [dataclasses.replace(request, stop=(stop, "never"))])
            assert cut.text == whole.text[: whole.text.index(stop)]
            assert cut.finish == "stop"
            (kept,) = ask(engine, [dataclasses.replace(request, stop=(stop,), include_stop=True)])
            assert kept.text == cut.text + stop


def test_more_requests_than_may_wait_are_refused_and_those_taken_are_answered() -> None:
    with running(tiny_models.model("gptj"), max_batch=2, max_queue=3) as engine:
        submitted, refused = [], 0
        answers: queue.Queue[Event] = queue.Queue()
        for request in requests_for(prompts(40), tokens=50):
            try:
                engine.submit([request], lambda told: [answers.put(e) for e in told] and None)
                submitted.append(request)
            except QueueFullError:
                refused += 1
        assert refused
        finished = 0
        while finished < len(submitted):
            finished += answers.get(timeout=240).finish == "length"
        assert answers.empty()


def test_sequences_beyond_the_memory_wait_their_turn() -> None:
    model = tiny_models.model("gptj")
    same_length = [(*p, *range(1, 70))[:40] for p in prompts(6)]
    requests = requests_for(same_length, tokens=20)
    longest = max(r.most_tokens for r in requests)
    with running(model, max_cached_tokens=2 * longest) as engine:
        rows: list[int] = []
        forward = model.forward

        def watched(*args: Any, **kwargs: Any) -> Any:
            rows.append(len(kwargs["input_ids"]))
            return forward(*args, **kwargs)

        model.forward = watched
        answers = ask(engine, requests)
        del model.forward
    assert [a.ids for a in answers] == [generate(model, r) for r in requests]
    assert max(rows) == 2


def test_cancelled_answer_leaves_the_batch_and_its_memory() -> None:
    with running(tiny_models.model("gptj"), end_ids=frozenset()) as engine:
        first, cancelled, ended = threading.Event(), threading.Event(), threading.Event()
        told: list[Event] = []

        def sink(events: list[Event]) -> None:
            told.extend(events)
            first.set()
            cancelled.wait(240)  # the engine does: a busy machine lets nobody else run for long
            if events[-1].finish:
                ended.set()

        request = SequenceRequest(prompt_ids=(5, 6, 7), max_new_tokens=250)
        job = engine.submit([request], sink)
        assert first.wait(240)
        job.cancel()
        cancelled.set()
        assert ended.wait(240)
        assert told[-1].finish == "cancelled"
        assert len(told) < 4
        assert engine.under_way == 0
        assert engine._cache.layers == []


def test_answer_that_takes_too_long_is_ended_and_says_so() -> None:
    with running(tiny_models.model("gptj"), end_ids=frozenset(), request_seconds=0.02) as engine:
        (answer,) = ask(engine, [SequenceRequest(prompt_ids=(5,), max_new_tokens=250)])
    assert answer.finish == "timeout"


def test_model_that_breaks_tells_everyone_and_takes_no_more() -> None:
    model = tiny_models.model("gptj")
    engine = Engine(
        model, tiny_models.tokenizer(), Limits(max_total_tokens=256, max_batch=2), frozenset()
    )
    stopped = threading.Event()
    engine.on_failure = stopped.set
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(3, 3))  # no longer fits
    told: list[Event] = []
    for request in requests_for(prompts(5)):
        engine.submit([request], told.extend)
    previous, threading.excepthook = threading.excepthook, lambda args: None
    try:
        engine.start()
        assert stopped.wait(240)
    finally:
        threading.excepthook = previous
    engine.close()
    assert [e.finish for e in told] == ["error"] * 5
    assert "RuntimeError" in (engine.failure or "")
    with pytest.raises(QueueFullError, match="RuntimeError"):
        engine.submit(requests_for(prompts(1)), told.extend)
