"""Found again by content, made again where it is not: always the same bytes."""

import json
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.tokens.conftest import Volume, content
from tests.tokens.prose import story
from trainer.contract.errors import DamagedError
from trainer.tokens.encode import encoder, encoding
from trainer.tokens.store import MANIFEST, TokenStore
from trainer.tokens.text import digests

FILES: dict[str, bytes | str] = {f"{at}.txt": story(at, 3_000) for at in range(12)}


def pieces(volume: Volume) -> dict[Path, int]:
    """Cached pieces and when each was made."""
    found = volume.root.glob("cache/tokens/pieces/*/*/*")
    return {path: path.stat().st_mtime_ns for path in found}


def start(volume: Volume, **options: object) -> subprocess.Popen:
    """The step as a process of its own."""
    path = volume.root / f"config-{len(list(volume.root.glob('config-*')))}.json"
    path.write_text(json.dumps(asdict(volume.config(**options))))
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", "tokenize", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "FINETUNE_TERMINATION_PATH": str(path.with_suffix(".outcome"))},
        cwd=Path(__file__).parents[2],
        text=True,
    )


def test_again_with_nothing_changed_finds_the_store(volume: Volume):
    volume.write(FILES)
    first, second = volume.run(), volume.run()
    assert (first.reused, second.reused) == (False, True)
    speeds = [step.result["megabytes_per_second"] for step in (first, second)]
    assert speeds[0] > 0 and speeds[1] is None  # nothing was read
    assert first.result["digest"] == second.result["digest"]
    assert set(first.result) == set(second.result)


def test_a_store_is_found_without_reading_the_files(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(digests, "_TOO_YOUNG_NS", 0)
    volume.write(FILES)
    volume.run()
    monkeypatch.setattr(digests, "Reading", None)
    assert volume.run().reused


def test_a_file_that_changed_with_the_same_size_and_time_is_read_again(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(digests, "_TOO_YOUNG_NS", 0)
    path = volume.write(FILES) / "3.txt"
    first = volume.run()
    status = path.stat()
    with open(path, "r+b") as file:  # same inode and size
        file.write(b"X")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = volume.run()
    assert not second.reused and second.result["digest"] != first.result["digest"]


def test_a_flipped_byte_of_a_store_with_the_same_time_is_made_again(volume: Volume):
    volume.write(FILES)
    result = volume.run().result
    path = volume.root / result["store"] / "tokens.bin"
    status, good = path.stat(), path.read_bytes()
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not volume.run().reused
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    "options",
    [
        {"sanitize": False},
        {"context": 33},
        {"sampling": 50},
        {"boundary_token": "."},
        {"boundary_index": 3},
        {"eot_token": "<|pad|>"},
        {"pad_token": "<|endoftext|>"},
        {"train_ratio": 0.5},
        {"reorder": "size_ascending"},
        {"model": "models/llama"},
        {"tokenizer": "models/llama"},
    ],
)
def test_every_option_that_changes_a_byte_changes_the_key(volume: Volume, options: dict):
    volume.write(FILES)
    first, second = volume.run(), volume.run(**options)
    assert not second.reused
    assert first.result["store"] != second.result["store"]


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"reorder": "shuffle"}, {"random_seed": 7}),
        ({"reorder": "random"}, {"random_seed": 7}),
        ({"dataset": "tales/a.jsonl"}, {"text_field": "other"}),
    ],
)
def test_an_option_that_changes_a_byte_here_changes_the_key(
    volume: Volume, given: dict, options: dict
):
    volume.write({**FILES, "a.jsonl": '{"text": "one", "other": "two"}'})
    first, second = volume.run(**given), volume.run(**given, **options)
    assert not second.reused
    assert first.result["store"] != second.result["store"]


@pytest.mark.parametrize(
    "options",
    [{"workers": 1}, {"random_seed": 7}, {"reorder": "none"}, {"text_field": "other"}],
)
def test_what_can_change_no_byte_does_not_change_the_key(volume: Volume, options: dict):
    volume.write(FILES)
    volume.run()
    assert volume.run(**options).reused


