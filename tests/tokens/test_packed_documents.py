"""Stores of whole documents: what a context holds, its mask, its ledger, its key."""

import json
from typing import Any

import numpy as np
import pytest

from tests.tokens.conftest import Volume, content, texts
from tests.tokens.packed import all_documents, check
from trainer.contract.errors import RequestError
from trainer.contract.topics import DataConfig
from trainer.tokens.show import describe, show_context

PACKED: dict[str, Any] = {"data": DataConfig(packing="documents")}
LONG = "The rider came to the old mill by the river. " * 40


def lines(count: int, first: int = 0) -> str:
    tales = (f"Tale {at}. " + "Rain fell. " * (at % 5) for at in range(first, first + count))
    return "\n".join(json.dumps({"text": text}) for text in tales)


def test_a_context_holds_whole_documents_of_text(volume: Volume) -> None:
    files: dict[str, bytes | str] = {"a.jsonl": lines(60), "b.txt": "One file."}
    store = volume.store(files, context=64, **PACKED)
    check(store)
    whole = volume.store(context=64, boundary_token="")
    stream = [token for row in texts(whole) for token in row]
    expected = sorted(_split(stream, store.manifest.eot_token_id))
    found = all_documents(store)
    assert found == expected and len(found) == 61
    trained = store.trained(np.arange(1))
    assert trained is not None
    spans = store.document_of(0)
    assert len(spans) > 1 and trained[0].sum() == int(store.lengths[0]) - len(spans)
    assert store.manifest.num_padding < 0.15 * store.manifest.num_contexts * 64


def _split(text: list[int], eot: int) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for token in text:
        found[-1].append(token)
        if token == eot:
            found.append([])
    return found[:-1]


def test_the_same_bytes_for_any_number_of_processes(volume: Volume) -> None:
    files: dict[str, bytes | str] = {f"{n}.jsonl": lines(80, n) for n in range(3)}
    options = {"context": 64, "train_ratio": 0.8, "reorder": "shuffle", "sampling": 60, **PACKED}
    store = volume.store(files, workers=1, **options)
    check(store)
    once = content(store)
    again = volume.store(workers=2, retokenize=True, **options)
    assert content(again) == once
    assert volume.run(**options).reused
    assert 0 < store.manifest.num_train_contexts < store.manifest.num_contexts
    assert sorted(once) == [
        "begins.bin", "documents.bin", "lengths.bin", "manifest.json", "mask.bin", "tokens.bin",
    ]  # fmt: skip


def test_a_document_that_is_too_long_is_refused_dropped_or_cut(volume: Volume) -> None:
    files: dict[str, bytes | str] = {"a.txt": LONG, "b.txt": "Short."}
    volume.write(files)
    with pytest.raises(RequestError) as refused:
        volume.run(context=64, **PACKED)
    assert str(refused.value).startswith(
        "dataset file a.txt, document 1 is longer than a context (got "
    )
    figures = {}
    for too_long in ("drop", "cut"):
        data = DataConfig(packing="documents", too_long=too_long)
        store = volume.store(context=64, data=data)
        check(store)
        figures[too_long] = store.manifest.totals
    whole = volume.store(context=1024, **PACKED)
    tokens = int(whole.lengths.max())
    assert figures["drop"]["too_long"] == figures["cut"]["cut"] == 1
    assert figures["drop"]["encoded"] == figures["cut"]["encoded"]
    assert figures["cut"]["cut_tokens"] == figures["drop"]["dropped_tokens"] - 64
    assert figures["drop"]["dropped_tokens"] < tokens


def test_a_document_in_several_pieces_is_cut_as_any(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.tokens.text import cuts

    files: dict[str, bytes | str] = {"a.txt": LONG, "b.txt": "Short.", "c.txt": LONG + "!"}
    options = {"context": 64, "data": DataConfig(packing="documents", too_long="cut")}
    expected = volume.store(files, **options)
    monkeypatch.setattr(cuts, "PIECE_BYTES", 256)
    volume.root.joinpath("cache/tokens/pieces").rename(volume.root / "cache/old")
    found = volume.store(retokenize=True, **options)
    assert content(found) == content(expected)


def test_what_does_not_go_with_it_is_refused(volume: Volume) -> None:
    volume.write({"a.txt": "A tale."})
    with pytest.raises(RequestError, match="boundary_index has no effect on packed documents"):
        volume.run(boundary_index=3, **PACKED)
    with pytest.raises(RequestError, match=r"data\.too_long has no effect on plain text"):
        volume.run(data=DataConfig(too_long="cut"))


def test_the_boundary_token_is_no_part_of_the_key(volume: Volume) -> None:
    names = {
        volume.store({"a.txt": "A tale.\nTwo."}, boundary_token=token, **PACKED).folder.name
        for token in ("\n", "", "no token")
    }
    assert len(names) == 1
    assert volume.store().folder.name not in names


def test_people_see_documents_and_figures(volume: Volume) -> None:
    store = volume.store({"a.jsonl": lines(6)}, context=64, **PACKED)
    text = show_context(store, 0)
    assert text.count("--- a.jsonl, document") == len(store.document_of(0)) > 1
    totals = store.manifest.totals
    sums = f"{totals['trained_tokens']} trained + {totals['masked_tokens']} masked"
    assert sums in describe(store)
