"""What bad input gets: one message with the file and the place, and no store."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.tokens.conftest import Volume
from tests.tokens.models import EOT, byte_level, save
from tests.tokens.prose import story
from trainer.contract.errors import RequestError, StepError
from trainer.contract.files import writer_name
from trainer.tokens.encode.worker import PieceMaker, Recipe
from trainer.tokens.pack import making
from trainer.tokens.text.documents import whole_part
from trainer.tokens.text.sources import list_sources


def refused(volume: Volume, **options: object) -> str:
    with pytest.raises(RequestError) as raised:
        volume.run(**options)
    assert not list(volume.root.glob("tokens/*"))
    assert not list(volume.root.glob("tokens/.*"))
    return str(raised.value)


def test_a_dataset_that_is_missing(volume: Volume):
    assert "dataset is not there (got 'tales')" in refused(volume)


def test_a_dataset_without_files_to_read(volume: Volume):
    volume.write({"notes.pdf": b"%PDF", ".hidden.txt": "x"})
    assert "dataset has no file to read" in refused(volume)


@pytest.mark.parametrize("files", [{"a.txt": ""}, {"a.txt": " \t", "b.jsonl": '{"text": ""}'}])
def test_a_dataset_without_text(volume: Volume, files: dict):
    volume.write(files)
    assert "dataset has no text" in refused(volume)


def test_a_dataset_outside_the_volume(volume: Volume):
    assert "dataset leads out of the volume" in refused(volume, dataset="../tales")


def test_a_link_that_leads_nowhere_is_refused_by_name(volume: Volume):
    folder = volume.write({"good.txt": "good", "b/c.txt": "c"})
    os.symlink("away.txt", folder / "b/gone.txt")
    assert "file b/gone.txt is a link that leads nowhere (got 'away.txt')" in refused(volume)


def test_a_pipe_is_refused_and_not_waited_for(volume: Volume):
    folder = volume.write({"good.txt": "good"})
    os.mkfifo(folder / "pipe.txt")
    with pytest.raises(RequestError, match=r"pipe\.txt is a pipe"):
        list_sources(str(volume.root), "tales")


@pytest.mark.parametrize("before", [0, 5, 3_000_000])
def test_a_file_that_is_not_utf8_is_named_with_the_offset(volume: Volume, before: int):
    text = story(1, before).encode()[: max(0, before)] if before else b""
    volume.write({"good.txt": "good", "b/bad.txt": text + b"caf\xe9 noir"})
    message = refused(volume)
    assert "b/bad.txt is not UTF-8" in message
    assert f"byte 0xe9 at offset {len(text) + 3:,}" in message


def test_a_character_cut_off_by_the_files_end_is_not_utf8(volume: Volume):
    volume.write({"bad.txt": "caf\u00e9".encode()[:-1]})
    assert "at offset 3" in refused(volume)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"title": "no text"}', "has no text"),
        (b'"text"', "has no text"),
    ],
)
@pytest.mark.parametrize("before", [0, 2, 12_000])
def test_a_bad_line_of_jsonl_is_named_by_its_number(volume, line, message, before):
    good = json.dumps({"text": story(1, 150)}).encode() + b"\n\n"
    volume.write({"a/b.jsonl": good * before + line})
    got = refused(volume)
    assert f"a/b.jsonl:{2 * before + 1} {message}" in got
    assert not list(volume.root.glob("cache/tokens/pieces/*"))  # nothing was encoded before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"word " * 9 + b"ACGT" * (3 << 19), "a.txt has a text that is too long"),
        ("a.jsonl", b'{"text": "' + b"a b " * (5 << 20) + b'"}', "a.jsonl:1 is too long"),
    ],
)
def test_text_that_no_memory_holds_is_refused(volume: Volume, name, content, message):
    volume.write({name: content})
    assert message in refused(volume)


def test_a_parquet_row_without_text(volume: Volume):
    from tests.tokens.test_inputs import parquet

    volume.write({"a.parquet": parquet(["a", "b", None])})
    assert "a.parquet has a row without text" in refused(volume)


def test_a_token_that_is_none_is_refused_with_what_it_encodes_to(volume: Volume):
    volume.write({"a.txt": "a"})
    message = refused(volume, eot_token="no such token", pad_token="99999", boundary_token="<x>")
    assert len(message.splitlines()) == 3
    ids = byte_level().encode("no such token").ids
    assert (
        f"eot_token is not one token (got 'no such token', which encodes to {len(ids)}" in message
    )
    assert str(ids[:8]) in message
    assert "pad_token is not one token" in message
    assert "boundary_token is not one token" in message


@pytest.mark.parametrize("name", ["<|turn|>", "\\n", "\n", "Ċ", "7"])
def test_a_token_may_be_text_or_what_encodes_to_it(volume: Volume, name: str):
    tokenizer = byte_level()
    store = volume.store({"a.txt": "a"}, boundary_token=name)
    text = {"Ċ": "\n"}.get(name, name.replace("\\n", "\n"))
    assert [store.manifest.boundary_token_id] == tokenizer.encode(text).ids


def test_a_token_may_be_an_id(volume: Volume):
    store = volume.store({"a.txt": "a"}, eot_token="423")
    assert store.manifest.eot_token_id == 423


def test_a_model_with_fewer_embeddings_than_tokens(volume: Volume):
    save(byte_level(), volume.root / "models/few", embeddings=400, eos_token=EOT)
    volume.write({"a.txt": "a"})
    assert "tokenizer has more tokens than the model has embeddings" in refused(
        volume, model="models/few"
    )


def test_another_tokenizer_takes_the_place_of_the_models(volume: Volume):
    volume.write({"a.txt": "over the ridge"})
    with_own = volume.store()
    other = volume.store(tokenizer="models/llama")
    assert other.manifest.tokenizer_digest != with_own.manifest.tokenizer_digest


def test_a_model_without_a_tokenizer(volume: Volume):
    (volume.root / "models/bare").mkdir()
    volume.write({"a.txt": "a"})
    assert "tokenizer has no files" in refused(volume, model="models/bare")


def test_a_tokenizer_that_cannot_be_loaded(volume: Volume):
    folder = volume.root / "models/broken"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    volume.write({"a.txt": "a"})
    assert "tokenizer can't be loaded" in refused(volume, model="models/broken")


def test_sampling_that_leaves_nothing(volume: Volume):
    volume.write({"a.txt": "a"})
    assert "sampling leaves no context (got 0)" in refused(volume, sampling=0)


def test_a_cache_that_is_deleted_meanwhile_is_said_with_what_to_do(volume: Volume, monkeypatch):
    volume.write({"a.txt": "over the ridge"})
    pack = making.pack

    def deleted_before(*arguments: object) -> object:
        shutil.rmtree(volume.root / "cache")
        return pack(*arguments)

    monkeypatch.setattr(making, "pack", deleted_before)
    with pytest.raises(StepError, match=r"a file went away .* Run it again") as raised:
        volume.run()
    assert not isinstance(raised.value, RequestError)
    assert not list(volume.root.glob("tokens/*"))
    monkeypatch.undo()
    assert volume.store().manifest.num_contexts == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_volume_is_said_to_be_full(volume: Volume):
    volume.write({"a.txt": "a"})
    volume.run()
    pieces = next(volume.root.glob("cache/tokens/pieces/*"))
    os.symlink("/dev/full", pieces / f".{writer_name()}")
    volume.write({"a.txt": story(1, 300_000)})
    with pytest.raises(RequestError, match="volume can't be written"):
        volume.run()


def test_a_file_that_changes_while_it_is_read_gives_no_piece(volume: Volume):
    folder = volume.write({"a.txt": story(1, 2_000)})
    (source,) = list_sources(str(volume.root), "tales")
    exported = next(volume.root.glob("cache/tokens/tokenizers/*.json"))
    recipe = Recipe(
        tokenizer=str(exported),
        sanitize=True,
        eot=0,
        dtype="<u2",
        fast=False,
        cuts=True,
    )
    part = whole_part(source, "0" * 64, "text")
    (folder / "a.txt").write_text(story(2, 2_500))  # after its digest was taken
    with pytest.raises(StepError, match=r"a\.txt changed while it was read"):
        PieceMaker(recipe).make(part, source.stamp, str(volume.root / "pieces/00/piece"))
    assert not [path for path in (volume.root / "pieces").rglob("*") if path.is_file()]
