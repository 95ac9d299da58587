"""Which part of a rendered conversation is trained.

By the template's own marks (`{% generation %}`) where it has them. Else by rendering prefixes:
an answer of the assistant begins where the text of the turns before it ends, with the beginning
of an answer (`add_generation_prompt`), and ends where the text of the turns up to it ends. Both
have to be prefixes of the whole text: then the parts give the whole, and the model is trained
on what it is asked to write, after what it is asked with. A template that writes an earlier
turn otherwise once others follow (Qwen3's drops thoughts) has no such prefixes: its record is
refused, unless the template has marks.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from trainer.tokens.chat.conversations import Conversation, RecordError
from trainer.tokens.chat.templates import ChatTemplate

TrainOn = Literal["assistant", "last", "all"]
Spans = list[tuple[int, int]]
ASSISTANT = "assistant"


class Rendered(NamedTuple):
    """A conversation's text, and from where to where it is trained: characters, ascending."""

    text: str
    trained: Spans


def rendered(
    template: ChatTemplate,
    conversation: Conversation,
    train_on: TrainOn,
    special: Sequence[str] = (),
) -> Rendered:
    """The text of a conversation, and what of it is trained.

    Args:
        special: Texts of the tokenizer's special tokens, one of which may end a turn.
    Raises:
        RecordError: Its template does not take it, or its parts do not give the whole.
    """
    if train_on == "all":
        whole = template.render(conversation)
        return Rendered(whole, [(0, len(whole))])
    answers = [at for at, turn in enumerate(conversation.turns) if turn["role"] == ASSISTANT]
    wanted = [at for at in answers if at >= conversation.begin]
    if train_on == "last":
        wanted = wanted[-1:]
    if template.marks_generation(conversation):
        text, marks = template.render_marked(conversation)
        return Rendered(text, _of_marks(marks, answers, wanted))
    whole = template.render(conversation)
    spans = [_answer(template, conversation, at, whole, special) for at in wanted]
    return Rendered(whole, spans)


def _of_marks(marks: Spans, answers: list[int], wanted: list[int]) -> Spans:
    """Of the template's marks those of the wanted answers."""
    if wanted == answers:
        return marks
    if len(marks) != len(answers):
        raise RecordError(
            f"has {len(answers)} turns of the assistant, of which the template marks {len(marks)}: "
            "which of them are to be trained can't be told. Set data.train_on to assistant or all"
        )
    return [mark for at, mark in zip(answers, marks, strict=True) if at in wanted]


def _answer(
    template: ChatTemplate, conversation: Conversation, at: int, whole: str, special: Sequence[str]
) -> tuple[int, int]:
    """From where to where turn `at` is in the whole text, with the token that ends it."""
    before = template.render(conversation, at, asks=True)
    through = _without_end_of_text(template.render(conversation, at + 1), whole, special)
    if not (whole.startswith(through) and through.startswith(before)):
        part, words = (before, "before") if whole.startswith(through) else (through, "up to")
        place = first_difference(whole, part)
        raise RecordError(
            f"is not the sum of its parts in the chat template: the turns {words} turn {at + 1} "
            f"alone give {part[place : place + 30]!r} where the whole has "
            f"{whole[place : place + 30]!r}. Take a template that marks what is trained with "
            "{% generation %} (data.template), or data.train_on=last or all"
        )
    return len(before), len(before) + _end_of_turn(through[len(before) :], special)


def _without_end_of_text(through: str, whole: str, special: Sequence[str]) -> str:
    """The text of some turns without the token that ends a whole text, behind that of the turn.

    Phi-3's template puts it behind the last turn, whichever that is.
    """
    text = through.rstrip()
    last = next((token for token in special if text.endswith(token)), "")
    shorter = text.removesuffix(last)
    ends_a_turn = last and any(shorter.rstrip().endswith(token) for token in special)
    return shorter if ends_a_turn and not whole.startswith(through) else through


def _end_of_turn(answer: str, special: Sequence[str]) -> int:
    """Where an answer ends: after its last special token, if but white space follows that.

    The model stops at this token, so what a template puts behind it is never asked of the model.
    """
    ends = [answer.rfind(token) + len(token) for token in special if token in answer]
    last = max(ends, default=0)
    return last if last and not answer[last:].strip() else len(answer)


def first_difference(one: str, other: str) -> int:
    """Where two texts begin to differ; the shorter one's length where they do not."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def end_token(template: ChatTemplate, special: Sequence[str]) -> str:
    """The special token that the template ends an answer with; empty: none can be told."""
    turns = [{"role": "user", "content": "1"}, {"role": ASSISTANT, "content": "23"}]
    try:
        text = template.render(Conversation(turns))
    except RecordError:
        return ""
    behind = text[text.rfind("23") + 2 :].lstrip()
    return next((token for token in special if behind.startswith(token)), "")
