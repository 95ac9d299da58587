"""What is read: a part of a file, and the text of a document."""

from typing import NamedTuple

from trainer.tokens.text.sources import Source


class Part(NamedTuple):
    """What one piece is made from: a file, or a part of it that can be read alone."""

    path: str  # for messages
    location: str
    remote: bool
    kind: str
    compression: str
    text_field: str
    digest: str  # of the whole file
    start: int  # first byte, or row group of parquet
    stop: int
    whole: int  # where the last part stops
    cut: bool  # whether long documents may be cut


def whole_part(source: Source, digest: str, text_field: str, cut: bool = True) -> Part:
    """All of a source as one part; of parquet its first row group."""
    stop = 1 if source.kind == "parquet" else source.size
    return Part(
        path=source.path,
        location=source.location,
        remote=source.remote,
        kind=source.kind,
        compression=source.compression,
        text_field=text_field,
        digest=digest,
        start=0,
        stop=stop,
        whole=stop,
        cut=cut,
    )


class Text(NamedTuple):
    """A document, or a part of a long one, as UTF-8."""

    text: bytes
    first: bool = True
    last: bool = True
