"""Which parts a source is read in, and where it is sampled: by its content alone."""

from collections.abc import Iterator

import numpy as np

from trainer.contract.errors import StepError
from trainer.tokens.text.cuts import PIECE_BYTES, WINDOW_BYTES, cut_bytes
from trainer.tokens.text.documents import Part, whole_part
from trainer.tokens.text.records import parquet_row_groups
from trainer.tokens.text.sources import Source, shown

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
        raise StepError(f"{shown(source.location)} can't be read: {error}") from error
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
    """Where to read samples of the corpus: drawn from the files' content, large files more often.

    The same files give the same places, whatever their names, order and number of workers. Where
    a file changes, no place in another moves, unless it goes there or comes from there.

    Source: weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): for each place the file
    that has the least of exponential numbers of rate `size`.
    """
    sizes = np.array([source.size for source in sources], np.float64)
    if not sizes.any():
        return []
    drawn = np.array([int(digest[:16], 16) for digest in digests], np.uint64)
    places = set()
    for index in range(_SAMPLED_PLACES):
        numbers = mixed(drawn + np.uint64(index))
        # Of (0, 1): a file without text is never chosen.
        waits = -np.log((numbers >> np.uint64(11)).astype(np.float64) / 2.0**53 + 2.0**-54)
        chosen = int(np.argmin(np.where(sizes > 0, waits / np.maximum(sizes, 1), np.inf)))
        # The first place is a beginning.
        at = int(mixed(numbers)[chosen] % np.uint64(sources[chosen].size)) if index else 0
        places.add((sources[chosen], at))
    return sorted(places)


def mixed(numbers: np.ndarray) -> np.ndarray:
    """Each number, shape (n,) uint64, as a random one. Source: SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        keys = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return keys ^ (keys >> np.uint64(31))
