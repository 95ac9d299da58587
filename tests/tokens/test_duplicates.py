"""Documents that are the same or nearly: held to Jaccard's own definition."""

import json
import random
import shutil

import numpy as np
import pytest

from tests.tokens.conftest import Volume
from trainer.contract.errors import RequestError
from trainer.contract.topics import DataConfig, SkipConfig
from trainer.tokens.duplicates import (
    MINIMA,
    _candidates,
    _near_groups,
    as_skip,
    describe,
    duplicates,
)
from trainer.tokens.left_out import left_out

WORDS = [f"word{n}" for n in range(400)]


def text(seed: int, words: int = 120) -> str:
    drawn = random.Random(seed)
    return " ".join(drawn.choice(WORDS) for _ in range(words)) + "\n"


def changed(original: str, every: int) -> str:
    words = original.split(" ")
    return " ".join("other" if at % every == every - 1 else word for at, word in enumerate(words))


FILES: dict[str, bytes | str] = {
    "a/one.txt": text(1),
    "a/two.txt": text(2),
    "b/copy.txt": text(1),
    "b/near.txt": changed(text(2), 60),
    "b/far.txt": changed(text(3), 4),
    "c.jsonl": "\n".join(json.dumps({"text": t}) for t in (text(3), text(4), text(2))),
}


def check(volume: Volume, **options: object) -> None:
    store = volume.store(FILES, **options)
    found = duplicates(store)
    same = [sorted(group.names) for group in found if group.similarity == 1]
    near = [group.names for group in found if group.similarity < 1]
    assert sorted(same) == [
        ["a/one.txt#1", "b/copy.txt#1"],
        ["a/two.txt#1", "c.jsonl#3"],
    ]
    assert near == [["a/two.txt#1", "b/near.txt#1"]]
    assert set(as_skip(found)["documents"]) == {
        "b/copy.txt#1", "c.jsonl#3", "b/near.txt#1",
    }  # fmt: skip
    assert len(duplicates(store, near=1)) == 2
    skip = SkipConfig(**as_skip(found))
    omitted = left_out(store, skip)
    assert omitted is not None and omitted.figures["documents"] == 3
    assert describe(found)[0].startswith("the same: a/one.txt#1, ")


def test_in_a_stream_of_contexts_and_in_packed_ones(volume: Volume) -> None:
    check(volume, context=200, train_ratio=0.7)
    check(volume, context=2000, train_ratio=0.7, data=DataConfig(packing="documents"))


def test_the_estimate_is_near_jaccard_s(volume: Volume) -> None:
    store = volume.store({"a.txt": text(5, 300), "b.txt": changed(text(5, 300), 12)}, context=8000)
    ids = [store.contexts[0, span.begin : span.end].tolist() for span in store.document_of(0)]
    runs = [{tuple(i[at : at + 5]) for at in range(len(i) - 4)} for i in ids]
    exact = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
    [group] = duplicates(store, near=0.5)
    assert group.similarity == pytest.approx(exact, abs=0.12) and 0.5 < exact < 1


def test_many_forms_that_are_filled_in_are_one_group_in_few_comparisons() -> None:
    minima = np.tile(np.arange(MINIMA, dtype=np.uint64), (5000, 1))
    minima[:, 0] = np.arange(5000)  # each is another document, near all others
    pairs = _candidates(minima)
    assert sum(map(len, pairs.values())) < 100 * 5000
    [(group, similarity)] = _near_groups(minima, 0.9)
    assert group == list(range(5000)) and similarity == (MINIMA - 1) / MINIMA


def test_what_is_alike_only_by_chance_is_not_named(volume: Volume) -> None:
    store = volume.store({f"{n}.txt": text(n) for n in range(50)}, context=500)
    assert duplicates(store) == []
    assert describe([]) == ["no two documents are the same, or near"]


def test_a_sampled_store_is_refused(volume: Volume) -> None:
    with pytest.raises(RequestError, match="sampling left text out"):
        duplicates(volume.store(FILES, context=64, sampling=50))


def test_of_a_mixture_all_text_is_compared(volume: Volume) -> None:
    volume.write({f"{n}.txt": text(n) for n in range(6)}, "rivers")
    volume.write({f"{n}.txt": text(n) for n in range(5, 20)}, "stones")
    data = DataConfig(weights={"rivers": 0.7, "stones": 0.3})
    store = volume.store(dataset="rivers", context=64, data=data)
    assert store.manifest.parts[1]["left_out"] > 0
    assert [group.names for group in duplicates(store)] == [["rivers/5.txt#1", "stones/5.txt#1"]]
    shutil.rmtree(store.folder.with_name(store.manifest.parts[1]["store"]))
    with pytest.raises(RequestError, match="tokens of stones, which the mixture was made of"):
        duplicates(store)
