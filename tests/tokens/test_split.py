"""What is held out is a function of each document; random corpora of ids, no files."""

import hashlib
import random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trainer.tokens.encode.pieces import PIECE_DOCUMENT, LoadedPiece, PieceFacts
from trainer.tokens.pack.dividing import divide
from trainer.tokens.pack.split import ShareCount, Split

NEWLINE = 7
BYTES_PER_TOKEN = 4


def document(seed: object, tokens: int) -> np.ndarray:
    """Ids drawn from `seed`, a boundary token about every thirty."""
    draw = np.random.default_rng(random.Random(str(seed)).randrange(2**32))
    ids = draw.integers(10, 600, tokens).astype("<u2")
    ids[draw.random(tokens) < 1 / 30] = NEWLINE
    return ids


def piece(documents: list[np.ndarray], **facts: bool) -> LoadedPiece:
    records = np.zeros(len(documents), PIECE_DOCUMENT)
    for at, ids in enumerate(documents):
        digest = hashlib.blake2b(ids.tobytes()[:1000], digest_size=8).digest()
        records[at] = (len(ids), int.from_bytes(digest), at + 1, BYTES_PER_TOKEN * len(ids))
    ids = np.concatenate(documents)
    about = PieceFacts(
        dtype="<u2",
        num_ids=len(ids),
        num_documents=len(documents),
        documents=len(documents),
        empty=0,
        blank_lines=0,
        text_bytes=BYTES_PER_TOKEN * len(ids),
        checksum=0,
        **{"continues": False, "unfinished": False, **facts},
    )
    return LoadedPiece(about, ids, records)


def split_for(documents: list[np.ndarray], share: float) -> Split:
    size = BYTES_PER_TOKEN * sum(map(len, documents))
    inside = np.zeros(600, bool)
    return Split(share=share, dataset_bytes=size, boundary=NEWLINE, begins_inside=inside)


def held(documents: list[np.ndarray], split: Split, count: ShareCount | None = None) -> list[bytes]:
    """For each document, which of its ids are held out."""
    parts = divide([piece(documents)], split, count or ShareCount(split))
    mask = np.concatenate([np.repeat(part.held, part.lengths) for part in parts])
    return [m.tobytes() for m in np.split(mask, np.cumsum([*map(len, documents)])[:-1])]


SHARES = st.sampled_from([0.02, 0.05, 0.1, 0.2, 0.5, 0.9])
CORPORA = st.builds(
    lambda seed, count, longest: [
        document((seed, at), random.Random(f"{seed} {at}").randint(1, longest))
        for at in range(count)
    ],
    st.integers(0, 2**32),
    st.integers(1, 400),
    st.sampled_from([20, 300, 5_000]),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(documents=CORPORA, share=SHARES, seed=st.integers(0, 99))
def test_what_a_document_holds_out_depends_on_no_other_document(documents, share, seed):
    split = split_for(documents, share)
    before = held(documents, split)
    chosen = random.Random(seed).sample(range(len(documents)), (len(documents) + 1) // 2)
    after = held([documents[at] for at in chosen], split)
    assert after == [before[at] for at in chosen]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(documents=CORPORA, share=SHARES)
def test_the_share_is_met_within_a_fifth(documents, share):
    total = sum(map(len, documents))
    assume(share * total > 1_500)  # more than a few windows
    split = split_for(documents, share)
    count = ShareCount(split)
    got = sum(mask.count(1) for mask in held(documents, split, count))
    amended = count.amended(got, total, 20)
    if amended:
        got = sum(mask.count(1) for mask in held(documents, amended))
    assert got / total == pytest.approx(share, rel=0.2)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_in_a_large_corpus_short_documents_stay_whole(share):
    documents = [document(at, 40 + at % 50) for at in range(20_000)]
    masks = held(documents, split := split_for(documents, share))
    assert {len(set(mask)) for mask in masks} == {1}
    count = ShareCount(split)
    got = sum(mask.count(1) for mask in held(documents, split, count))
    assert count.amended(got, sum(map(len, documents)), 100) is None


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_document_in_several_pieces_is_held_out_as_in_one(share):
    whole = document("novel", 2_000_000)
    split = split_for([whole], share)
    wanted = held([whole], split)[0]
    ends = [300_000, 300_010, 1_100_000, 2_000_000]
    begins = [0, *ends[:-1]]
    pieces = [
        piece([whole[begin:end]], continues=begin > 0, unfinished=end < len(whole))
        for begin, end in zip(begins, ends, strict=True)
    ]
    parts = divide(pieces, split, ShareCount(split))
    assert np.concatenate([np.repeat(p.held, p.lengths) for p in parts]).tobytes() == wanted
    assert wanted.count(1) / len(whole) == pytest.approx(share, rel=0.02)


def test_windows_begin_and_end_after_boundary_tokens():
    for number in range(4):
        novel = document(number, 300_000)
        mask = np.frombuffer(held([novel], split_for([novel], 0.1))[0], bool)
        edges = np.flatnonzero(mask[1:] != mask[:-1])
        assert len(edges)
        assert (novel[edges] == NEWLINE).all()


def test_one_document_is_held_out_where_chance_left_none():
    documents = [document(at, 900) for at in range(30)]
    split = split_for(documents, 0.0001)
    count = ShareCount(split)
    got = sum(mask.count(1) for mask in held(documents, split, count))
    assert got == 0
    assert count.amended(0, 27_000, 19) is None
    amended = count.amended(0, 27_000, 20)
    assert amended
    assert 0 < sum(mask.count(1) for mask in held(documents, amended)) < 1_000
