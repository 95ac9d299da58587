"""A slow, plain model of which ids of a conversation are trained, written without the product.

Token by token: each one's bytes are laid out over the text, and it is trained if one of them is
in an answer, or in the token that ends it. What an answer is, is read off the text by the
template's own words, not by rendering parts of it.
"""

from collections.abc import Sequence

from tests.tokens.models import spelled


def trained(
    tokenizer: object, ids: Sequence[int], text: str, answers: Sequence[tuple[int, int]]
) -> list[bool]:
    """Whether each id is trained.

    Args:
        answers: From where to where, in characters, each answer and its end stand in the text.
    """
    wanted = [False] * len(text.encode())
    for begin, end in answers:
        for at in range(len(text[:begin].encode()), len(text[:end].encode())):
            wanted[at] = True
    found, at = [], 0
    pieces = spelled(tokenizer)  # type: ignore[arg-type]
    for piece in (pieces[token] for token in ids):
        found.append(any(wanted[at : at + len(piece)]))
        at += len(piece)
    assert at == len(text.encode()), "the ids are those of the text"
    return [False, *found[1:]]


def chatml(turns: Sequence[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation in ChatML, and where its answers are."""
    text, answers = "", []
    for role, content in turns:
        text += f"<|im_start|>{role}\n"
        begin = len(text)
        text += f"{content}<|im_end|>"
        if role == "assistant":
            answers.append((begin, len(text)))
        text += "\n"
    return text, answers


def inst(turns: Sequence[tuple[str, str]], eos: str) -> tuple[str, list[tuple[int, int]]]:
    """Likewise, as Llama 2 and Mistral write it: nothing but spaces before an answer."""
    text, answers = "", []
    for role, content in turns:
        if role == "user":
            text += f"[INST] {content} [/INST]"
        else:
            answers.append((len(text), len(text) + len(f" {content}{eos}")))
            text += f" {content}{eos}"
    return text, answers
