"""What every store of whole documents is held to."""

import numpy as np

from trainer.tokens.store import TokenStore


def documents_of(store: TokenStore, index: int) -> list[list[int]]:
    row = store.contexts[index].tolist()
    return [row[span.begin : span.end] for span in store.document_of(index)]


def all_documents(store: TokenStore) -> list[list[int]]:
    """The ids of each, in no order."""
    every = range(store.manifest.num_contexts)
    return sorted(found for index in every for found in documents_of(store, index))


def check(store: TokenStore) -> None:
    """Positions, masks and figures agree with the documents of each context."""
    every = np.arange(store.manifest.num_contexts)
    positions, trained = store.positions(every), store.trained(every)
    assert positions is not None and trained is not None
    for index in every:
        edges = [(span.begin, span.end) for span in store.document_of(int(index))]
        length = int(store.lengths[index])
        assert edges[-1][1] == length
        if length < store.manifest.context:
            edges.append((length, store.manifest.context))
        for begin, end in edges:
            assert positions[index, begin:end].tolist() == list(range(end - begin))
            assert not trained[index, begin]
        assert not trained[index, length:].any()
    for row in [*store.manifest.sources]:
        lost = row["dropped"]
        left_out = lost["sampled_out"] + lost["dropped_tokens"] + lost["cut_tokens"]
        assert row["tokens"] == row["in_contexts"] + left_out
        assert row["in_contexts"] == row["trained_tokens"] + row["masked_tokens"]
    totals = store.manifest.totals
    assert totals["trained_tokens"] == store.trained_tokens(every)
    assert totals["in_contexts"] == store.manifest.num_tokens == int(store.lengths.sum())
