"""Records of every shape become the same conversations, whatever file they stand in."""

import gzip
import io
import json
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.chat.conftest import Chats, shown
from tests.tokens.conftest import content
from trainer.contract.topics import DataConfig
from trainer.tokens.chat.conversations import RecordError, conversation_of

TURNS = [
    ("user", "Who came?"),
    ("assistant", "A rider."),
    ("user", "When?"),
    ("assistant", "At 1."),
]
MESSAGES = {"messages": [{"role": role, "content": text} for role, text in TURNS]}
SHAREGPT = {
    "conversations": [
        {"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in TURNS
    ]
}
PARTS = {
    "messages": [
        {
            "role": role,
            "content": [{"type": "text", "text": text[:3]}, {"type": "text", "text": text[3:]}],
        }
        for role, text in TURNS
    ]
}
TEXT = (
    "<|im_start|>user\nWho came?<|im_end|>\n<|im_start|>assistant\nA rider.<|im_end|>\n"
    "<|im_start|>user\nWhen?<|im_end|>\n<|im_start|>assistant\nAt 1.<|im_end|>\n"
)


def jsonl(*records: Any) -> str:
    return "\n".join(map(json.dumps, records))


def parquet(*records: Any) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), sink)
    return sink.getvalue()


@pytest.mark.parametrize("record", [MESSAGES, SHAREGPT, PARTS])
def test_chats_are_read_from_every_kind_of_file(chats: Chats, record: dict[str, Any]) -> None:
    array = json.dumps([record, record], indent=1)
    files = [
        {"a.jsonl": jsonl(record, record)},
        {"a.jsonl.gz": gzip.compress(jsonl(record, record).encode())},
        {"a.parquet": parquet(record, record)},
        {"a.json": array},
        {"a.json.gz": gzip.compress(array.encode())},
    ]
    for some in files:
        store = chats.store(some)
        assert [shown(store, at) for at in (0, 1)] == [
            (TEXT, "A rider.<|im_end|>At 1.<|im_end|>")
        ] * 2
        assert store.manifest.sources[0]["shape"] == "chat"
        assert [span.number for span in store.document_of(1)] == [2]


def test_a_single_array_is_read_too(chats: Chats) -> None:
    chats.write({"a.json": json.dumps([MESSAGES])})
    store = chats.store(dataset="tales/a.json")
    assert shown(store, 0)[0] == TEXT


@pytest.mark.parametrize(
    ("record", "question", "answer"),
    [
        ({"prompt": "Who?", "completion": "He."}, "Who?", "He."),
        ({"instruction": "Say", "input": "it", "output": "it."}, "Say\nit", "it."),
        ({"instruction": "Say", "input": "", "output": "it."}, "Say", "it."),
        (
            {
                "prompt": [{"role": "user", "content": "Who?"}],
                "completion": [{"role": "assistant", "content": "He."}],
            },
            "Who?",
            "He.",
        ),
    ],
)
def test_completions_are_a_question_and_an_answer(
    chats: Chats, record: dict[str, Any], question: str, answer: str
) -> None:
    expected = (
        f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n",
        f"{answer}<|im_end|>",
    )
    for files in ({"a.jsonl": jsonl(record)}, {"a.parquet": parquet(record)}):
        store = chats.store(files)
        assert shown(store, 0) == expected
        assert store.manifest.sources[0]["shape"] == "completion"


def test_each_file_has_a_shape_of_its_own_and_it_is_said(
    chats: Chats, capsys: pytest.CaptureFixture[str]
) -> None:
    alpaca = {"instruction": "Say", "output": "it."}
    store = chats.store(
        {"a.jsonl": jsonl(MESSAGES), "b.jsonl": jsonl(alpaca), "c.jsonl": jsonl(SHAREGPT)}
    )
    assert [source["shape"] for source in store.manifest.sources] == ["chat", "completion", "chat"]
    assert "2 chat, 1 completion" in capsys.readouterr().out


def test_json_arrays_beside_other_files_are_left_out_by_name_unless_asked_for(chats: Chats) -> None:
    files = {"a.jsonl": jsonl(MESSAGES), "b.json": json.dumps([MESSAGES])}
    assert chats.store(files).manifest.left_out[".json"] == {"files": 1, "names": ["b.json"]}
    assert chats.store(files, data={"shape": "chat"}).manifest.num_contexts == 2


