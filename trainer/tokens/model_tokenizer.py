"""The tokenizer of a model's folder: the one in its tokenizer.json.

The base was trained with that file. For some classes transformers rebuilds the normalizer or
the splitting of words from its own code and gives other ids, without a word (its issues 45812,
45920, 48967). So the file is loaded as it is, and transformers only says what the file does
not: special tokens, chat template, whether a text begins with a token.

Importing this loads nothing heavy; loading a tokenizer loads transformers, but no torch.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from trainer.contract.json_text import parse_json
from trainer.tokens.byte_level import byte_alphabet

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
PLAIN_CLASS = "PreTrainedTokenizerFast"
"""The class that every version of transformers makes from tokenizer.json, unchanged."""
_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_PARTS = ("normalizer", "pre_tokenizer", "model")
_PROBES = ("2023", "in 2023", "Hello, world!", "don't I'LL", " a  b\n\n c\t", "ÀÉe\u0301ﬁ中文😀")


class Loaded(NamedTuple):
    """A tokenizer, and what a user has to know of it."""

    tokenizer: Any
    notice: str
    """Empty, or that transformers' own class gives other ids."""


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Loaded:
    """The tokenizer in `folder`, with the ids that its tokenizer.json gives.

    Raises:
        OSError, ValueError, KeyError, ImportError: transformers can't load it.
    """
    tokenizer, notice = _as_the_file_says(folder, trust_remote_code)
    model: Any = tokenizer.backend_tokenizer.model if tokenizer.is_fast else None
    if dropout := getattr(model, "dropout", None):
        model.dropout = None
        notice = (
            f"{FILE} asks for a BPE dropout of {dropout:g}, which draws other ids each time. "
            f"It is not used: the same text always gets the same ids. {notice}"
        ).strip()
    return Loaded(tokenizer, f"{notice} {_missing_bytes(tokenizer)}".strip())


def _missing_bytes(tokenizer: Any) -> str:
    """A sentence where a byte-level vocabulary lacks bytes."""
    backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
    if backend is None or "ByteLevel" not in str(backend.decoder):
        return ""
    lacking = [b for c, b in byte_alphabet().items() if backend.token_to_id(c) is None]
    if not lacking:
        return ""
    unknown = getattr(backend.model, "unk_token", None)
    instead = f"becomes {unknown!r}" if unknown else "is left out"
    return (
        f"the vocabulary has no token for {len(lacking)} of the 256 bytes (for instance "
        f"0x{min(lacking):02x}): text with such a byte is encoded, and the byte {instead}."
    )


def _as_the_file_says(folder: Path, trust_remote_code: bool) -> Loaded:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    options: dict[str, Any] = {"local_files_only": True}
    try:
        theirs = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, **options
        )
    except (OSError, ValueError, KeyError, ImportError):
        if trust_remote_code or not (folder / FILE).is_file():
            raise
        return Loaded(PreTrainedTokenizerFast.from_pretrained(folder, **options), "")
    plain = type(theirs) is PreTrainedTokenizerFast
    own_code = not type(theirs).__module__.startswith("transformers.")
    if plain or own_code or not theirs.is_fast or not (folder / FILE).is_file():
        return Loaded(theirs, "")
    options |= _defaults(folder, theirs)
    ours = PreTrainedTokenizerFast.from_pretrained(folder, **options)
    return Loaded(ours, _difference(ours, theirs))


def _defaults(folder: Path, theirs: Any) -> dict[str, str]:
    """Special tokens that only the class names, as far as the file has them."""
    fields = parse_json((folder / FILE).read_text(encoding="utf-8"))
    known = {token["content"] for token in fields["added_tokens"]} | pieces_of(fields).keys()
    named = {f"{name}_token": getattr(theirs, f"{name}_token") for name in _NAMES}
    settings = read_settings(folder)
    return {
        name: str(token)
        for name, token in named.items()
        if token and name not in settings and str(token) in known
    }


def pieces_of(fields: dict[str, Any]) -> dict[str, int]:
    """The vocabulary of the model in a tokenizer.json, without added tokens."""
    vocab = fields["model"]["vocab"]
    if isinstance(vocab, dict):
        return vocab
    return {entry[0]: index for index, entry in enumerate(vocab)}


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty where there is none."""
    try:
        return dict(parse_json((folder / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _difference(ours: Any, theirs: Any) -> str:
    """A sentence where transformers' class gives other ids than the file."""
    one, other = (parse_json(each.backend_tokenizer.to_str()) for each in (ours, theirs))
    if all(one[part] == other[part] for part in _PARTS):
        return ""
    for text in (*_PROBES, *_hard_texts(ours)):
        of_file, of_class = (
            each.backend_tokenizer.encode(text, add_special_tokens=False) for each in (ours, theirs)
        )
        if of_file.ids != of_class.ids:
            return (
                f"transformers' {type(theirs).__name__} gives other ids than {FILE}: of {text!r} "
                f"it makes {of_class.tokens[:8]}, and the file {of_file.tokens[:8]}. "
                f"{FILE} is used for training, samples, the server and the final model."
            )
    return ""


