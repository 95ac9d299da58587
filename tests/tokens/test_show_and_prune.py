"""What people see of a store, and what of old ones may be deleted."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.tokens.conftest import Volume, content
from tests.tokens.prose import story
from trainer.contract.errors import RequestError
from trainer.contract.locks import only_one
from trainer.tokens import prune as prune_module
from trainer.tokens.prune import prune
from trainer.tokens.show import describe, show_context


def test_the_ledger_of_every_file_adds_up(volume: Volume):
    files = {f"{at}.txt": story(at, 300 + 700 * at) for at in range(9)} | {"empty.md": ""}
    store = volume.store(
        files, sampling=60, train_ratio=0.8, boundary_token=".", context=40, boundary_index=5
    )
    totals = store.manifest.totals
    assert totals["repeated"] and totals["sampled_out"] and totals["held_out_tokens"]
    for source in store.manifest.sources:
        dropped = source["dropped"]
        used = source["in_contexts"] + dropped["boundaries"] + dropped["sampled_out"]
        assert source["tokens"] + source["repeated"] == used
    assert totals["in_contexts"] == store.manifest.num_tokens == int(store.lengths.sum())
    assert totals["empty_documents"] == 1
    # The table of contexts' origins says the same as the ledger.
    seen = dict.fromkeys((source["path"] for source in store.manifest.sources), 0)
    for at in range(store.manifest.num_contexts):
        for path in {span.path for span in store.document_of(at)}:
            seen[path] += 1
    assert seen == {source["path"]: source["contexts"] for source in store.manifest.sources}
    ledger = describe(store)
    assert f"{totals['encoded']:,} tokens encoded" in ledger
    assert "8.txt" in ledger


def test_a_context_is_shown_as_text_with_its_files_and_boundaries(volume: Volume):
    store = volume.store({"a.txt": "over the ridge\ncame", "b.txt": "dust"}, context=64)
    shown = show_context(store, 0)
    assert "context 0 of 1, to train on" in shown
    assert "--- a.txt, document 1: ids 0 to" in shown
    assert "over the ridge¶\ncame<|endoftext|>" in shown
    assert "--- b.txt, document 1" in shown
    assert "dust<|endoftext|>" in shown
    assert "--- padding" in shown
    with pytest.raises(RequestError, match="It has 1"):
        show_context(store, 1)


def stores(volume: Volume) -> set[str]:
    return {path.name for path in (volume.root / "tokens").iterdir()}


def test_a_dry_run_deletes_nothing_and_tells_the_size(volume: Volume):
    store = volume.store({"a.txt": story(1, 5_000)})
    before = content(store)
    found = prune(volume.root, used_lately_seconds=0)
    assert store.folder in {item.path for item in found}
    assert found[0].size == sum(map(len, before.values()))
    assert content(store) == before


def test_stores_that_a_run_names_are_kept_with_their_pieces(volume: Volume):
    kept = volume.store({"a.txt": story(1, 5_000)})
    wanted = volume.store({"b.txt": story(2, 5_000)})
    old = volume.store({"c.txt": story(3, 5_000)})
    record = volume.root / "my-run/run.json"
    record.parent.mkdir()
    request = {"request": {}, "created": "2026-01-01", "tokens": f"tokens/{kept.folder.name}"}
    record.write_text(json.dumps(request))
    prune(volume.root, keep=[wanted.folder.name], dry_run=False, used_lately_seconds=0)
    assert stores(volume) == {kept.folder.name, wanted.folder.name}
    left = {path.name.split("-")[0] for path in volume.root.glob("cache/tokens/pieces/*/*/*")}
    digests = {source.manifest.sources[0]["sha256"] for source in (kept, wanted)}
    assert left == digests
    assert old.folder.name not in stores(volume)


def test_stores_used_lately_or_being_made_are_kept(volume: Volume):
    store = volume.store({"a.txt": "a"})
    assert not prune(volume.root, dry_run=False)
    unfinished = volume.root / f"tokens/.{store.folder.name}"
    shutil.copytree(store.folder, unfinished)
    pieces = list(volume.root.glob("cache/tokens/pieces/*/*/*"))
    with only_one(volume.root / "cache/tokens/locks" / store.folder.name):
        assert not prune(volume.root, dry_run=False, used_lately_seconds=0)
        assert unfinished.exists() and store.folder.exists()
    with only_one(volume.root / "cache/tokens/locks/another-store"):  # it may need these pieces
        found = prune(volume.root, used_lately_seconds=0)
        assert {item.path for item in found} == {unfinished, store.folder}
    (found,) = prune(volume.root, dry_run=False)  # each is listed once
    assert found.path == unfinished
    assert not unfinished.exists() and store.folder.exists()
    assert pieces and all(path.exists() for path in pieces)


def test_a_store_that_is_taken_up_after_it_was_listed_is_kept(volume: Volume, monkeypatch):
    """Steps begin while a long list is worked off: each is looked at again under its lock."""
    kept = volume.store({"a.txt": "a"}).folder
    locked = volume.store({"b.txt": "b"}).folder
    for folder in (kept, locked):
        os.utime(folder, (1e9, 1e9))
    sizes, made = prune_module.size_of, contextlib.ExitStack()

    def taken_up(folder: Path) -> int:
        if folder == kept:
            volume.write({"a.txt": "a"})
            assert volume.run().reused
        else:
            made.enter_context(only_one(volume.root / "cache/tokens/locks" / locked.name))
        return sizes(folder)

    monkeypatch.setattr(prune_module, "size_of", taken_up)
    with made:
        assert not prune(volume.root, dry_run=False, used_lately_seconds=60)
    assert kept.exists() and locked.exists()


def test_copies_of_remote_files_that_nobody_uses_are_freed(volume: Volume):
    path = volume.root / "cache/tokens/copies/dataset/digest"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    assert not prune(volume.root, dry_run=False)
    (found,) = prune(volume.root, dry_run=False, used_lately_seconds=0)
    assert (found.path, found.size) == (path, 3)
    assert not path.exists()
