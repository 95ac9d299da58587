"""Records of conversations are said to be that, and are not read as plain text."""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from tests.tokens.conftest import Volume
from trainer.contract.errors import RequestError
from trainer.contract.topics import DataConfig

PARTS = [{"type": "text", "text": "Hello"}]
CHATS = [
    {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": PARTS}]},
    {"messages": [{"role": "user", "content": "Hello"}]},
    {"id": 3, "data": {"conversation": [{"role": "user", "content": PARTS}]}},
    {"conversations": [{"from": "human", "value": "Hello"}]},
    {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]},
    {"turns": [{"role": "user", "text": "Hello"}]},
    [{"role": "user", "content": PARTS}],
]


AS_TEXT = DataConfig(shape="text")


def refused(volume: Volume, **options: object) -> str:
    """Why the dataset is refused as plain text."""
    with pytest.raises(RequestError) as caught:
        volume.run(data=AS_TEXT, **options)
    return str(caught.value)


@pytest.mark.parametrize("text_field", ["text", "content", "value", "messages"])
@pytest.mark.parametrize("record", CHATS)
def test_chat_records_are_named_as_what_they_are(volume: Volume, record: object, text_field: str):
    volume.write({"a.jsonl": '{"text": "a"}\n' + json.dumps(record)})
    if text_field != "text":
        volume.write({"a.jsonl": json.dumps(record)})
    message = refused(volume, text_field=text_field)
    assert "is a chat record" in message
    assert "lose its roles" in message
    assert "name the key with text_field" not in message


def test_other_records_are_read_as_before(volume: Volume):
    lines = [
        {"text": "a", "messages": [{"role": "user", "content": "b"}]},
        {"pages": [{"text": "a"}, {"text": "b"}]},
        {"prompt": "a", "completion": "b", "text": "c"},
        {"text": ["a", {"role": "x"}]},
    ]
    store = volume.store({"a.jsonl": "\n".join(map(json.dumps, lines))})
    assert store.manifest.totals["documents"] == 4


def test_questions_and_answers_are_named(volume: Volume):
    volume.write({"a.jsonl": '{"prompt": "a", "completion": "b"}'})
    message = refused(volume)
    assert (
        "a.jsonl:1 is a record of question and answer (got keys prompt and completion)" in message
    )


def test_a_column_of_conversations_is_named(volume: Volume):
    rows = pyarrow.array([[{"role": "user", "content": "Hello"}]])
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"messages": rows}), sink)
    volume.write({"a.parquet": sink.getvalue()})
    for text_field in ("text", "messages"):
        message = refused(volume, text_field=text_field)
        assert "a.parquet holds chat records (got column 'messages')" in message