def test_a_system_turn_is_the_record_s_own_or_the_request_s(chats: Chats) -> None:
    own = {"messages": [{"role": "system", "content": "Own."}, *MESSAGES["messages"]]}
    beside = {**SHAREGPT, "system": "Beside."}
    files = {"a.jsonl": jsonl(MESSAGES, own, beside)}
    store = chats.store(files, data={"system": "Be brief."}, context=128)
    firsts = [shown(store, at)[0].split("<|im_end|>")[0] for at in range(3)]
    assert firsts == [f"<|im_start|>system\n{text}" for text in ("Be brief.", "Own.", "Beside.")]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"messages": [{"role": "user", "content": "a", "weight": 0}]}, "'weight'"),
        ({"conversations": [{"from": "function_call", "value": "a"}]}, "from 'function_call'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "no text"),
        ({"messages": [{"role": "assistant"}]}, "without content"),
        ({"messages": [{"role": 3, "content": "a"}]}, "without a role"),
        ({"messages": ["a"]}, "without role and content"),
        ({"messages": [], "text": "a"}, "is no chat"),
        ({**MESSAGES, "tools": "{"}, "no JSON"),
        ({**MESSAGES, "tools": [1]}, "no list of objects"),
        ({**MESSAGES, "history": [["a", "b"]]}, "'history'"),
        ({**MESSAGES, "system": 1}, "no text"),
        ("a", "no object"),
    ],
)
def test_what_would_be_lost_is_refused(record: Any, words: str) -> None:
    with pytest.raises(RecordError, match=words):
        conversation_of(record, "chat")


def test_keys_that_hold_nothing_are_none_and_tools_may_be_text() -> None:
    turn = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f"}}],
        "name": None,
    }
    found = conversation_of({"messages": [turn], "tools": '[{"type": "function"}]'}, "chat")
    assert found.turns == [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]
    assert found.tools == [{"type": "function"}]


def test_a_bad_record_is_named_by_file_and_line(chats: Chats) -> None:
    bad = {"messages": [{"role": "user", "content": 1}]}
    message = chats.refused({"a.jsonl": jsonl(MESSAGES) + "\n\n" + jsonl(bad)})
    assert message.startswith("dataset file a.jsonl:3 has a content that is neither text nor parts")
    message = chats.refused({"a.jsonl": jsonl(MESSAGES) + "\n{"})
    assert message.startswith("dataset file a.jsonl:2 is not JSON")
    message = chats.refused({"a.json": json.dumps([MESSAGES, bad])})
    assert message.startswith("dataset file a.json, record 2 has a content")
    message = chats.refused({"a.json": json.dumps([MESSAGES])[:-1] + " 3"})
    assert message.startswith("dataset file a.json is no JSON array (no comma")
    message = chats.refused({"a.jsonl": jsonl(MESSAGES, {"text": "plain"})})
    assert message.startswith("dataset file a.jsonl:2 is no chat (got the keys text)")


def test_files_without_records_are_as_the_others(chats: Chats) -> None:
    files = {"a.jsonl": "", "b.jsonl": "\n\n", "c.jsonl": jsonl(MESSAGES), "d.json": ""}
    store = chats.store(files)
    assert store.manifest.num_contexts == 1
    assert [source["documents"] for source in store.manifest.sources] == [0, 0, 1]
    assert "leaves nothing to train on" in chats.refused({"a.json": "[]"}, data={"shape": "chat"})


def test_chats_and_plain_text_are_not_mixed(chats: Chats) -> None:
    message = chats.refused({"a.jsonl": jsonl(MESSAGES), "b.txt": "text"})
    assert "mixes plain text and records of turns (got b.txt and a.jsonl)" in message


def test_keys_without_effect_are_refused(chats: Chats) -> None:
    message = chats.refused({"b.txt": "text"}, data={"train_on": "last", "system": "a"})
    assert "data.train_on has no effect on plain text" in message and "data.system" in message
    assert "data.shape is not that of the dataset" in chats.refused(
        {"b.txt": "text"}, data={"shape": "chat"}
    )
    message = chats.refused({"a.jsonl": jsonl(MESSAGES)}, boundary_index=3)
    assert "boundary_index has no effect on chats" in message
    with pytest.raises(ValueError, match="template has no effect on plain text"):
        DataConfig(shape="text", template="a")


def test_plain_text_is_what_it_was(chats: Chats) -> None:
    files = {"a.jsonl": '{"text": "a"}\n' + jsonl({"text": "b", **MESSAGES}), "b.txt": "text"}
    by_default, by_name = (chats.store(files, data=data) for data in ({}, {"shape": "text"}))
    assert content(by_default) == content(by_name)
    assert "mask.bin" not in content(by_default)
    assert b'"chat"' not in content(by_default)["manifest.json"]