def _hard_texts(tokenizer: Any) -> list[str]:
    from trainer.tokens.encode.encoder import hard_texts

    return hard_texts(tokenizer.backend_tokenizer.to_str())


# --- what stands before a text ----------------------------------------------------------


@functools.lru_cache(maxsize=8)
def ids_before_text(tokenizer: Any) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text, as Llama's beginning-of-text; often none.

    What it puts after a text is not meant: the end of a document is `eot_token`.
    """
    for text in ("a", "1", ".", "e", "的"):
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = tokenizer(text)["input_ids"]
        for begin in range(len(whole) - len(plain) + 1 if plain else 0):
            if whole[begin : begin + len(plain)] == plain:
                return tuple(whole[:begin])
    return ()


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text that the model is to continue: as a document begins in training."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids_before_text(tokenizer), *ids]


def changes_stores(folder: Path) -> bool:
    """Whether a store of this tokenizer may differ from one of before these rules.

    Before, documents never began with a token, and transformers' class decided about the
    ids. Reads the files alone. GPT-2 and its kin stay as they were.
    """
    try:
        fields = parse_json((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        gpt2 = any((folder / name).is_file() for name in ("merges.txt", "vocab.bpe"))
        return not gpt2 or bool(read_settings(folder).get("add_bos_token"))
    except (OSError, ValueError):
        fields = None
    if not (isinstance(fields, dict) and isinstance(fields.get("model"), dict)):
        return False  # its reader says what is wrong
    settings = read_settings(folder)
    processors = fields.get("post_processor") or {}
    stages = processors.get("processors", [processors])
    adds = any(stage.get("type", "ByteLevel") != "ByteLevel" for stage in stages)
    named = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
    plain = named in ("PreTrainedTokenizer", "TokenizersBackend")
    # Of Qwen's model types transformers takes its own class, whatever the settings name.
    rebuilt = str(model_type(folder)).startswith("qwen") or not plain
    drops = fields["model"].get("dropout")
    return adds or bool(drops) or (rebuilt and not _is_gpt2(fields))


def model_type(folder: Path) -> Any:
    """The architecture that config.json names, or None."""
    try:
        return parse_json((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


def _is_gpt2(fields: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is what transformers' GPT2Tokenizer rebuilds."""
    words = fields.get("pre_tokenizer") or {}
    return (
        not fields.get("normalizer")
        and words.get("type") == "ByteLevel"
        and not words.get("add_prefix_space")
        and bool(words.get("use_regex", True))
    )


# --- writing it -------------------------------------------------------------------------


def save_tokenizer(tokenizer: Any, folder: Path, end_id: int | None = None) -> None:
    """Write a tokenizer so that every version of transformers gives its ids.

    Args:
        tokenizer: As load_tokenizer gives it.
        folder: Where to; holds the model's config.json.
        end_id: The token that ended texts in training: it becomes the tokenizer's own.
    """
    end = _end_token(tokenizer, end_id)
    before = tokenizer.eos_token
    if end:
        tokenizer.eos_token = end
    tokenizer.save_pretrained(folder)
    tokenizer.eos_token = before
    if tokenizer.is_fast and type(tokenizer).__module__.startswith("transformers."):
        path = folder / SETTINGS
        settings = parse_json(path.read_text(encoding="utf-8"))
        settings["tokenizer_class"] = PLAIN_CLASS
        for name in ("is_local", "local_files_only"):  # how it was loaded here
            settings.pop(name, None)
        # Version 4 names these otherwise, and version 5 reads both.
        if isinstance(settings.get("extra_special_tokens"), list):
            settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tell_of_other_ids(tokenizer: Any, folder: Path) -> None:
    """Say so where AutoTokenizer gives other ids in spite of what was written to `folder`.

    For Qwen's model types transformers 5 takes its own class, whatever the settings name.
    """
    from trainer.contract import events

    if not tokenizer.is_fast:
        return
    notice = _as_the_file_says(folder, trust_remote_code=False).notice
    if notice:
        events.say(
            f"tokenizer of the final model: {notice} Elsewhere load it with "
            f"{PLAIN_CLASS}.from_pretrained, not with AutoTokenizer."
        )


def _end_token(tokenizer: Any, end_id: int | None) -> str | None:
    """The text of `end_id`, if it is a token of its own and not one that text is made of.

    An ordinary token, a line break say, would vanish from every answer if it were special.
    """
    if end_id is None or end_id == tokenizer.eos_token_id:
        return None
    added = getattr(tokenizer, "added_tokens_decoder", {}).get(end_id)
    return None if added is None else str(added)
