"""Pairs of answers: what is read, refused, put into a context, shown and planned."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.chat.conftest import Chats
from tests.chat.templates import CHATML, FORGETS, INST
from tests.training.record_trl import PLAIN
from trainer.plan.context_count import count_contexts
from trainer.tokens.show import describe, show_context
from trainer.tokens.store import TokenStore
from trainer.training.data.batches import read_pairs

PREFERENCE = {"shape": "preference"}
RECORDED = json.loads(Path(__file__).with_name("trl_pairs.json").read_text(encoding="utf-8"))
TEMPLATES = {CHATML: "", INST: "inst.jinja", PLAIN: "plain.jinja"}


def jsonl(*records: Any) -> str:
    return "\n".join(map(json.dumps, records))


def pair(question: str, better: str, worse: str) -> dict[str, str]:
    return {"prompt": question, "chosen": better, "rejected": worse}


MANY = jsonl(*(pair(f"Question {at}?", f"{at * at}.", "I do not know.") for at in range(300)))


def store_of(chats: Chats, text: str, **options: Any) -> TokenStore:
    options["data"] = {**PREFERENCE, **options.pop("data", {})}
    return chats.store({"a.jsonl": text}, **options)


@pytest.mark.parametrize("number", range(len(RECORDED["pairs"])))
def test_ids_and_what_is_trained_are_those_of_trl(chats: Chats, number: int) -> None:
    known = RECORDED["pairs"][number]
    name = TEMPLATES[known["template"]]
    if name:
        (chats.root / name).write_text(known["template"], encoding="utf-8")
    store = store_of(chats, jsonl(known["record"]), data={"template": name}, context=128)
    batch = read_pairs(store, np.arange(1))
    assert batch.trained is not None
    for row, side in enumerate(("chosen_ids", "rejected_ids")):
        length, before = int(batch.lengths[row]), len(known["prompt_ids"])
        assert batch.ids[row, :length].tolist() == known["prompt_ids"] + known[side]
        assert batch.trained[row, :length].tolist() == [at >= before for at in range(length)]


def test_a_pair_is_a_context_of_two_texts(chats: Chats) -> None:
    store = store_of(chats, jsonl(pair("a", "b", "c d e"), pair("f", "g", "h")))
    assert (store.manifest.num_contexts, store.manifest.context) == (2, 64)
    assert store.contexts.shape == (2, 128)
    shown = show_context(store, 0)
    assert "a.jsonl, document 1, chosen: ids 0 to" in shown
    assert "a.jsonl, document 1, rejected: ids" in shown
    assert "⟦b<|im_end|>\n⟧" in shown and "⟦c d e<|im_end|>\n⟧" in shown
    assert "2 pairs of 2 x 64 ids" in describe(store)


def test_the_ledger_adds_up_and_no_pair_is_torn(chats: Chats) -> None:
    long = jsonl(pair("a", "z " * 80, "b"), pair("x " * 80, "b", "c"))
    for too_long, dropped in (("drop", 2), ("cut", 1)):
        options = {"data": {"too_long": too_long}, "train_ratio": 0.8, "sampling": 50}
        store = store_of(chats, f"{MANY}\n{long}", **options)
        totals, [row] = store.manifest.totals, store.manifest.sources
        lost = row["dropped"]
        left_out = lost["sampled_out"] + lost["dropped_tokens"] + lost["cut_tokens"]
        assert row["tokens"] == row["in_contexts"] + left_out
        assert row["in_contexts"] == row["trained_tokens"] + row["masked_tokens"]
        assert lost["too_long"] + lost["cut_before_answer"] == dropped
        assert totals["documents"] == 302
        every = np.arange(store.manifest.num_contexts)
        assert totals["trained_tokens"] == store.trained_tokens(every)
        assert totals["in_contexts"] == store.manifest.num_tokens == int(store.lengths.sum())
        assert store.manifest.num_train_contexts < len(every)
        assert len(every) == pytest.approx((302 - dropped) / 2, abs=1)
        numbers = [[span.number for span in store.document_of(at)] for at in every]
        assert all(len(found) == 2 and len({*found}) == 1 for found in numbers)


def test_the_same_pairs_are_the_same_store_and_others_are_not(chats: Chats) -> None:
    first = store_of(chats, MANY)
    assert store_of(chats, MANY, retokenize=True).digest == first.digest
    assert store_of(chats, MANY, reorder="shuffle").digest != first.digest
    as_chats = "\n".join(MANY.replace('"chosen"', '"completion"').splitlines())
    as_chats = "\n".join(json.dumps({k: v for k, v in json.loads(line).items() if k != "rejected"})
                         for line in as_chats.splitlines())  # fmt: skip
    assert chats.store({"a.jsonl": as_chats}).manifest.key != first.manifest.key


def test_a_store_of_chats_has_the_key_that_it_had(chats: Chats) -> None:
    """Stores are found by their key: what is of pairs alone is in no other one."""
    turn = {"role": "assistant", "content": "b"}
    store = chats.store({"a.jsonl": jsonl({"messages": [turn]})})
    assert set(store.manifest.options["records"]) == {
        "format", "train_on", "too_long", "system", "templates"
    }  # fmt: skip
    assert store.manifest.width == store.manifest.context


BAD = [
    ({"prompt": "a", "chosen": "b"}, "a.jsonl:2 is no pair (got the keys prompt, chosen)"),
    ({"prompt": "a", "chosen": "b", "label": True}, "is no pair"),
    ({"chosen": "a b", "rejected": "a c"}, "a.jsonl:2 has no 'prompt'"),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c", "images": ["x.png"]},
        "a.jsonl:2 has the key 'images', which is not read",
    ),
    ({"prompt": 1, "chosen": "b", "rejected": "c"}, "has a 'prompt' that is neither text nor"),
    (
        {
            "prompt": "a",
            "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}],
        },
        "with a turn of user, not of the assistant. Take 'prompt' out",
    ),
    (
        {
            "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        },
        "has no answer in 'chosen'",
    ),
    (
        {
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
        },
        "has no prompt",
    ),
    (
        {"prompt": [{"role": "assistant", "content": "a"}], "chosen": "b", "rejected": "c"},
        "has a prompt that ends with a turn of the assistant",
    ),
    (pair("a", "b", "c " * 80), "is longer than a context (got"),
    ([1], "is no object"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_what_is_no_pair_is_refused_by_file_and_line(
    chats: Chats, record: Any, message: str
) -> None:
    found = chats.refused({"a.jsonl": jsonl(pair("a", "b", "c"), record)}, data=PREFERENCE)
    assert message in found and "a.jsonl:2" in found


def test_a_template_that_writes_the_prompt_otherwise_is_refused(chats: Chats) -> None:
    odd = "{% if messages | length == 1 %}x{% endif %}" + FORGETS
    (chats.root / "odd.jinja").write_text(odd, encoding="utf-8")
    data = {**PREFERENCE, "template": "odd.jinja"}
    found = chats.refused({"a.jsonl": jsonl(pair("a", "b", "c"))}, data=data)
    assert "a.jsonl:1 is not the sum of its parts in the chat template" in found


def test_pairs_that_are_not_asked_for_are_named(chats: Chats) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    record = {"messages": turns, "chosen": "b", "rejected": "c"}
    assert "set data.shape=preference" in chats.refused({"a.jsonl": jsonl(record)})


@pytest.mark.parametrize(
    "data",
    [
        {"packing": "documents"},
        {"train_on": "all"},
        {"weights": {"dataset": 1.0}},
        {"replay": "general", "replay_share": 0.1},
        {"bos": "always"},
    ],
)
def test_what_does_not_go_with_pairs_is_refused(data: dict[str, Any]) -> None:
    from trainer.contract.errors import RequestError
    from trainer.contract.parameters import Parameters
    from trainer.contract.validation import load_parameters

    with pytest.raises(RequestError, match=next(iter(data))):
        load_parameters(Parameters, {"run_name": "x", "data": {**PREFERENCE, **data}})


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"preference": {"beta": 0.2}}, "preference has no effect"),
        ({"data": PREFERENCE, "lora": {"base_bits": 4}}, "lora.base_bits=4 can't be combined"),
        ({"data": PREFERENCE, "lora": {"dropout": 0.1}}, "lora.dropout can't be combined"),
        ({"data": PREFERENCE, "preference": {"beta": 0}}, "beta"),
        ({"data": PREFERENCE, "tensorizer_uri": "models/x"}, "tensorizer_uri can't be combined"),
    ],
)
def test_other_topics_are_held_to_pairs(asked: dict[str, Any], name: str) -> None:
    from trainer.contract.errors import RequestError
    from trainer.contract.parameters import Parameters
    from trainer.contract.validation import load_parameters

    with pytest.raises(RequestError, match=name):
        load_parameters(Parameters, {"run_name": "x", **asked})
    usual = load_parameters(Parameters, {"run_name": "x"})
    assert "preference" not in usual.request


def test_plans_count_pairs(chats: Chats) -> None:
    chats.write({"a.jsonl": MANY})
    asked = chats.config(data=PREFERENCE)
    counted = count_contexts(asked)
    assert counted.estimated and counted.num_contexts == 300
    store = chats.store({"a.jsonl": MANY}, data=PREFERENCE)
    exact = count_contexts(asked)
    assert not exact.estimated and exact.num_contexts == 300
    assert exact.padding_share == pytest.approx(1 - store.manifest.num_tokens / (300 * 128))
    assert counted.trained_tokens == pytest.approx(exact.trained_tokens, rel=0.4)


def test_pairs_are_not_for_retrain() -> None:
    from flows.retrain import RetrainParameters, _refuse_what_needs_no_series
    from trainer.contract.errors import RequestError
    from trainer.contract.validation import load_parameters

    asked = load_parameters(RetrainParameters, {"run_name": "x", "data": PREFERENCE})
    with pytest.raises(RequestError, match="is not for retrain"):
        _refuse_what_needs_no_series(asked)