def test_an_edited_tokenizer_changes_the_key_and_mtimes_do_not(volume: Volume):
    folder = volume.write(FILES)
    volume.run()
    for path in [*folder.iterdir(), *(volume.root / "models/bytes").iterdir()]:
        os.utime(path, (2e9, 2e9))
    assert volume.run().reused
    path = volume.root / "models/bytes/tokenizer.json"
    fields = json.loads(path.read_text())
    fields["added_tokens"][-1]["content"] = "<|other|>"
    fields["model"]["vocab"] = {
        piece.replace("<|turn|>", "<|other|>"): at for piece, at in fields["model"]["vocab"].items()
    }
    path.write_text(json.dumps(fields))
    assert not volume.run().reused


def test_the_place_of_the_dataset_does_not_change_the_key(volume: Volume):
    volume.write(FILES)
    first = volume.run().result["store"]
    shutil.move(volume.root / "tales", volume.root / "moved")
    second = volume.run(dataset="moved").result["store"]
    assert first.rpartition("-")[2] == second.rpartition("-")[2]


def test_a_renamed_file_changes_the_key_and_is_not_encoded_again(volume: Volume):
    folder = volume.write(FILES)
    volume.run()
    before = pieces(volume)
    (folder / "3.txt").rename(folder / "z.txt")
    assert not volume.run().reused
    assert pieces(volume) == before


def test_only_what_changed_is_encoded_and_the_bytes_are_those_from_scratch(
    volume: Volume, tmp_path
):
    folder = volume.write(FILES)
    volume.run(train_ratio=0.8)
    before = pieces(volume)
    (folder / "4.txt").write_text(story("new", 2_500))
    (folder / "7.txt").unlink()
    grown = volume.store(None, train_ratio=0.8)
    assert len(set(pieces(volume)) - set(before)) == 1
    assert all(pieces(volume)[path] == made for path, made in before.items())
    shutil.rmtree(volume.root / "cache/tokens/pieces")
    shutil.rmtree(volume.root / "tokens")
    assert content(volume.store(None, train_ratio=0.8)) == content(grown)


def test_retokenize_makes_the_same_bytes_again(volume: Volume):
    first = content(volume.store(FILES))
    stamps = pieces(volume)
    result = volume.run(retokenize=True)
    assert not result.reused
    assert content(TokenStore.open(volume.root / result.result["store"])) == first
    assert all(pieces(volume)[path] > made for path, made in stamps.items())


def test_the_number_of_workers_changes_no_byte(volume: Volume):
    big = story("big", 5_500_000)  # enough for processes, and for parts of one file
    volume.write({"big.txt": big, "small.txt": story(1, 999)})
    stores = [volume.store(None, workers=n, retokenize=True, context=512) for n in (1, 3)]
    assert len(pieces(volume)) > 5
    first, second = map(content, stores)
    assert first == second


@pytest.mark.parametrize("name", ["tokens.bin", "lengths.bin", "documents.bin", MANIFEST])
@pytest.mark.parametrize("harm", ["cut", "altered", "deleted"])
def test_a_damaged_store_is_noticed_and_made_again(volume: Volume, name: str, harm: str):
    store = volume.store(FILES)
    good = content(store)
    path = store.folder / name
    if harm == "deleted":
        path.unlink()
    elif harm == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        with open(path, "r+b") as file:
            file.seek(10)
            file.write(b"\xff\xfe\xfd")
    with pytest.raises(DamagedError):
        TokenStore.open(store.folder, verify=True)
    assert not volume.run().reused
    assert content(store) == good


def test_a_changed_figure_in_the_manifest_is_noticed(volume: Volume):
    store = volume.store(FILES)
    path = store.folder / MANIFEST
    good = path.read_text()
    path.write_text(good.replace('"num_train_contexts": ', '"num_train_contexts": 1'))
    with pytest.raises(DamagedError, match="other content than when it was written"):
        TokenStore.open(store.folder)
    assert not volume.run().reused
    assert path.read_text() == good


