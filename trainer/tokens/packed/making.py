"""Make a store of whole documents of plain text, several in a context.

Documents are encoded and cached as for any store of text. Then each is one record, as a
chat is: held out by its own content, put into a context with others, written with its mask.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.tokens.chat.encoding import Encoded
from trainer.tokens.chat.ledger import RecordCounts
from trainer.tokens.chat.making import write_store
from trainer.tokens.chat.rendering import RecordWork, fitted
from trainer.tokens.chat.spool import Spool
from trainer.tokens.encode.crew import Crew
from trainer.tokens.encode.encoding import encoder_name
from trainer.tokens.encode.pieces import LoadedPiece
from trainer.tokens.encode.supply import Supply
from trainer.tokens.pack.making import supplied
from trainer.tokens.store_request import StoreRequest


class Document(NamedTuple):
    """A document of a file."""

    number: int
    """In the file, from 1."""
    content: int
    """Hash of its text."""
    ids: np.ndarray
    """The first of them, as many as a context holds."""
    tokens: int
    """How many it has."""


def make_store(asked: StoreRequest, folder: Path, crew: Crew | None) -> None:
    """Make the whole store in `folder`, with the crew if one was begun; the manifest last.

    Raises:
        RequestError: A document is longer than a context; it is named by file and number.
    """
    with supplied(asked, crew) as (text, supply, proof):
        work = RecordWork(**vars(text))
        with Spool(folder, work.vocabulary.dtype, masked=False) as spool:
            _spool_documents(work, supply, spool)
            write_store(work, spool, folder, encoder=encoder_name(proof), chat={})


def _spool_documents(work: RecordWork, supply: Supply, spool: Spool) -> None:
    """Bring all documents into the spool."""
    for index, source in enumerate(work.sources):
        counts = RecordCounts()
        work.counts.append(counts)
        counted = _counted(supply.pieces(index), counts)
        for document in documents(counted, work.config.context):
            if document.tokens < 2:  # nothing but the end of text, which nothing comes before
                counts.documents -= 1
                counts.empty_documents += 1
                counts.tokens += document.tokens
                counts.dropped_tokens += document.tokens
                continue
            found = Encoded(document.ids, np.arange(len(document.ids)) > 0)
            place = f"{source.path}, document {document.number:,}"
            kept = fitted(work.config, counts, place, found, document.tokens)
            if kept is not None:
                spool.add(index, document.number, document.content, kept)
    supply.progress.end()


def _counted(pieces: Iterable[LoadedPiece], counts: RecordCounts) -> Iterator[LoadedPiece]:
    """The same pieces; what their footers say is counted."""
    for piece in pieces:
        counts.documents += piece.facts.documents - piece.facts.empty
        counts.empty_documents += piece.facts.empty
        counts.blank_lines += piece.facts.blank_lines
        yield piece


def documents(pieces: Iterable[LoadedPiece], context: int) -> Iterator[Document]:
    """The documents of a file, in order; of long ones the first `context` ids."""
    before = 0
    left = iter(pieces)
    for piece in left:
        numbers = before + piece.records["number"].astype(np.int64)
        before += piece.facts.documents
        if piece.facts.unfinished:  # it is the only one in this piece, and continues in others
            content, number = int(piece.records["hash"][0]), int(numbers[0])
            first, tokens = [piece.ids[:context]], len(piece.ids)
            for more in left:
                before += more.facts.documents
                first.append(more.ids[: max(0, context - tokens)])
                tokens += len(more.ids)
                if not more.facts.unfinished:
                    break
            yield Document(number, content, np.concatenate(first), tokens)
            continue
        ends = np.cumsum(piece.records["tokens"].astype(np.int64)).tolist()
        begin = 0
        hashes = piece.records["hash"].tolist()
        for number, content, end in zip(numbers.tolist(), hashes, ends, strict=True):
            ids = piece.ids[begin : min(end, begin + context)]
            yield Document(number, content, ids, end - begin)
            begin = end
