"""Stores of chats: one record a context, with a mask, a key and a ledger that adds up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.chat.conftest import Chats, shown
from tests.chat.templates import INST
from tests.tokens.conftest import content
from trainer.contract.errors import DamagedError
from trainer.tokens.show import describe, show_context
from trainer.tokens.store import TokenStore


def chat(question: str, answer: str) -> dict[str, Any]:
    turns = [("user", question), ("assistant", answer)]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def jsonl(*records: Any) -> str:
    return "\n".join(map(json.dumps, records))


MANY = jsonl(*(chat(f"Question {at}?", f"Answer {at * at}.") for at in range(300)))


def test_a_record_is_a_context(chats: Chats) -> None:
    store = chats.store({"a.jsonl": jsonl(chat("a", "b"), chat("c", "d"))})
    assert store.manifest.num_contexts == 2
    assert shown(store, 1)[1] == "d<|im_end|>"
    length = int(store.lengths[1])
    assert (np.array(store.contexts[1, length:]) == store.manifest.pad_token_id).all()
    trained = store.trained([0, 1])
    assert trained is not None and not trained[1, length:].any()


@pytest.mark.parametrize("context", [64, 61])
def test_the_ledger_adds_up_for_each_file(chats: Chats, context: int) -> None:
    files = {
        "a.jsonl": MANY,
        "b.jsonl": jsonl(chat("a", "b"), chat("x " * 80, "y"), chat("c", "z " * 80)),
    }
    for too_long, dropped in (("drop", 2), ("cut", 1)):
        store = chats.store(
            files, data={"too_long": too_long}, context=context, train_ratio=0.8, sampling=50
        )
        in_all = dict(store.manifest.totals)
        in_all |= {"tokens": in_all["encoded"], "dropped": dict(in_all)}
        for row in [*store.manifest.sources, in_all]:
            lost = row["dropped"]
            left_out = lost["sampled_out"] + lost["dropped_tokens"] + lost["cut_tokens"]
            assert row["tokens"] == row["in_contexts"] + left_out
            assert row["in_contexts"] == row["trained_tokens"] + row["masked_tokens"]
        totals, every = store.manifest.totals, np.arange(store.manifest.num_contexts)
        assert totals["trained_tokens"] == store.trained_tokens(every)
        held = every[store.manifest.num_train_contexts :]
        assert totals["held_out_trained_tokens"] == store.trained_tokens(held)
        assert totals["in_contexts"] == int(store.lengths.sum()) == store.manifest.num_tokens
        assert totals["too_long"] + totals["cut_before_answer"] == dropped
        assert totals["cut"] == 2 - dropped
        assert store.manifest.num_contexts == 300 * 50 // 100 + (2 - dropped)


def test_a_record_that_is_too_long_is_refused_by_name(chats: Chats) -> None:
    files = {"a.jsonl": jsonl(chat("a", "b"), chat("x " * 80, "y"))}
    message = chats.refused(files)
    assert message.startswith("dataset file a.jsonl:2 is longer than a context (got ")
    assert "data.too_long" in message
    assert chats.store(files, data={"too_long": "drop"}).manifest.totals["too_long"] == 1


def test_a_cut_record_is_the_beginning_of_the_whole(chats: Chats) -> None:
    files = {"a.jsonl": jsonl(chat("c", "z " * 80))}
    whole = chats.store(files, context=512)
    cut = chats.store(files, data={"too_long": "cut"})
    assert cut.contexts[0].tolist() == whole.contexts[0, :64].tolist()
    all_trained, some_trained = whole.trained([0]), cut.trained([0])
    assert all_trained is not None and some_trained is not None
    assert some_trained[0].tolist() == all_trained[0, :64].tolist()


def test_a_record_without_a_trained_token_is_refused_by_name(chats: Chats) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}]}
    message = chats.refused({"a.jsonl": jsonl(chat("a", "b"), asked)})
    assert message.startswith("dataset file a.jsonl:2 has no token to train on")
    assert chats.store(data={"train_on": "all"}).manifest.num_contexts == 2


def test_every_option_is_part_of_the_key(chats: Chats) -> None:
    (chats.root / "one.jinja").write_text(INST, encoding="utf-8")
    (chats.root / "same.jinja").write_text(INST, encoding="utf-8")
    files = {"a.jsonl": jsonl(chat("a", "b"))}
    asked: list[dict[str, Any]] = [
        {},
        {"train_on": "last"},
        {"train_on": "all"},
        {"system": "Be brief."},
        {"too_long": "cut"},
        {"template": "one.jinja"},
    ]
    found = [chats.store(files, data=data).folder.name for data in asked]
    assert len(set(found)) == len(asked)
    again = chats.store(files, data={"template": "same.jinja"})
    assert again.folder.name == found[-1]
    (chats.root / "one.jinja").write_text(INST + " ", encoding="utf-8")
    assert chats.store(files, data={"template": "one.jinja"}).folder.name != found[-1]


def test_the_same_request_makes_the_same_bytes_and_finds_them(chats: Chats) -> None:
    once = content(chats.store({"a.jsonl": MANY}, train_ratio=0.9, reorder="shuffle"))
    assert chats.run(train_ratio=0.9, reorder="shuffle").reused
    again = chats.store(train_ratio=0.9, reorder="shuffle", retokenize=True)
    assert content(again) == once
    assert not (again.folder / "records.ids").exists()


def test_records_are_held_out_by_their_content_alone(chats: Chats) -> None:
    def held(store: TokenStore) -> set[str]:
        first = store.manifest.num_train_contexts
        return {shown(store, at)[0] for at in range(first, store.manifest.num_contexts)}

    lines = MANY.split("\n")
    store = chats.store({"a.jsonl": MANY}, train_ratio=0.8)
    share = store.manifest.totals["held_out_tokens"] / store.manifest.totals["encoded"]
    assert 0.16 < share < 0.24
    other = chats.store({"b.jsonl": "\n".join(lines[::-1])}, train_ratio=0.8)
    assert held(store) == held(other)


def test_all_trained_needs_no_mask(chats: Chats) -> None:
    store = chats.store({"a.jsonl": jsonl(chat("a", "b"))}, data={"train_on": "all"})
    assert store.trained([0]) is None
    assert not (store.folder / "mask.bin").exists()
    assert store.manifest.totals["trained_tokens"] == int(store.lengths[0]) - 1
    assert store.trained_tokens(np.arange(1)) == int(store.lengths[0]) - 1


def test_a_damaged_mask_is_found_and_made_again(chats: Chats) -> None:
    store = chats.store({"a.jsonl": MANY})
    mask = store.folder / "mask.bin"
    good = mask.read_bytes()
    mask.write_bytes(bytes([good[5] ^ 1]) + good[1:])
    with pytest.raises(DamagedError, match=r"mask\.bin"):
        TokenStore.open(store.folder, verify=True)
    assert not chats.run().reused
    assert mask.read_bytes() == good
    mask.unlink()
    assert not chats.run().reused


def test_without_a_template_chats_are_refused(chats: Chats) -> None:
    files = {"a.jsonl": jsonl(chat("a", "b"))}
    message = chats.refused(files, model="models/plain")
    assert "plain has no chat template" in message and "data.template" in message
    message = chats.refused(files, data={"template": "none.jinja"})
    assert message.startswith("data.template can't be read (got 'none.jinja'")


def test_a_prompt_and_its_completion_alone_take_the_template_of_the_docs(chats: Chats) -> None:
    docs = (Path(__file__).parents[2] / "docs/contexts.md").read_text(encoding="utf-8")
    template = docs.rstrip().splitlines()[-1].strip("`")
    (chats.root / "raw.jinja").write_text(template, encoding="utf-8")
    record = {"prompt": "The rider", "completion": " came."}
    store = chats.store(
        {"a.jsonl": jsonl(record)}, model="models/plain", data={"template": "raw.jinja"}
    )
    assert shown(store, 0) == ("The rider came.<|endoftext|>", " came.<|endoftext|>")


def test_what_ends_an_answer_ends_the_model_s_texts(chats: Chats) -> None:
    store = chats.store({"a.jsonl": jsonl(chat("a", "b"))})
    added = {token["id"]: token["content"] for token in store.manifest.added_tokens}
    assert added[store.manifest.eot_token_id] == "<|im_end|>"
    named = chats.store(eot_token="<|endoftext|>")
    assert named.manifest.eot_token_id == 0


def test_what_is_trained_is_marked_for_people(chats: Chats) -> None:
    store = chats.store({"a.jsonl": jsonl(chat("a", "b"))})
    assert "assistant\n⟦b<|im_end|>⟧\n" in show_context(store, 0)
    totals = store.manifest.totals
    assert f"{totals['trained_tokens']} trained + {totals['masked_tokens']} masked" in describe(
        store
    )


def test_half_a_surrogate_pair_is_no_character(chats: Chats) -> None:
    line = json.dumps(chat("a", "\ud800b"))
    assert "\\ud800" in line
    assert shown(chats.store({"a.jsonl": line}), 0)[1] == "\ufffdb<|im_end|>"
