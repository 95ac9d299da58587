"""What is refused, planned and keyed before anything is trained."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.configs import fetch_config, tokenize_config
from tests.chat.conftest import Chats
from tests.chat.test_stores import MANY, chat, jsonl
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import differences
from trainer.contract.step_configs import FetchConfig
from trainer.contract.topics import DataConfig
from trainer.contract.work_key import work_key
from trainer.fetch.inputs import digests_of
from trainer.fetch.records import check_records
from trainer.plan.context_count import count_contexts
from trainer.rehearse.small_text import copy_beginning
from trainer.tokens.text.sources import list_sources


def checked(chats: Chats, model: str = "models/chat", **data: Any) -> None:
    config = FetchConfig(
        volume=str(chats.root), model=model, dataset="tales", data=DataConfig(**data)
    )
    sources = list_sources(config.volume, config.dataset, config.data.is_of_records)
    check_records(config, sources, chats.root / model)


def test_chats_without_a_template_are_refused_by_fetch_and_plan(chats: Chats) -> None:
    chats.write({"a.jsonl": jsonl(chat("a", "b"))})
    checked(chats)
    with pytest.raises(RequestError, match="plain has no chat template"):
        checked(chats, "models/plain")
    with pytest.raises(RequestError, match="plain has no chat template"):
        count_contexts(chats.config(model="models/plain"))
    with pytest.raises(RequestError, match=r"data\.template can't be read"):
        checked(chats, "models/plain", template="none.jinja")
    (chats.root / "one.jinja").write_text("{{ messages }}", encoding="utf-8")
    checked(chats, "models/plain", template="one.jinja")


def test_data_that_does_not_fit_the_files_is_refused_by_fetch(chats: Chats) -> None:
    chats.write({"a.txt": "text"})
    checked(chats)
    with pytest.raises(RequestError, match=r"data\.train_on has no effect on plain text"):
        checked(chats, train_on="all")
    chats.write({"a.txt": "text", "b.jsonl": jsonl(chat("a", "b"))})
    with pytest.raises(RequestError, match="mixes plain text and records"):
        checked(chats)


def test_a_plan_counts_records_and_what_is_trained_of_them(chats: Chats) -> None:
    chats.write({"a.jsonl": MANY})
    estimate = count_contexts(chats.config(train_ratio=0.8))
    assert (estimate.num_contexts, estimate.estimated) == (300, True)
    manifest = chats.store(train_ratio=0.8).manifest
    exact = count_contexts(chats.config(train_ratio=0.8))
    assert not exact.estimated
    assert (exact.num_contexts, exact.num_train_contexts) == (300, manifest.num_train_contexts)
    totals = manifest.totals
    assert exact.trained_tokens == totals["trained_tokens"] - totals["held_out_trained_tokens"]
    assert estimate.trained_tokens == pytest.approx(exact.trained_tokens, rel=0.05)
    other = count_contexts(chats.config(train_ratio=0.8, data={"train_on": "last"}))
    assert other.estimated


def parameters(**given: Any) -> Parameters:
    return Parameters(run_name="a", **given)


def test_keys_and_requests_of_plain_text_are_as_before() -> None:
    usual = dataclasses.asdict(DataConfig())
    for step in ("fetch", "tokenize"):
        config: dict[str, Any] = {"volume": "/v", "dataset": "d", "request": {"context": 4}}
        assert work_key(step, {**config, "data": usual}) == work_key(step, config)
        other = {**config, "data": {**usual, "train_on": "last"}}
        assert work_key(step, other) != work_key(step, config)
    assert "data" not in parameters().request
    assert parameters(data='{"shape": "chat"}').request["data"] == {"shape": "chat"}


def test_a_run_of_before_is_the_same_request_unless_data_is_said() -> None:
    before, now = parameters().request, parameters(data={"train_on": "last"}).request
    assert not differences(before, parameters().request)
    assert differences(before, now) == ["data was {}, is {'train_on': 'last'}"]


def test_unknown_keys_of_data_are_refused() -> None:
    for key in ("packing", "weights", "replay", "shapes"):
        with pytest.raises(ValueError, match=key):
            parameters(data=json.dumps({key: "a"}))


def test_a_template_s_content_is_part_of_the_work(chats: Chats, tmp_path: Path) -> None:
    chats.write({"a.jsonl": jsonl(chat("a", "b"))})
    template = chats.root / "one.jinja"
    asked = parameters(data={"template": "one.jinja"})
    keys = []
    for text in ("{{ messages }}", "{{ messages }}."):
        template.write_text(text, encoding="utf-8")
        fetch = fetch_config(asked.model_dump(), asked.request)
        config = FetchConfig(
            volume=str(chats.root),
            model="models/chat",
            dataset="tales",
            data=DataConfig(**fetch["data"]),
        )
        sources = list_sources(config.volume, config.dataset)
        digests = digests_of(config, {"model": chats.root / "models/chat"}, sources)
        made = tokenize_config(asked.model_dump(), model="m", tokenizer="", digests=digests)
        keys.append(work_key("tokenize", made))
    assert keys[0] != keys[1]


def test_a_rehearsal_takes_the_first_records_of_an_array(chats: Chats, tmp_path: Path) -> None:
    records = [chat(f"Question {at}?", "Answer. " * 20) for at in range(40_000)]
    chats.write({"a.json": json.dumps(records)})
    config = FetchConfig(volume=str(chats.root), model="models/chat", dataset="tales")
    copy_beginning(config, tmp_path / "small")
    copied = json.loads((tmp_path / "small/a.json").read_text(encoding="utf-8"))
    assert 0 < len(copied) < len(records)
    assert copied == records[: len(copied)]
