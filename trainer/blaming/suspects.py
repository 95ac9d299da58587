"""Texts of a store that can be left out, and which of them are suspected."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.tokens.left_out import document_names, of_documents
from trainer.tokens.store import TokenStore
from trainer.tokens.text.document_digests import document_digests

SUSPECTS = 16
LARGEST_SHARE = 0.25  # of the training contexts, which leaving the suspects out may take


@dataclass(frozen=True)
class Texts:
    """The distinct texts of a store's documents: all copies of one are left out together."""

    documents: list[list[tuple[int, int]]]
    """By text: file and number of each copy."""
    of_document: np.ndarray
    """Index of the text of each document, by file and number, (documents,), int64."""
    of_part: np.ndarray
    """Index of the text of each part of the stream (`store.documents`), (parts,)."""


def texts_of(volume: Path, store: TokenStore, dataset: str) -> Texts:
    """The texts that have a token in the store.

    Copies are documents with the same sanitized text, whatever their names.

    Raises:
        RequestError: A source file is not what the store was made from; it is named.
    """
    digests = document_digests(volume, store, dataset)
    text_of = {
        (int(row["file"]), int(row["number"])): row["sanitized"].tobytes() for row in digests
    }
    parts = store.documents
    keys = parts["file"].astype(np.uint64) << np.uint64(32) | parts["number"]
    distinct, document_of_part = np.unique(keys, return_inverse=True)
    documents = [(int(key) >> 32, int(key) & 0xFFFFFFFF) for key in distinct]
    index: dict[bytes, int] = {}
    texts = np.array([index.setdefault(text_of[one], len(index)) for one in documents], np.int64)
    copies: list[list[tuple[int, int]]] = [[] for _ in index]
    for document, text in zip(documents, texts, strict=True):
        copies[text].append(document)
    return Texts(copies, texts, texts[document_of_part])


def most_suspect(
    store: TokenStore, texts: Texts, scores: np.ndarray
) -> tuple[list[int], list[int]]:
    """The texts of the highest scores above 0, the first first; and those that are too long.

    Args:
        scores: By text: how much training on it went the way that is asked about.
    """
    found: list[int] = []
    too_long: list[int] = []
    most = LARGEST_SHARE * store.manifest.num_train_contexts
    for text in np.argsort(-scores, kind="stable")[: 4 * SUSPECTS].tolist():
        if scores[text] <= 0 or len(found) == SUSPECTS:
            break
        contexts = of_documents(store, documents_of(texts, [*found, text])).contexts
        if len(contexts) > most:
            too_long.append(text)
        elif len(contexts):
            found.append(text)
    return found, too_long


def drawn_like(
    store: TokenStore, texts: Texts, suspects: Sequence[int], seed: int
) -> frozenset[int]:
    """As many other texts, drawn at random: what leaving out just any text does.

    Of texts that were trained on; each about as long as the suspect that it stands for.
    """
    trained = _trained_tokens(store, texts)
    others = np.flatnonzero(trained)
    others = others[~np.isin(others, suspects)]
    chance, found = np.random.default_rng(seed), set[int]()
    for suspect in suspects:
        left = others[~np.isin(others, list(found))]
        if not len(left):
            break
        nearness = np.abs(np.log(trained[left]) - np.log(max(1, trained[suspect])))
        near = left[np.argsort(nearness, kind="stable")[: max(4 * len(suspects), len(left) // 10)]]
        found.add(int(chance.choice(near)))
    return frozenset(found)


def _trained_tokens(store: TokenStore, texts: Texts) -> np.ndarray:
    """By text: its ids in the part of the stream that is trained on, (texts,)."""
    parts, last = store.documents, store.manifest.num_train_contexts - 1
    stop = int(store.begins[last]) + int(store.lengths[last])
    starts = parts["start"].astype(np.int64)
    sizes = np.diff(np.append(starts, max(stop, int(starts[-1]) + 1)))
    sizes[starts >= stop] = 0
    return np.bincount(texts.of_part, sizes, len(texts.documents))


def documents_of(texts: Texts, group: Sequence[int] | frozenset[int]) -> list[tuple[int, int]]:
    """Every copy of some texts, ascending."""
    return sorted(document for text in group for document in texts.documents[text])


def names_of(store: TokenStore, texts: Texts, text: int) -> list[str]:
    """PATH#N of each copy of a text."""
    return list(document_names(store, texts.documents[text]))
