"""Held-out text: decided by content, a fair share, and in no training context."""

import json

import numpy as np
import pytest

from tests.tokens.conftest import Volume, texts
from tests.tokens.models import byte_level, spelled
from tests.tokens.prose import story
from trainer.tokens.pack import split
from trainer.tokens.store import TokenStore

SPELLED = spelled(byte_level())


def sides(store: TokenStore) -> dict[str, set[str]]:
    """For each file, in which streams it appears."""
    found: dict[str, set[str]] = {}
    for at in range(store.manifest.num_contexts):
        side = "train" if at < store.manifest.num_train_contexts else "held"
        for span in store.document_of(at):
            found.setdefault(span.path, set()).add(side)
    return found


def share(store: TokenStore) -> float:
    totals = store.manifest.totals
    return totals["held_out_tokens"] / totals["encoded"]


def test_adding_and_removing_files_moves_no_other_document(volume: Volume):
    files = {f"{at:03}.txt": story(at, 500) for at in range(400)}
    before = sides(volume.store(files, train_ratio=0.9, context=64))
    fewer = {name: text for name, text in files.items() if int(name[:3]) % 7}
    more = {**fewer, **{f"0/{at}.txt": story(f"new {at}", 500) for at in range(60)}}
    after = sides(volume.store(more, train_ratio=0.9, context=64))
    assert {name: after[name] for name in fewer} == {name: before[name] for name in fewer}
    assert {"held"} in before.values() and {"train"} in before.values()


def test_a_document_keeps_its_side_under_another_name_order_and_kind(volume: Volume):
    stories = [story(at, 400) for at in range(60)]
    files = {f"{at}.txt": text for at, text in enumerate(stories)}
    plain = sides(volume.store(files, train_ratio=0.8))
    lines = "\n".join(json.dumps({"text": text}) for text in stories[::-1])
    store = volume.store({"all.jsonl": lines}, train_ratio=0.8)
    held = set()
    for at in range(store.manifest.num_train_contexts, store.manifest.num_contexts):
        held |= {60 - span.number for span in store.document_of(at)}
    assert held == {int(name[:-4]) for name, where in plain.items() if "held" in where}


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.95])
@pytest.mark.parametrize(
    ("count", "size"), [(3, 60_000), (1, 30_000), (7, 9_000), (60, 2_000), (300, 300)]
)
def test_the_share_is_within_a_fifth_of_what_was_asked(volume: Volume, count, size, ratio):
    files = {f"{at}.txt": story((count, at), size) for at in range(count)}
    store = volume.store(files, train_ratio=ratio, context=128)
    assert share(store) == pytest.approx(1 - ratio, rel=0.2)
    assert 0 < store.manifest.num_train_contexts < store.manifest.num_contexts


@pytest.mark.parametrize("ratio", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("count", [1, 2, 20])
def test_of_twenty_contexts_at_least_one_is_held_out(volume: Volume, count: int, ratio: float):
    files = {f"{at}.txt": story((count, at), 8_000 // count) for at in range(count)}
    store = volume.store(files, train_ratio=ratio, context=64)
    assert store.manifest.num_contexts >= 20
    assert store.manifest.num_contexts - store.manifest.num_train_contexts >= 1
    assert share(store) < 0.5


def test_of_twenty_contexts_that_sampling_keeps_at_least_one_is_held_out(volume: Volume):
    manifest = volume.store(
        {"a.txt": story(1, 16_000)}, train_ratio=0.99, context=64, sampling=30
    ).manifest
    assert manifest.num_contexts >= 20
    assert manifest.num_contexts - manifest.num_train_contexts == 1


def test_no_block_of_a_long_document_ends_inside_a_character(volume: Volume, monkeypatch):
    monkeypatch.setattr(split, "_WINDOW_TOKENS", 50)
    text = "".join(chr(0x1F300 + at % 200) for at in range(2_000))  # four tokens each
    store = volume.store({"a.txt": text}, train_ratio=0.5, context=64, boundary_token="")
    assert 0.3 < share(store) < 0.7
    for row in texts(store):
        assert b"".join(SPELLED[token] for token in row).decode()


def test_both_streams_together_are_the_whole_stream(volume: Volume):
    files = {f"{at}.txt": story(at, 20_000) for at in range(3)}
    options = {"context": 128, "boundary_token": ""}
    whole = [token for row in texts(volume.store(files, **options)) for token in row]
    store = volume.store(None, train_ratio=0.8, **options)
    rows, train = texts(store), store.manifest.num_train_contexts
    one = [token for row in rows[:train] for token in row]
    other = [token for row in rows[train:] for token in row]
    assert len(one) + len(other) == len(whole)
    assert store.manifest.totals["repeated"] == 0
    # Each held-out stretch is put back between the two of training text it came from.
    rebuilt: list[int] = []
    starts = store.documents["start"].tolist()
    total = len(whole)
    parts = sorted(
        (int(file), int(number), at, start, stop)
        for at, (start, stop, file, number) in enumerate(
            zip(
                starts,
                [*starts[1:], total],
                store.documents["file"],
                store.documents["number"],
                strict=True,
            )
        )
    )
    stream = one + other
    by_file: dict[int, list[list[int]]] = {}
    for file, _, _, start, stop in parts:
        by_file.setdefault(file, []).append(stream[start:stop])
    for pieces in by_file.values():
        # Every third of a novel's text: train, held out, train.
        assert len(pieces) == 3
        rebuilt += [*pieces[0], *pieces[2], *pieces[1]]
    assert rebuilt == whole


def test_stretches_are_cut_at_boundary_tokens(volume: Volume):
    store = volume.store({"a.txt": story(1, 60_000)}, train_ratio=0.9, context=128)
    newline = store.manifest.boundary_token_id
    train = store.manifest.num_train_contexts
    starts = store.documents["start"]
    first_held = int(store.begins[train])
    assert first_held in starts
    joined = np.concatenate([np.array(row) for row in texts(store)[train:]])
    assert joined[-1] == newline  # it ends with a whole paragraph, not with the novel
    assert joined[-1] != store.manifest.eot_token_id


def test_train_ratio_1_holds_nothing_out_and_0_everything(volume: Volume):
    files = {"a.txt": story(1, 5_000), "b.txt": story(2, 500)}
    whole = volume.store(files, train_ratio=1.0)
    none = volume.store(None, train_ratio=0.0)
    assert whole.manifest.num_train_contexts == whole.manifest.num_contexts
    assert none.manifest.num_train_contexts == 0
    assert texts(whole) == texts(none)
