"""Documents are found in a store by path and by digest, and so are all contexts that hold them."""

import gzip
import hashlib
import json
from typing import Any

import numpy as np
import pytest

from tests.tokens.conftest import Volume, content
from trainer.contract.errors import RequestError
from trainer.contract.topics import SkipConfig
from trainer.contract.wording import skipped_words
from trainer.plan.left_out import left_out_facts
from trainer.tokens.left_out import LeftOut, all_documents, left_out, of_documents
from trainer.tokens.store import TokenStore

WORDS = "the sheriff rode at noon and nobody slept in dry creek that night".split()


def tale(number: int, words: int = 40) -> str:
    return "\n".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(words)) + "\n"


def dataset(extra: dict[str, bytes | str] | None = None) -> dict[str, bytes | str]:
    return {f"part/tale-{n}.txt": tale(n) for n in range(8)} | (extra or {})


def found(volume: Volume, store: TokenStore, **skip: Any) -> LeftOut:
    taken = left_out(store, SkipConfig(**skip), volume.root, "tales")
    assert taken is not None
    return taken


def by_span(store: TokenStore, names: set[str]) -> list[int]:
    """Contexts with any token of the documents, one by one."""
    spans = [store.document_of(index) for index in range(store.manifest.num_contexts)]
    return [
        index for index, of in enumerate(spans) if any(f"{s.path}#{s.number}" in names for s in of)
    ]


