"""Which ids are trained: against a plain model of the rules, and against transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from tests.chat import rules
from tests.chat.templates import (
    CHATML,
    DATED,
    FORGETS,
    INST,
    MARKED,
    TOKENIZERS,
    TURNS,
    with_turns,
)
from tests.tokens.models import EOT, byte_level
from trainer.tokens.chat.conversations import Conversation, RecordError
from trainer.tokens.chat.encoding import ChatEncoder, Encoded
from trainer.tokens.chat.templates import ChatTemplate
from trainer.tokens.chat.trained_parts import TrainOn, end_token, rendered

NAMES = {"eos_token": EOT, "bos_token": ""}
SPLIT_BY = {name: with_turns(kind) for name, kind in TOKENIZERS.items()}
ENCODERS = {name: ChatEncoder(tokenizer.to_str()) for name, tokenizer in SPLIT_BY.items()}
# What white space, accents, scripts and the words of templates do at the edges of an answer.
WORDS = [
    " ",
    "\n",
    "\n\n",
    "  ",
    "a",
    "The rider",
    "é",
    "日本",
    "👩‍👧",
    "[/INST]",
    "assistant",
    "1",
]
CONTENT = st.lists(st.sampled_from(WORDS), max_size=6).map("".join)
CHATS = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3).map(
    lambda pairs: [turn for q, a in pairs for turn in (("user", q), ("assistant", a))]
)


def conversation(turns: list[tuple[str, str]], **more: Any) -> Conversation:
    return Conversation([{"role": role, "content": text} for role, text in turns], **more)


def encoded(
    kind: str, template: str, chat: Conversation, train_on: TrainOn = "assistant"
) -> tuple[str, Encoded]:
    text = rendered(ChatTemplate(template, "", NAMES), chat, train_on, [*TURNS, EOT])
    return text.text, ENCODERS[kind].encode([text])[0]


def theirs(kind: str, template: str, chat: Conversation) -> dict[str, Any]:
    """What transformers makes of the conversation."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=SPLIT_BY[kind], eos_token=EOT)
    return tokenizer.apply_chat_template(
        chat.turns,
        tools=chat.tools,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(turns=CHATS)
def test_answers_are_trained_with_the_token_that_ends_them(
    kind: str, turns: list[tuple[str, str]]
) -> None:
    for template, model in ((CHATML, rules.chatml), (INST, lambda t: rules.inst(t, EOT))):
        wanted, answers = model(turns)
        text, found = encoded(kind, template, conversation(turns))
        assert text == wanted
        expected = rules.trained(SPLIT_BY[kind], found.ids.tolist(), text, answers)
        assert found.trained.tolist() == expected
        _, last = encoded(kind, template, conversation(turns), "last")
        only = rules.trained(SPLIT_BY[kind], found.ids.tolist(), text, answers[-1:])
        assert last.trained.tolist() == only


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(turns=CHATS)
def test_marks_give_what_transformers_makes_of_them_and_prefixes_the_same(
    kind: str, turns: list[tuple[str, str]]
) -> None:
    chat = conversation(turns)
    _, by_marks = encoded(kind, MARKED, chat)
    _, by_prefixes = encoded(kind, CHATML, chat)
    expected = theirs(kind, MARKED, chat)
    assert by_marks.ids.tolist() == by_prefixes.ids.tolist() == expected["input_ids"]
    assert by_marks.trained.tolist() == by_prefixes.trained.tolist()
    assert by_marks.trained.astype(int).tolist() == expected["assistant_masks"]


def test_white_space_of_an_answer_is_trained_where_a_tokenizer_trims_places() -> None:
    trims = Tokenizer.from_str(with_turns().to_str())
    trims.post_processor = processors.ByteLevel(trim_offsets=True)  # as GPT-2's and Llama 3's
    chat = conversation([("user", "a"), ("assistant", " \n\n a \n")])
    text = rendered(ChatTemplate(CHATML, "", NAMES), chat, "assistant", [*TURNS, EOT])
    [found] = ChatEncoder(trims.to_str()).encode([text])
    _, expected = encoded("gpt2", CHATML, chat)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.trained.tolist() == expected.trained.tolist()
    decoded = trims.decode(found.ids[found.trained].tolist(), skip_special_tokens=False)
    assert decoded.endswith(" \n\n a \n<|im_end|>")


def test_of_marks_the_last_one_is_the_last_answer_s() -> None:
    chat = conversation([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")])
    _text, found = encoded("gpt2", MARKED, chat, "last")
    decode = with_turns().decode
    assert decode(found.ids[found.trained], skip_special_tokens=False) == "d<|im_end|>"
    once = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    with pytest.raises(
        RecordError, match="2 turns of the assistant, of which the template marks 1"
    ):
        encoded("gpt2", once, chat, "last")


def test_an_answer_of_the_prompt_is_not_trained() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    for template in (CHATML, MARKED):
        _, found = encoded("gpt2", template, conversation(turns, begin=3))
        decode = with_turns().decode
        assert decode(found.ids[found.trained], skip_special_tokens=False) == "d<|im_end|>"


def test_all_is_every_token_but_the_first() -> None:
    _, found = encoded("gpt2", FORGETS, conversation([("user", "a"), ("assistant", "b")]), "all")
    assert found.trained.tolist() == [False] + [True] * (len(found.ids) - 1)


def by_trl() -> list[dict[str, Any]]:
    path = Path(__file__).with_name("trl_masks.json")
    return json.loads(path.read_text(encoding="utf-8"))["chats"]


@pytest.mark.parametrize("made", by_trl())
def test_prefixes_give_trl_s_masks_but_for_white_space_after_the_end(made: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    special = made["special"]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    names = {"eos_token": EOT, "bos_token": made["bos"]}
    text = rendered(
        ChatTemplate(made["template"], "", names),
        Conversation(made["turns"]),
        "assistant",
        sorted([*special, EOT], key=len, reverse=True),
    )
    [found] = ChatEncoder(tokenizer.to_str()).encode([text])
    assert found.ids.tolist() == made["ids"]
    theirs = np.array(made["mask"], bool)
    assert not (found.trained & ~theirs).any()
    more = found.ids[theirs & ~found.trained].tolist()
    assert not tokenizer.decode(more, skip_special_tokens=False).strip()
    assert found.trained.sum() >= 3


def test_parts_that_do_not_give_the_whole_are_refused() -> None:
    one = conversation([("user", "a"), ("assistant", "b")])
    _text, found = encoded("gpt2", FORGETS, one)
    decode = with_turns().decode
    answer = decode(found.ids[found.trained], skip_special_tokens=False)
    assert answer == "<think>\n\n</think>\n\nb<|im_end|>"
    two = conversation([*[(t["role"], t["content"]) for t in one.turns] * 2])
    with pytest.raises(RecordError, match=r"not the sum of its parts.*up to turn 2") as caught:
        encoded("gpt2", FORGETS, two)
    assert "{% generation %}" in str(caught.value)
    _, last = encoded("gpt2", FORGETS, two, "last")
    assert decode(last.ids[last.trained], skip_special_tokens=False) == answer


def test_what_a_template_raises_is_said() -> None:
    with pytest.raises(RecordError, match="Only user and assistant roles are supported"):
        encoded("gpt2", INST, conversation([("system", "s"), ("user", "a"), ("assistant", "b")]))


def test_every_day_gives_the_same_text_and_tools_are_passed() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    chat = conversation([("user", "a"), ("assistant", "b")], tools=tools)
    text, _ = encoded("gpt2", DATED, chat)
    assert text.startswith('26 Jul 2024[{"type": "function", "function": {"name": "look"}}]<|im')


def test_the_token_that_ends_an_answer_is_the_template_s() -> None:
    special = [*TURNS, EOT]
    assert end_token(ChatTemplate(CHATML, "", NAMES), special) == "<|im_end|>"
    assert end_token(ChatTemplate(INST, "", NAMES), special) == EOT
    assert end_token(ChatTemplate("{{ messages[-1].content }}", "", NAMES), special) == ""
