"""Prompts for models that are trained on chats: a prompt is a turn of the user's."""

from collections.abc import Callable, Sequence
from typing import Any

from trainer.tokens.beginning import begin_as_asked
from trainer.tokens.model_tokenizer import encode_prompt
from trainer.tokens.store import Manifest, TokenStore

Encode = Callable[[str], list[int]]
_WITH_TOOLS = "tool_use"
_BEGINNING_TOKENS = 32


def as_in_store(tokenizer: Any, manifest: Manifest) -> Any:
    """The tokenizer, changed to begin a text and to write a chat as those of the store."""
    begin_as_asked(tokenizer, manifest.options.get("bos", ""))
    if text := manifest.chat.get("template"):
        with_tools = manifest.chat.get("with_tools")
        named = {"default": text, _WITH_TOOLS: with_tools}
        tokenizer.chat_template = named if with_tools else text
    return tokenizer


def prompt_encoder(tokenizer: Any, manifest: Manifest) -> Encode:
    """What makes a model's input of a prompt, as its texts were in training.

    Args:
        tokenizer: As `as_in_store` returns it.
    """
    if not manifest.chat:
        return lambda text: encode_prompt(tokenizer, text)
    system = manifest.chat.get("system", "")
    before = [{"role": "system", "content": system}] if system else []

    def encode(text: str) -> list[int]:
        turns = [*before, {"role": "user", "content": text}]
        shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(shown, add_special_tokens=False)["input_ids"])

    return encode


def ids_before_answer(store: TokenStore, index: int) -> list[int]:
    """The ids of a chat up to where its first trained part begins: what its model is asked with.

    Where everything is trained, the beginning of the text.
    """
    trained = store.trained([index])
    end = 1 if trained is None else int(trained[0].argmax())
    if trained is None or (end == 1 and (store.manifest.packed or store.manifest.parts)):
        end = min(_BEGINNING_TOKENS, store.document_of(index)[0].end - 1)
    return store.contexts[index, : max(1, end)].tolist()


def shortest_prompts(store: TokenStore, among: Sequence[int], count: int) -> list[int]:
    """Of some contexts those with the shortest beginnings, in order."""
    lengths = {index: len(ids_before_answer(store, index)) for index in among}
    return sorted(sorted(among, key=lambda index: (lengths[index], index))[:count])
