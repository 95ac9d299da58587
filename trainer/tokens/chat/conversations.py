"""From a record as people write it to a conversation as chat templates take it.

    chat        {"messages": [{"role": ..., "content": ...}, ...]}, and "tools"
                {"conversations": [{"from": "human", "value": ...}, ...]}, ShareGPT's
    completion  {"prompt": ..., "completion": ...}: texts, or lists of turns
                {"instruction": ..., "input": ..., "output": ...}, Alpaca's

Plain data in, plain data out. What can't be told is refused; nothing is left out in silence.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from trainer.contract.json_text import parse_json

CHAT_KEYS = ("messages", "conversations")
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"))
# ShareGPT's names of who speaks.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
# Keys by which other programs leave a turn or record out of training: to pass over one would
# train what its author did not want trained.
_OF_TURNS = ("weight", "train", "training")
_OF_RECORDS = ("history", "chosen", "rejected")


class RecordError(ValueError):
    """A record can't be read; who knows its place adds that."""


class Conversation(NamedTuple):
    """Turns as `apply_chat_template` takes them."""

    turns: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    begin: int = 0
    """The first turn that may be trained: those before it are a completion's prompt."""


def shape_of(record: Any, text_field: str) -> str:
    """What a record is by its keys: text, chat or completion. A text under its key goes first."""
    if not isinstance(record, Mapping) or text_field in record:
        return "text"
    if any(are_turns(record.get(key)) for key in CHAT_KEYS):
        return "chat"
    return "completion" if any(set(pair) <= record.keys() for pair in PAIRS) else "text"


def are_turns(value: Any) -> bool:
    """Whether a value is a list of turns."""
    return isinstance(value, list) and bool(value) and all(map(_is_turn, value))


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, Mapping) and ("role" in turn or {"from", "value"} <= turn.keys())


def conversation_of(record: Any, shape: str, system: str = "") -> Conversation:
    """The conversation that a record holds.

    Args:
        record: As JSON or parquet gives it.
        shape: chat or completion.
        system: The system turn of a record that has none; empty: leave it so.
    Raises:
        RecordError: It holds none, or something that would be lost.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"is no object (got {_shown(record)})")
    for key in _OF_RECORDS:
        if record.get(key):
            hint = "" if key == "history" else ", or set data.shape=preference to train on pairs"
            raise RecordError(f"has the key {key!r}, which is not read. Take it out{hint}")
    found = _chat(record) if shape == "chat" else _completion(record)
    return with_system(found, record, system)


def with_system(found: Conversation, record: Mapping[str, Any], system: str) -> Conversation:
    """The conversation with the record's own system turn, or `system`, where it has none."""
    own = record.get("system") or ""
    if not isinstance(own, str):
        raise RecordError(f"has a system turn that is no text (got {_shown(own)})")
    if (own or system) and found.turns[0]["role"] not in ("system", "developer"):
        first = {"role": "system", "content": own or system}
        return Conversation([first, *found.turns], found.tools, found.begin and found.begin + 1)
    return found


def _chat(record: Mapping[str, Any]) -> Conversation:
    turns = next((record[key] for key in CHAT_KEYS if record.get(key)), None)
    if not isinstance(turns, list):
        raise RecordError(
            f"is no chat (got the keys {', '.join(map(str, record)) or 'none'}). A chat has a "
            f"list of turns under {' or '.join(map(repr, CHAT_KEYS))}"
        )
    return Conversation([_turn(turn) for turn in turns], read_tools(record.get("tools")))


def _completion(record: Mapping[str, Any]) -> Conversation:
    pair = next((pair for pair in PAIRS if set(pair) <= record.keys()), None)
    if pair is None:
        pairs = ", ".join(" and ".join(map(repr, pair)) for pair in PAIRS)
        raise RecordError(
            f"is no completion (got the keys {', '.join(map(str, record)) or 'none'}). "
            f"A completion has {pairs}"
        )
    asked, answered = (record[key] for key in pair)
    if pair[0] == "instruction" and isinstance(asked, str):
        asked = _alpaca_question(asked, record.get("input"))
    before = turns_of(asked, "user", pair[0])
    after = turns_of(answered, "assistant", pair[1])
    return Conversation([*before, *after], read_tools(record.get("tools")), len(before))


def _alpaca_question(instruction: str, further: Any) -> str:
    """Source: LLaMA-Factory, which joins the two with a line break."""
    if further is not None and not isinstance(further, str):
        raise RecordError(f"has an 'input' that is no text (got {_shown(further)})")
    return f"{instruction}\n{further}" if further else instruction


def turns_of(value: Any, role: str, key: str) -> list[dict[str, Any]]:
    """The turns under a key: a text is one of `role`.

    Raises:
        RecordError: It is neither text nor turns.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if are_turns(value):
        return [_turn(turn) for turn in value]
    raise RecordError(f"has a {key!r} that is neither text nor turns (got {_shown(value)})")


def _turn(turn: Any) -> dict[str, Any]:
    """A turn without the keys that hold nothing, as transformers hands it to a template."""
    if not isinstance(turn, Mapping) or not _is_turn(turn):
        raise RecordError(f"has a turn without role and content (got {_shown(turn)})")
    for key in _OF_TURNS:
        if turn.get(key) is not None:
            raise RecordError(
                f"has a turn with {key!r}, which is not read (got {_shown(turn[key])}). "
                "data.train_on says which turns are trained. Take it out"
            )
    if "role" not in turn:
        return {"role": _role(turn["from"]), "content": _content(turn["value"])}
    if not isinstance(turn["role"], str) or not turn["role"]:
        raise RecordError(f"has a turn without a role (got {_shown(turn['role'])})")
    if turn.get("content") is None:
        if not turn.get("tool_calls"):
            raise RecordError(f"has a turn of {turn['role']} without content (got {_shown(turn)})")
        return {key: value for key, value in turn.items() if value is not None}
    said = {key: value for key, value in turn.items() if value is not None}
    return {**said, "content": _content(turn["content"])}


def _role(name: Any) -> str:
    if name not in _ROLES:
        raise RecordError(
            f"has a turn from {_shown(name)}. Known are {', '.join(_ROLES)}. Name it so"
        )
    return _ROLES[name]


def _content(value: Any) -> str:
    """Text, or the text of all parts: templates of language models take no parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RecordError(f"has a content that is neither text nor parts (got {_shown(value)})")
    return "".join(map(_part, value))


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
    raise RecordError(f"has a part of a content that is no text (got {_shown(part)})")


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """A list of tools' JSON schemas; some programs write it as JSON inside of a string."""
    if isinstance(value, str) and value:
        try:
            value = parse_json(value)
        except ValueError as error:
            raise RecordError(f"has tools that are no JSON ({error})") from error
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RecordError(f"has tools that are no list of objects (got {_shown(value)})")
    return [dict(tool) for tool in value]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
