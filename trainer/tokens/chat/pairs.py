"""Pairs of answers to one prompt, of which one is better: what DPO trains on.

    {"prompt": ..., "chosen": ..., "rejected": ...}   each a text, or a list of turns
    {"chosen": [...], "rejected": [...]}              conversations; what both begin with is the
                                                      prompt

A pair is two conversations. As in TRL all that follows the prompt is trained, what the template
puts behind an answer with it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.contract.errors import RequestError
from trainer.contract.step_configs import TokenizeConfig
from trainer.tokens.chat.conversations import (
    Conversation,
    RecordError,
    are_turns,
    read_tools,
    turns_of,
    with_system,
)
from trainer.tokens.chat.encoding import Encoded
from trainer.tokens.chat.ledger import RecordCounts
from trainer.tokens.chat.templates import ChatTemplate
from trainer.tokens.chat.trained_parts import ASSISTANT, Rendered, first_difference
from trainer.tokens.store import SIDES

_NOT_READ = ("image", "images", "history", "messages", "completion")


def pair_of(record: Any, system: str = "") -> tuple[Conversation, Conversation]:
    """The conversations with the better and with the worse answer.

    Args:
        record: As JSON or parquet gives it.
        system: The system turn of a record that has none; empty: leave it so.
    Raises:
        RecordError: It is no pair, or holds something that would be lost.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"is no object (got {record!r:.60})")
    if any(record.get(side) in (None, []) for side in SIDES):
        raise RecordError(
            f"is no pair (got the keys {', '.join(map(str, record)) or 'none'}). A pair has "
            "'prompt', 'chosen' and 'rejected'"
        )
    if unread := [key for key in _NOT_READ if record.get(key)]:
        raise RecordError(f"has the key {unread[0]!r}, which is not read. Take it out")
    prompt, *answers = _parts(record)
    _check(prompt, answers, given=record.get("prompt") is not None)
    tools = read_tools(record.get("tools"))
    chosen, rejected = (
        with_system(Conversation([*prompt, *answer], tools, len(prompt)), record, system)
        for answer in answers
    )
    return chosen, rejected


def _parts(record: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Turns of the prompt, the better and the worse answer."""
    if record.get("prompt") is not None:
        answers = [turns_of(record[side], ASSISTANT, side) for side in SIDES]
        return [turns_of(record["prompt"], "user", "prompt"), *answers]
    if not all(are_turns(record[side]) for side in SIDES):
        raise RecordError(
            "has no 'prompt'. Only of two conversations it can be told: it is what both begin with"
        )
    chosen, rejected = (turns_of(record[side], ASSISTANT, side) for side in SIDES)
    alike = 0
    while chosen[alike : alike + 1] and chosen[alike : alike + 1] == rejected[alike : alike + 1]:
        alike += 1
    return [chosen[:alike], chosen[alike:], rejected[alike:]]


def _check(
    prompt: list[dict[str, Any]], answers: list[list[dict[str, Any]]], *, given: bool
) -> None:
    """Raise RecordError where prompt and answers do not follow each other."""
    if not prompt:
        raise RecordError("has no prompt: 'chosen' and 'rejected' begin with different turns")
    for side, answer in zip(SIDES, answers, strict=True):
        if not answer:
            raise RecordError(f"has no answer in {side!r} beside what both begin with")
        if answer[0]["role"] != ASSISTANT:
            mend = "Take 'prompt' out" if given else "The first turn that differs is an answer"
            raise RecordError(
                f"has a {side!r} that goes on after the prompt with a turn of "
                f"{answer[0]['role']}, not of the assistant. {mend}"
            )
    if prompt[-1]["role"] == ASSISTANT:
        raise RecordError("has a prompt that ends with a turn of the assistant. End it before that")


def rendered_pair(template: ChatTemplate, pair: Sequence[Conversation]) -> list[Rendered]:
    """The texts of both conversations, each trained after its prompt.

    Raises:
        RecordError: The template does not take it, or writes the prompt alone otherwise.
    """
    return [_rendered(template, conversation) for conversation in pair]


def _rendered(template: ChatTemplate, conversation: Conversation) -> Rendered:
    whole = template.render(conversation)
    before = template.render(conversation, conversation.begin, asks=True)
    if not whole.startswith(before):
        place = first_difference(whole, before)
        raise RecordError(
            "is not the sum of its parts in the chat template: the prompt alone gives "
            f"{before[place : place + 30]!r} where the whole has {whole[place : place + 30]!r}. "
            "Take another template (data.template)"
        )
    return Rendered(whole, [(len(before), len(whole))])


def fitted_pair(
    config: TokenizeConfig, counts: RecordCounts, place: str, pair: Sequence[Encoded]
) -> list[Encoded]:
    """A pair by the rule for long ones, each half in a context; empty where it is left out.

    Args:
        place: Of the record, for people.
    Raises:
        RequestError: An answer has no token, or a half is too long.
    """
    context, too_long = config.context, config.data.too_long
    lengths = [len(half.ids) for half in pair]
    counts.tokens += sum(lengths)
    for side, half in zip(SIDES, pair, strict=True):
        if not half.trained.any():
            raise RequestError(
                f"dataset file {place} has no token to train on in {side!r} (got {len(half.ids)} "
                "tokens). Take it out of the file."
            )
    if max(lengths) <= context:
        return list(pair)
    if too_long == "refuse":
        side = SIDES[lengths[0] <= context]
        raise RequestError(
            f"dataset file {place} is longer than a context (got {max(lengths):,} tokens of prompt "
            f"and {side!r}, context={context:,}). Set context higher, or data.too_long to drop or "
            "cut."
        )
    cut = [Encoded(half.ids[:context], half.trained[:context]) for half in pair]
    if too_long == "cut" and all(half.trained.any() for half in cut):
        counts.cut += 1
        counts.cut_tokens += sum(max(0, length - context) for length in lengths)
        return cut
    if too_long == "cut":
        counts.cut_before_answer += 1
    else:
        counts.too_long += 1
    counts.dropped_tokens += sum(lengths)
    return []
