"""The tokenizer of a folder is its tokenizer.json, and documents begin as it begins a text."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.tokens.conftest import Volume, texts
from tests.tokens.models import EOT, byte_level, save
from trainer.contract.errors import RequestError
from trainer.contract.topics import DataConfig
from trainer.models.chat_prompts import as_in_store
from trainer.tokens.beginning import check_beginning
from trainer.tokens.encode.vocabulary import model_config, tokenizer_digest
from trainer.tokens.encode.worker import with_marks
from trainer.tokens.model_tokenizer import (
    encode_prompt,
    ids_before_text,
    load_tokenizer,
    save_tokenizer,
    tell_of_other_ids,
)


def digits_apart() -> Tokenizer:
    """Splits digits, which the classes of GPT-2's and Qwen's kin do not."""
    vocab = {c: at for at, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("2", "0"), ("2", "3"), ("20", "23")]
    vocab |= {a + b: len(vocab) + at for at, (a, b) in enumerate(merges)}
    vocab |= {EOT: len(vocab), "<s>": len(vocab) + 1}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    split = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([EOT, "<s>"])
    return tokenizer


def begins_with(tokenizer: Tokenizer, single: str) -> Tokenizer:
    """A copy that puts special tokens round a text, as `single` says."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    names = [part for part in single.split() if not part.startswith("$")]
    pairs = [(name, copy.token_to_id(name)) for name in names]
    copy.post_processor = processors.TemplateProcessing(single=single, special_tokens=pairs)
    return copy


def made(folder: Path, tokenizer: Tokenizer, model_type: str = "gptj", **settings: object) -> Path:
    save(tokenizer, folder, **{"eos_token": EOT, **settings})  # type: ignore[arg-type]
    config = {"model_type": model_type, "vocab_size": tokenizer.get_vocab_size()}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# --- tokenizer.json decides -------------------------------------------------------------

NUMBERS = "in 2023 don't e\u0301"
CLASSES = [
    ("gptj", "GPT2TokenizerFast"),
    ("gpt2", "GPT2Tokenizer"),
    ("gpt_neox", "GPTNeoXTokenizerFast"),
    ("qwen2", "Qwen2TokenizerFast"),
    ("llama", "LlamaTokenizerFast"),
    ("phi", "CodeGenTokenizerFast"),
    ("qwen3_5", "PreTrainedTokenizerFast"),
    ("gptj", "NoSuchTokenizer"),
]


@pytest.mark.parametrize(("model_type", "name"), CLASSES)
def test_ids_are_those_of_tokenizer_json(tmp_path: Path, model_type: str, name: str, capsys):
    file = digits_apart()
    folder = made(tmp_path / "model", file, model_type, tokenizer_class=name)
    tokenizer, notice = load_tokenizer(folder)
    expected = file.encode(NUMBERS).ids
    assert tokenizer(NUMBERS)["input_ids"] == expected
    assert tokenizer.eos_token == EOT
    theirs = AutoTokenizer.from_pretrained(folder)
    assert ("gives other ids" in notice) == (theirs(NUMBERS)["input_ids"] != expected)
    final = tmp_path / "final"
    final.mkdir()
    (final / "config.json").write_text((folder / "config.json").read_text())
    save_tokenizer(tokenizer, final)
    tell_of_other_ids(tokenizer, final)
    same = AutoTokenizer.from_pretrained(final)(NUMBERS)["input_ids"] == expected
    assert same != ("not with AutoTokenizer" in capsys.readouterr().out)
    assert same or model_type.startswith("qwen")
    again = PreTrainedTokenizerFast.from_pretrained(final)
    assert again(NUMBERS)["input_ids"] == expected


def test_a_store_has_the_ids_of_tokenizer_json(volume: Volume, capsys):
    file = digits_apart()
    made(volume.root / "models/digits", file, tokenizer_class="GPT2TokenizerFast")
    store = volume.store({"a.txt": "in 2023"}, model="models/digits")
    eot = file.token_to_id(EOT)
    assert texts(store) == [[*file.encode("in 2023").ids, eot]]
    assert "GPT2Tokenizer gives other ids than tokenizer.json" in capsys.readouterr().out


def test_a_default_of_the_class_that_the_file_lacks_is_no_new_token(tmp_path: Path):
    file = byte_level()
    folder = made(tmp_path / "model", file, "llama", tokenizer_class="LlamaTokenizerFast")
    tokenizer, _ = load_tokenizer(folder)
    assert len(tokenizer) == file.get_vocab_size()  # and not an <unk>, <s> and </s> of its own


