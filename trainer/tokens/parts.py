"""Which parts a source is read in, and where it is sampled: by its content alone."""

import hashlib
from collections.abc import Iterator

from trainer.errors import StepError
from trainer.tokens.cuts import PIECE_BYTES, WINDOW_BYTES, cut_bytes
from trainer.tokens.documents import Part, whole_part
from trainer.tokens.records import parquet_row_groups
from trainer.tokens.sources import Source

_SAMPLED_PLACES = 32


def plan_parts(source: Source, digest: str, text_field: str, cut: bool) -> Iterator[Part]:
    """The parts of one source, in order: of a long file on the volume many, else one.

    Args:
        source: The file.
        digest: Its SHA-256.
        text_field: Key of the text in JSONL and parquet.
        cut: Whether long documents may be cut.
    """
    whole = whole_part(source, digest, text_field, cut)
    try:
        stops = _stops(source, whole, cut)
    except OSError as error:
        raise StepError(f"{source.location} can't be read: {error}") from error
    start = 0
    for stop in stops:
        yield whole._replace(start=start, stop=stop, whole=stops[-1])
        start = stop


def _stops(source: Source, whole: Part, cut: bool) -> list[int]:
    if source.kind == "parquet":
        return [*range(1, parquet_row_groups(whole) + 1)] or [0]
    if source.streamed or (source.kind == "text" and not cut):
        return [source.size]
    stops = []
    with open(source.location, "rb") as file:
        position = PIECE_BYTES
        while position + WINDOW_BYTES < source.size:
            file.seek(position)
            window = file.read(WINDOW_BYTES)
            found = _line_end(window) if source.kind == "jsonl" else cut_bytes(window)
            if found is None:
                # The windows overlap: a place to cut must not hide in a seam between two.
                position += WINDOW_BYTES - 16
            else:
                stops.append(position + found)
                position += found + PIECE_BYTES
    return [*stops, source.size]


def _line_end(window: bytes) -> int | None:
    return window.find(b"\n") + 1 or None


def sample_places(sources: list[Source], digests: list[str]) -> list[tuple[Source, int]]:
    """Where to read samples of the corpus: drawn from the files' content.

    The same files give the same places, whatever their names, order and number of workers.
    """
    ordered = sorted(zip(digests, sources, strict=True), key=lambda pair: pair[0])
    total = sum(source.size for source in sources)
    places = []
    for index in range(_SAMPLED_PLACES):
        drawn = hashlib.sha256(f"{index}-{ordered[0][0]}-{ordered[-1][0]}".encode()).digest()
        at = int.from_bytes(drawn[:8], "big") % max(1, total) if index else 0
        for _, source in ordered:
            if at < source.size:
                places.append((source, at))
                break
            at -= source.size
    return sorted(set(places))
