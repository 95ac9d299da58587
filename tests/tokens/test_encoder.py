"""No encoder is trusted, and no text is cut, without proof."""

import base64
import gzip
import itertools
import json
import os
import random
import re
import socket
from dataclasses import asdict
from pathlib import Path

import pytest
import zstandard
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.tokens.conftest import Volume, texts
from tests.tokens.corpora import strange_text
from tests.tokens.models import EOT, LLAMA, TEXT, byte_level, save
from tests.tokens.prose import story
from tests.tokens.test_inputs import parquet
from trainer.tokens.encode import worker
from trainer.tokens.encode.encoder import OwnEncoder, fast_encoder, hard_texts, prove
from trainer.tokens.encode.worker import Recipe
from trainer.tokens.text.cuts import (
    PIECE_BYTES,
    TIGHT_CUT,
    WINDOW_BYTES,
    cut_bytes,
    cut_text,
    first_cut,
)
from trainer.tokens.text.parts import plan_parts, sample_places
from trainer.tokens.text.reading import read_texts
from trainer.tokens.text.samples import read_samples
from trainer.tokens.text.sanitize import sanitize
from trainer.tokens.text.sources import list_sources


def without_words() -> Tokenizer:
    """A byte-level BPE that merges across spaces, as SentencePiece's do."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: at for at, piece in enumerate([EOT, *alphabet, "eĠ", "eĠt", "eĠth"])}
    merges = [("e", "Ġ"), ("eĠ", "t"), ("eĠt", "h")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def changed(**parts: object) -> str:
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer.to_str()


@pytest.mark.parametrize("pattern", ["", LLAMA])
def test_tokenizers_of_gpt2s_kin_are_encoded_fast_and_in_parts(pattern: str):
    tokenizer = byte_level(pattern).to_str()
    assert prove(tokenizer, hard_texts(tokenizer)) == (True, True)
    assert prove(tokenizer, [TEXT, story(1, 4_000)]) == (True, True)


@pytest.mark.parametrize(
    "tokenizer_json",
    [
        without_words().to_str(),
        changed(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        changed(normalizer=normalizers.Prepend("x")),
    ],
)
def test_text_is_not_cut_where_that_would_change_ids(tokenizer_json: str):
    assert not prove(tokenizer_json, [TEXT, "the the the the the the the the\n" * 9]).cuts


@pytest.mark.parametrize("token", ["end of story", "<unused0>"])
def test_text_is_not_cut_where_a_special_token_may_reach_over_the_cut(token: str):
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.add_special_tokens([AddedToken(token, normalized=False)])
    assert not prove(tokenizer.to_str(), ["a"]).cuts


def test_text_is_not_cut_between_letter_and_digit_where_words_hold_both():
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    split = pre_tokenizers.Split(Regex(r"\w+|\s+|[^\w\s]+"), "isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, by_bytes])
    model = json.loads(tokenizer.to_str())
    assert prove(json.dumps(model), [TEXT]).cuts
    model["model"]["vocab"]["h7"] = len(model["model"]["vocab"]) + 1
    model["model"]["merges"].insert(0, ["h", "7"])
    assert not prove(json.dumps(model), [TEXT]).cuts  # though no text has them


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_a_line_of_megabytes_without_a_space_is_read_in_parts(tmp_path: Path, name: str):
    line = base64.b64encode(random.Random(0).randbytes(5_000_000))
    content = b'{"text": "%s"}' % line if name == "a.jsonl" else line
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name == "a.txt.gz" else content)
    (source,) = list_sources(str(tmp_path.parent), tmp_path.name)
    read = [text for part in plan_parts(source, "", "text", True) for text in read_texts(part)]
    parts = [text.text for text in read if text]
    assert b"".join(parts) == line
    assert max(map(len, parts)) < PIECE_BYTES + 2 * WINDOW_BYTES
    for before, after in itertools.pairwise(parts):
        assert before[-1:].isalpha() and after[:1].isdigit()


def test_a_tokenizer_that_may_not_be_cut_gives_the_models_own_ids(volume: Volume):
    tokenizer = without_words()
    save(tokenizer, volume.root / "models/whole", eos_token=EOT)
    text = story(1, 1_500_000)
    store = volume.store({"a.txt": text}, model="models/whole", context=4096, boundary_token="")
    ids = [token for row in texts(store) for token in row]
    assert ids == [*tokenizer.encode(sanitize(text.encode()).decode()).ids, 0]


def test_a_tokenizer_that_the_fast_encoder_refuses_is_used_all_the_same(volume: Volume):
    vocab = {word: at for at, word in enumerate(["<unk>", "</s>", "the", "rider", "well"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    save(tokenizer, volume.root / "models/words", eos_token="</s>")
    store = volume.store({"a.txt": "the rider"}, model="models/words", boundary_token="the")
    assert texts(store) == [[2, 3, 1]]
    assert store.manifest.encoder.startswith("tokenizers ")


def sampled(volume: Volume, name: str, content: bytes) -> list[str]:
    """What an encoder would be proven on."""
    volume.write({name: content})
    sources = list_sources(str(volume.root), "tales")
    return read_samples(sample_places(sources, ["0" * 64]), False, "text")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.txt.zst", "a.parquet"])
def test_samples_come_from_all_of_the_corpus(volume: Volume, name: str):
    lines = [f"line {at} {story(at, 3_000)}".replace("\n", " ") for at in range(1_000)]
    text = "\n".join(lines).encode()
    if "jsonl" in name:
        text = "\n".join(json.dumps({"text": line}) for line in lines).encode()
    content = {
        "gz": lambda: gzip.compress(text, 1),
        "zst": lambda: zstandard.compress(text),
        "parquet": lambda: parquet(lines),
    }.get(name.rpartition(".")[2], lambda: text)()
    samples = sampled(volume, name, content)
    numbers = [int(at) for sample in samples for at in re.findall(r"line (\d+) ", sample)]
    quarters = {at // 250 for at in numbers}
    assert quarters == {0, 1, 2, 3}


@pytest.mark.parametrize("model", ["bytes", "llama"])
def test_parts_encode_to_the_ids_of_the_whole(model: str):
    tokenizer = byte_level(LLAMA if model == "llama" else "").to_str()
    own, fast = OwnEncoder(tokenizer, cuts=False), fast_encoder(tokenizer)
    assert fast
    draw = random.Random(0)
    documents = ["".join(strange_text(draw) for _ in range(6)) for _ in range(60)]
    wanted = own.encode(documents)[0].tolist()
    assert fast.encode(documents)[0].tolist() == wanted
    parts = [part for text in documents for part in cut_text(text, 30)]
    assert len(parts) > 4 * len(documents)
    assert own.encode(parts)[0].tolist() == wanted
    tight = [part for text in documents for part in cut_text(text, 1, TIGHT_CUT)]
    assert len(tight) > len(documents)
    assert own.encode(tight)[0].tolist() == wanted
    assert OwnEncoder(tokenizer, cuts=True).encode(documents)[0].tolist() == wanted


def test_parts_are_sanitized_to_the_text_of_the_whole():
    draw = random.Random(1)
    for _ in range(300):
        text = "".join(strange_text(draw) for _ in range(4))
        first, *rest = cut_text(text, 20)
        parts = [sanitize(first.encode()), *(sanitize(b"a" + p.encode())[1:] for p in rest)]
        assert b"".join(parts) == sanitize(text.encode()), text


def test_a_cut_in_bytes_is_the_cut_in_text_wherever_the_window_begins():
    text = "中文字符 und über日本 the ridge"
    raw = text.encode()
    for begin in range(len(raw)):
        cut = cut_bytes(raw[begin:])
        if cut is not None:
            before = raw[: begin + cut].decode()  # between two characters
            assert first_cut(text, len(before) - 1) == len(before)


def test_tasks_that_came_at_once_are_all_answered_though_each_has_a_process_of_its_own(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.store({"a.txt": "the rider came down"})
    exports = (volume.root / "cache/tokens/tokenizers").glob("*.json")
    exported = next(path for path in exports if "tokenizer_json" in path.read_text())
    recipe = Recipe(
        tokenizer=str(exported), dtype="uint16", eot=0, sanitize=True, fast=True, cuts=True
    )
    monkeypatch.setattr(
        worker, "_MOST_GROWTH_BYTES", -(1 << 40)
    )  # each task leaves too much behind
    ours, theirs = socket.socketpair()
    task = json.dumps({"recipe": asdict(recipe), "make": []}).encode() + b"\n"
    ours.sendall(3 * task)
    ours.shutdown(socket.SHUT_WR)
    if not os.fork():
        ours.close()
        worker.serve(theirs)
        os._exit(0)
    theirs.close()
    assert ours.makefile().read() == 3 * '{"ids": 0}\n'