def test_bpe_dropout_is_not_used_for_stores(volume: Volume, capsys):
    file = byte_level()
    dropping = Tokenizer.from_str(file.to_str())
    dropping.model.dropout = 0.5
    made(volume.root / "models/dropping", dropping)
    text = "The rider came down from the ridge at noon, and nobody asked. " * 20
    first = volume.store({"a.txt": text}, model="models/dropping", sanitize=False)
    assert "BPE dropout of 0.5" in capsys.readouterr().out
    ids = [token for context in texts(first) for token in context]
    assert ids == [*file.encode(text).ids, 0]
    again = volume.store(None, model="models/dropping", sanitize=False, retokenize=True)
    assert again.manifest.digests == first.manifest.digests
    assert load_tokenizer(volume.root / "models/dropping").tokenizer(text)["input_ids"] == ids[:-1]


# --- the beginning of a text ------------------------------------------------------------

BEGINNINGS = [
    ("$A", {}, []),
    ("<|pad|> $A", {}, ["<|pad|>"]),
    ("<|pad|> <|turn|> $A", {}, ["<|pad|>", "<|turn|>"]),
    ("<|pad|> $A <|turn|>", {}, ["<|pad|>"]),
    ("$A <|turn|>", {}, []),
    # The file says it; these settings are for folders without one, as transformers reads them.
    ("$A", {"add_bos_token": True, "bos_token": "<|turn|>"}, []),
    ("$A", {"add_eos_token": True}, []),
    ("<|pad|> $A", {"add_bos_token": False, "bos_token": "<|pad|>"}, ["<|pad|>"]),
]


@pytest.mark.parametrize(("single", "settings", "tokens"), BEGINNINGS)
def test_documents_begin_as_the_tokenizer_begins_a_text(
    volume: Volume, single: str, settings: dict, tokens: list[str]
):
    file = byte_level()
    folder = made(volume.root / "models/new", begins_with(file, single), **settings)
    files = {"a.txt": "One.", "b.txt": "  ", "c.jsonl": '{"text": "Two"}\n\n{"text": "Three"}'}
    store = volume.store(files, model="models/new", boundary_token="")
    before = [file.token_to_id(token) for token in tokens]
    documents = [[*before, *file.encode(text).ids, 0] for text in ("One.", "Two", "Three")]
    stream = [token for ids in documents for token in ids]
    assert [token for ids in texts(store) for token in ids] == stream
    rows = [(row["path"], row["documents"], row["tokens"]) for row in store.manifest.sources]
    assert rows == [
        ("a.txt", 1, len(documents[0])),
        ("b.txt", 0, 0),
        ("c.jsonl", 2, len(documents[1]) + len(documents[2])),
    ]
    tokenizer, _ = load_tokenizer(folder)
    assert encode_prompt(tokenizer, "One.") == documents[0][:-1]
    assert ids_before_text(tokenizer) == tuple(before)


def test_a_final_tokenizer_begins_a_text_as_training_did(tmp_path: Path):
    file = begins_with(byte_level(), "<|pad|> $A")
    for number, settings in enumerate([{}, {"add_bos_token": False, "bos_token": "<|pad|>"}]):
        tokenizer, _ = load_tokenizer(made(tmp_path / f"model-{number}", file, **settings))
        final = tmp_path / f"final-{number}"
        save_tokenizer(tokenizer, final)
        expected = tokenizer("One.")["input_ids"]
        assert AutoTokenizer.from_pretrained(final)("One.")["input_ids"] == expected
        # Versions that read tokenizer.json alone give the same.
        assert Tokenizer.from_file(str(final / "tokenizer.json")).encode("One.").ids == expected


def test_a_long_document_begins_once(volume: Volume):
    """It is read in pieces: none but the first begins with the token."""
    file = byte_level()
    made(volume.root / "models/padded", begins_with(file, "<|pad|> $A"))
    text = "The rider came down from the ridge.\n" * 60_000
    store = volume.store({"a.txt": text}, model="models/padded", context=512)
    ids = np.array(store.contexts)
    assert (ids[0, 0], int((ids == 1).sum())) == (1, 1)  # padding is the end of text here
    assert store.manifest.num_tokens - store.manifest.totals["repeated"] > 4 << 16


def test_a_text_without_ids_has_both_marks_in_order():
    ids, ends = np.array([7, 8], np.uint32), np.array([0, 1, 1, 2])
    every = np.ones(3, bool)
    assert with_marks(ids, ends, every, every, [1], 0).tolist() == [1, 7, 0, 1, 0, 1, 8, 0]
    first, last = np.array([True, False, True]), np.array([False, True, True])
    assert with_marks(ids, ends, first, last, [1, 2], 0).tolist() == [1, 2, 7, 0, 1, 2, 8, 0]


