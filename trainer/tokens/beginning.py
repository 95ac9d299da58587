"""What a document begins with, as `data.bos` asks for it: '' as the tokenizer does, never, always.

The tokenizer itself is changed. So samples, the server and `final` begin a text as training did,
and ask nothing but the tokenizer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.contract.errors import RequestError
from trainer.tokens.model_tokenizer import PLAIN_CLASS, ids_before_text, read_settings


def before_document(bos: str, before: Sequence[int], bos_id: int | None, name: str) -> list[int]:
    """The ids that a document begins with.

    Args:
        bos: data.bos.
        before: What the tokenizer puts before a text.
        bos_id: Of the tokenizer's beginning-of-text token.
        name: Of the tokenizer, for the error.
    Raises:
        RequestError: Documents are to begin with a token that the tokenizer lacks.
    """
    if bos == "never":
        return []
    if bos == "always" and not before:
        if bos_id is None:
            raise RequestError(_without_token(name))
        return [bos_id]
    return list(before)


def check_beginning(bos: str, folder: Path) -> None:
    """Raise RequestError where the tokenizer's files say that it has no beginning-of-text token.

    A file that says nothing of it may be of a class that names one: the tokenize step decides.
    """
    settings = read_settings(folder)
    is_plain = settings.get("tokenizer_class") in (PLAIN_CLASS, "TokenizersBackend")
    says_none = is_plain or "bos_token" in settings
    if bos == "always" and says_none and not settings.get("bos_token"):
        raise RequestError(_without_token(folder.name))


def _without_token(name: str) -> str:
    return (
        f"data.bos can't be 'always': tokenizer {name} has no beginning-of-text token "
        "(its bos_token is not set). Leave data.bos out, or take a tokenizer that has one."
    )


def begin_as_asked(tokenizer: Any, bos: str) -> Any:
    """The tokenizer, changed to begin a text as documents began in training.

    Args:
        tokenizer: As load_tokenizer gives it, in its fast form.
        bos: data.bos.
    """
    before = list(ids_before_text(tokenizer))
    wanted = before_document(bos, before, tokenizer.bos_token_id, tokenizer.name_or_path)
    if wanted == before:
        return tokenizer
    from tokenizers import processors

    names = tokenizer.convert_ids_to_tokens(wanted)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*names, "$A"],
        pair=[*names, "$A", "$B:1"],
        special_tokens=list(zip(names, wanted, strict=True)),
    )
    # transformers 5 makes the processor anew from these where a saved tokenizer is loaded.
    tokenizer._add_bos_token, tokenizer._add_eos_token = bool(wanted), False
    tokenizer.init_kwargs |= {"add_bos_token": bool(wanted), "add_eos_token": False}
    ids_before_text.cache_clear()
    return tokenizer