def sha(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


@pytest.mark.parametrize("options", [{}, {"reorder": "shuffle"}, {"sampling": 60}])
@pytest.mark.parametrize("train_ratio", [1.0, 0.6])
def test_every_context_with_a_token_of_a_document_is_left_out(
    volume: Volume, options: dict[str, Any], train_ratio: float
) -> None:
    store = volume.store(dataset(), train_ratio=train_ratio, **options)
    train = store.manifest.num_train_contexts
    for document in all_documents(store):
        file, number = document
        name = f"{store.manifest.sources[file]['path']}#{number}"
        expected = by_span(store, {name})
        taken = of_documents(store, [document])
        assert [*taken.contexts.tolist(), *taken.held_out.tolist()] == expected
        assert taken.contexts.tolist() == [c for c in expected if c < train]
        stretches = [c for first, stop in taken.ranges for c in range(first, stop)]
        assert stretches == taken.contexts.tolist()


def test_the_figures_count_what_goes_with_it(volume: Volume) -> None:
    store = volume.store(dataset())
    taken = found(volume, store, documents=["part/tale-3.txt"])
    spans = [span for c in taken.contexts for span in store.document_of(int(c))]
    own = [s for s in spans if s.path == "part/tale-3.txt"]
    others = [s for s in spans if s.path != "part/tale-3.txt"]
    assert others, "a context spans two documents"
    assert taken.figures == {
        "documents": 1,
        "names": ["part/tale-3.txt#1"],
        "contexts": len(taken.contexts),
        "tokens": int((store.lengths[taken.contexts].astype(int) - 1).sum()),
        "tokens_of_documents": sum(s.end - s.begin for s in own),
        "tokens_of_others": sum(s.end - s.begin for s in others),
        "other_documents": len({(s.path, s.number) for s in others}),
        "held_out_contexts": 0,
    }


def test_a_copy_is_found_by_its_digest_under_any_name(volume: Volume) -> None:
    copies = {
        "other/copy.txt": tale(3).replace("\n", " \r\n"),  # white space alone differs
        "packed.txt.gz": gzip.compress(tale(3).encode()),
        "lines.jsonl": "\n".join(json.dumps({"text": tale(n)}) for n in (1, 3, 5)) + "\n\n",
    }
    store = volume.store(dataset(copies))
    names = {"part/tale-3.txt#1", "other/copy.txt#1", "packed.txt.gz#1", "lines.jsonl#2"}
    for digest in (sha(tale(3)), sha(copies["packed.txt.gz"]), sha(copies["other/copy.txt"])):
        taken = found(volume, store, sha256=[digest])
        assert set(taken.figures["names"]) == names
        assert taken.contexts.tolist() == by_span(store, names)
    # A pattern names what it names: the copies are other documents.
    only = found(volume, store, documents=["part/tale-3.txt"])
    assert only.figures["names"] == ["part/tale-3.txt#1"]
    assert found(volume, store, documents=["lines.jsonl#2"]).figures["documents"] == 1
    assert found(volume, store, documents=["part/*-[34].txt"]).figures["documents"] == 2
    assert found(volume, store, sha256=[sha(copies["lines.jsonl"])]).figures["documents"] == 8


def test_a_long_document_that_is_cut_has_the_digest_of_its_text(volume: Volume) -> None:
    long = "".join(f"{WORDS[n % 13]} {n}\n" for n in range(220_000))
    store = volume.store({"long.txt": long, "a.txt": tale(1, 9000), "b.txt": tale(2)}, context=2048)
    taken = found(volume, store, sha256=[sha(long)])
    assert taken.figures["names"] == ["long.txt#1"]


def test_digests_change_no_store_and_are_kept(volume: Volume) -> None:
    store = volume.store(dataset())
    before = content(store)
    taken = found(volume, store, sha256=[sha(tale(2))])
    assert content(store) == before
    (kept,) = (volume.root / "cache/tokens/documents").iterdir()
    (volume.root / "tales/part/tale-2.txt").unlink()  # what is kept needs no source
    again = found(volume, store, sha256=[sha(tale(2))])
    assert np.array_equal(again.contexts, taken.contexts)
    kept.write_bytes(kept.read_bytes()[:-1] + b"\0")  # damaged: computed again
    with pytest.raises(RequestError, match=r"dataset file part/tale-2.txt is gone since"):
        found(volume, store, sha256=[sha(tale(2))])
    (volume.root / "tales/part/tale-2.txt").write_text("other")
    with pytest.raises(RequestError, match=r"dataset file part/tale-2.txt has changed since"):
        found(volume, store, sha256=[sha(tale(2))])


def test_the_step_looks_documents_up_before_a_gpu_is_asked_for(volume: Volume) -> None:
    volume.write(dataset())
    done = volume.run(skip=SkipConfig(documents=["part/tale-3.txt"]))
    plain = volume.run()
    assert done.result["store"] == plain.result["store"]
    assert "left_out" not in plain.result
    assert done.result["left_out"]["names"] == ["part/tale-3.txt#1"]
    with pytest.raises(RequestError) as caught:
        volume.run(skip=SkipConfig(documents=["no-*"], sha256=[]))
    assert "skip.documents names no document (got 'no-*')" in str(caught.value)
    assert "(part/tale-0.txt, part/tale-1.txt, part/tale-2.txt, ...)" in str(caught.value)
    with pytest.raises(RequestError, match=r"skip\.sha256 names no document"):
        volume.run(skip=SkipConfig(sha256=["0" * 64]))
    with pytest.raises(RequestError, match="skip leaves nothing to train on"):
        volume.run(skip=SkipConfig(documents=["*"]))


def test_a_plan_knows_what_is_left_out_where_the_tokens_are_there(volume: Volume) -> None:
    volume.write(dataset())
    by_path = volume.config(skip=SkipConfig(documents=["part/tale-3.txt"]))
    assert left_out_facts(by_path) == (None, [])  # counted when the text is tokenized
    (problem,) = left_out_facts(volume.config(skip=SkipConfig(documents=["none"])))[1]
    assert "skip.documents names no document (got 'none')" in problem
    store = volume.store()
    figures, problems = left_out_facts(by_path)
    assert figures == found(volume, store, documents=["part/tale-3.txt"]).figures and not problems
    digest = SkipConfig(sha256=[sha(tale(3))])
    before = sorted(volume.root.rglob("*"))
    assert left_out_facts(volume.config(skip=digest)) == (None, [])  # a plan reads no whole text
    assert sorted(volume.root.rglob("*")) == before
    found(volume, store, sha256=digest.sha256)
    assert left_out_facts(volume.config(skip=digest)) == (figures, [])
    (problem,) = left_out_facts(volume.config(skip=SkipConfig(documents=["*"])))[1]
    assert "skip leaves nothing to train on" in problem
    assert "in each of 3 epochs" in skipped_words(figures or {}, 3)
