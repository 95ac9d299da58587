"""What both models are asked with: the prompts of a file, else beginnings of held-out text."""

from typing import Any, NamedTuple

from trainer.contract.errors import RequestError
from trainer.contract.step_configs import EvaluateConfig
from trainer.contract.volume import path_on_volume
from trainer.tokens.store import TokenStore

NUM_PROMPTS = 3  # beginnings of held-out contexts where no prompt_file is given
PROMPT_TOKENS = 12
LOOKED_AT = 32  # contexts, for one that begins with words


class Prompt(NamedTuple):
    """As a report shows it, and as a model is asked with it."""

    text: str
    ids: list[int]


def prompt_text(config: EvaluateConfig) -> str:
    """The prompt file's text; empty where none is named."""
    if not config.prompt_file:
        return ""
    path = path_on_volume(config.volume, "prompt_file", config.prompt_file)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"prompt_file can't be read (got {config.prompt_file!r}: {error}). "
            "Name a UTF-8 text file on the volume, one prompt a line."
        ) from error


def prompts_of(config: EvaluateConfig, store: TokenStore, tokenizer: Any) -> list[Prompt]:
    """Those of the prompt file, else of held-out text, as the models are asked with them."""
    from trainer.models.chat_prompts import as_in_store, ids_before_answer, prompt_encoder
    from trainer.models.generation import read_prompts

    encode = prompt_encoder(as_in_store(tokenizer, store.manifest), store.manifest)
    if text := prompt_text(config):
        return [Prompt(line, encode(line)) for line in read_prompts(text)]
    if not store.manifest.chat:
        return [Prompt(text, encode(text)) for text in beginnings(store, tokenizer)]
    asked = [ids_before_answer(store, index) for index in _first_contexts(store)]
    return [Prompt(tokenizer.decode(ids, skip_special_tokens=True), ids) for ids in asked]


def _first_contexts(store: TokenStore) -> range:
    """Some held-out contexts at even distances, else training contexts."""
    manifest = store.manifest
    held_out = manifest.num_train_contexts < manifest.num_contexts
    first = manifest.num_train_contexts if held_out else 0
    step = max(1, (manifest.num_contexts - first) // NUM_PROMPTS)
    return range(first, manifest.num_contexts, step)[:NUM_PROMPTS]


def beginnings(store: TokenStore, tokenizer: Any) -> list[str]:
    """The first words of some held-out contexts, else of training contexts."""
    contexts, prompts = _first_contexts(store), []
    for begin in contexts:
        near = range(begin, min(begin + contexts.step, begin + LOOKED_AT))
        texts = [_beginning(store, tokenizer, index) for index in near]
        prompts.append(next(filter(_is_words, texts), texts[0]))
    return prompts


def _beginning(store: TokenStore, tokenizer: Any, index: int) -> str:
    text = store.document_of(index)[0].end if store.manifest.packed else int(store.lengths[index])
    length = min(PROMPT_TOKENS, text)
    return tokenizer.decode(store.contexts[index, :length].tolist(), skip_special_tokens=True)


def _is_words(text: str) -> bool:
    """Whether a person can judge how it continues: not of a ruled line or a table of figures."""
    return sum(map(str.isalpha, text)) > len(text) / 2