@pytest.mark.parametrize("harm", ["cut", "altered", "empty"])
def test_a_damaged_piece_is_encoded_again(volume: Volume, harm: str):
    good = content(volume.store(FILES))
    victim = sorted(pieces(volume))[0]
    if harm == "altered":
        with open(victim, "r+b") as file:
            file.write(b"\xff\xff")
    else:
        os.truncate(victim, 0 if harm == "empty" else victim.stat().st_size // 2)
    shutil.rmtree(volume.root / "tokens")
    assert content(volume.store()) == good


def test_a_cache_that_was_deleted_changes_nothing(volume: Volume):
    good = content(volume.store(FILES))
    shutil.rmtree(volume.root / "cache")
    assert volume.run().reused
    shutil.rmtree(volume.root / "tokens")
    assert content(volume.store()) == good


def test_two_processes_make_one_store(volume: Volume):
    volume.write({"big.txt": story("two", 4_000_000)})
    both = [start(volume, context=256) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(lambda process: process.communicate()[0], both))
    assert [process.returncode for process in both] == [0, 0], outputs
    results = [json.loads(path.read_text()) for path in volume.root.glob("config-*.outcome")]
    assert sorted(result["reused"] for result in results) == [False, True]
    assert volume.run(context=256).reused


def test_a_corpus_that_is_edited_again_and_again_has_the_bytes_of_one_from_scratch(
    volume: Volume, tmp_path: Path
):
    """Files grow, go, come and are renamed; held-out text and long documents among them."""
    drawn, files = random.Random(7), dict(FILES)
    for edit in range(4):
        names = sorted(files)
        files[drawn.choice(names)] += f"line {edit}\n"  # type: ignore[operator]
        files.pop(drawn.choice(names), None)
        files[f"new-{edit}.txt"] = story(100 + edit, drawn.choice((300, 9_000)))
        here = content(volume.store(files, train_ratio=0.8))
        fresh = Volume(tmp_path / f"fresh-{edit}")
        shutil.copytree(volume.root / "models", fresh.root / "models")
        exported = "cache/tokens/tokenizers"
        shutil.copytree(volume.root / exported, fresh.root / exported)
        assert content(fresh.store(files, train_ratio=0.8)) == here


def test_samples_that_were_compared_before_are_not_compared_again(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
):
    compared: list[int] = []
    original = encoding.answer

    def answer(task: dict, makers: dict) -> dict:
        compared.append(len(task["prove"] or ()))
        return original(task, makers)

    monkeypatch.setattr(encoding, "answer", answer)
    files = {f"{at}.txt": story(at, 3_000) for at in range(100)}
    volume.store(files)
    first = sum(compared)
    compared.clear()
    files["5.txt"] += "one more line\n"
    volume.store(files)
    assert first >= 20 and sum(compared) <= first / 4
    compared.clear()
    volume.store(files | {"5.txt": story(5, 3_000)}, retokenize=True)  # as it was at first
    assert compared == []


def test_one_odd_sample_taints_no_other(volume: Volume, monkeypatch: pytest.MonkeyPatch):
    """What was compared together with it is still proven when it is gone."""
    files: dict[str, bytes | str] = {"a.txt": story(1, 3_000), "b.txt": story(2, 3_000)}
    own = volume.store(files).manifest.encoder
    odd = encoder.Proof(fast=False, cuts=True)
    original = encoding._compared

    def one_odd(work: Any, crew: Any, places: Any) -> list[encoder.Proof]:
        found = original(work, crew, places)
        at = [n for n, (source, _) in enumerate(places or ()) if source.path.endswith("odd.txt")]
        return [odd if number in at else proof for number, proof in enumerate(found)]

    monkeypatch.setattr(encoding, "_compared", one_odd)
    with_odd = volume.store(files | {"odd.txt": story(3, 9_000)}).manifest.encoder
    assert with_odd.startswith("tokenizers") and own.startswith("fastokens")
    assert volume.store(files, retokenize=True).manifest.encoder == own