def test_stores_of_gpt2_s_kin_keep_their_name(tmp_path: Path):
    import hashlib

    from trainer.tokens.store import file_digest

    def as_before(folder: Path) -> str:
        names = ("tokenizer.json", "tokenizer_config.json")
        known = {key: model_config(folder).get(key) for key in ("model_type", "tokenizer_class")}
        found = {name: file_digest(folder / name) for name in names}
        return hashlib.sha256(json.dumps([found, known], sort_keys=True).encode()).hexdigest()

    gpt2 = made(tmp_path / "gpt2", byte_level(), "gpt2", tokenizer_class="GPT2TokenizerFast")
    assert tokenizer_digest(gpt2) == as_before(gpt2)
    changed = {
        "llama": made(tmp_path / "begins", begins_with(byte_level(), "<|pad|> $A"), "llama"),
        "digits": made(tmp_path / "digits", digits_apart(), tokenizer_class="GPT2TokenizerFast"),
    }
    for folder in changed.values():
        assert tokenizer_digest(folder) != as_before(folder)


# --- the end of a text ------------------------------------------------------------------


def test_the_final_tokenizer_states_the_end_that_was_asked_for(tmp_path: Path):
    file = byte_level()
    file = Tokenizer.from_str(file.to_str())
    file.add_tokens([AddedToken("<|over|>", normalized=False)])
    tokenizer, _ = load_tokenizer(made(tmp_path / "model", file))
    over, text = file.token_to_id("<|over|>"), "it is <|over|>\n"
    save_tokenizer(tokenizer, tmp_path / "final", over)
    final = AutoTokenizer.from_pretrained(tmp_path / "final")
    assert (final.eos_token_id, final(text)["input_ids"]) == (over, file.encode(text).ids)
    assert tokenizer.eos_token == EOT
    # A line break stays a line break: as a special token it would be left out of answers.
    (newline,) = file.encode("\n").ids
    save_tokenizer(tokenizer, tmp_path / "lines", newline)
    lines = AutoTokenizer.from_pretrained(tmp_path / "lines")
    assert (lines.eos_token, lines.decode([newline], skip_special_tokens=True)) == (EOT, "\n")


# --- data.bos ---------------------------------------------------------------------------

LLAMAS, GPT2S, NEITHER = {"bos_token": "<|pad|>"}, {"bos_token": EOT}, {}
BEGINNINGS = [
    ("<|pad|> $A", LLAMAS, "never", []),
    ("<|pad|> $A", LLAMAS, "always", ["<|pad|>"]),
    ("$A", GPT2S, "always", [EOT]),
    ("$A", GPT2S, "never", []),
]


@pytest.mark.parametrize(("single", "settings", "bos", "tokens"), BEGINNINGS)
def test_documents_and_what_is_made_of_the_model_begin_as_asked(
    volume: Volume, single: str, settings: dict, bos: str, tokens: list[str]
):
    """In the store, in samples and the server, and in `final`, whatever loads it."""
    file = byte_level()
    folder = made(volume.root / "models/new", begins_with(file, single), **settings)
    options = {"model": "models/new", "boundary_token": "", "data": DataConfig(bos=bos)}
    store = volume.store({"a.txt": "One.", "b.txt": "Two"}, **options)
    before = [file.token_to_id(token) for token in tokens]
    stream = [[*before, *file.encode(text).ids, 0] for text in ("One.", "Two")]
    assert [token for ids in texts(store) for token in ids] == [*stream[0], *stream[1]]
    tokenizer = as_in_store(load_tokenizer(folder).tokenizer, store.manifest)
    assert encode_prompt(tokenizer, "One.") == stream[0][:-1]
    final = volume.root / "final"
    save_tokenizer(tokenizer, final)
    assert AutoTokenizer.from_pretrained(final)("One.")["input_ids"] == stream[0][:-1]
    assert load_tokenizer(final).tokenizer("One.")["input_ids"] == stream[0][:-1]
    whole = Tokenizer.from_file(str(final / "tokenizer.json"))
    assert whole.encode("One.").ids == stream[0][:-1]


def test_a_store_without_the_key_keeps_its_name_and_with_it_has_another(volume: Volume):
    made(volume.root / "models/new", begins_with(byte_level(), "<|pad|> $A"), **LLAMAS)
    stores = [
        volume.store({"a.txt": "One."}, model="models/new", data=DataConfig(bos=bos))
        for bos in ("", "never")
    ]
    assert "bos" not in stores[0].manifest.options
    assert stores[0].folder.name != stores[1].folder.name


def test_a_beginning_that_the_tokenizer_lacks_is_refused(volume: Volume):
    folder = made(volume.root / "models/new", byte_level(), **NEITHER)
    with pytest.raises(RequestError, match="'always': tokenizer new has no beginning-of-text"):
        volume.store({"a.txt": "One."}, model="models/new", data=DataConfig(bos="always"))
    with pytest.raises(RequestError, match="'always': tokenizer new has no beginning-of-text"):
        check_beginning("always", folder)
    check_beginning("never", folder)
    with pytest.raises(ValueError, match="bos has no effect on chats and completions"):
        DataConfig(shape="chat", bos="never")
