"""Small pieces, windows and blocks: a few hundred bytes of text reach every seam."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

from trainer.tokens.encode import pieces, supply, worker
from trainer.tokens.pack import packing, split
from trainer.tokens.text import cuts, parts, reading, records

# Modules hold these by name: each has to be told.
HOLDERS: dict[str, tuple[Any, ...]] = {
    "PIECE_BYTES": (cuts, parts, reading, records, supply, worker),
    "WINDOW_BYTES": (cuts, parts, reading),
    "WHOLE_BYTES": (pieces,),
    "PART_IDS": (pieces,),
}


@contextlib.contextmanager
def narrow(draw: random.Random) -> Iterator[dict[str, int]]:
    """Draw small sizes, and have all modules use them; yields what was drawn."""
    sizes = {
        "PIECE_BYTES": draw.choice([60, 300, 1_000, 5_000]),
        "WINDOW_BYTES": draw.choice([40, 100, 400]),  # more than the 16 that windows overlap
        "WHOLE_BYTES": draw.choice([1_000, 3_000, 32 << 20]),  # a footer fits
        "PART_IDS": draw.choice([50, 500]),
    }
    windows = [(packing, draw.choice([1, 30, 300, 3_000])), (split, draw.choice([40, 400, 65_536]))]
    asked = [(module, name, sizes[name]) for name in HOLDERS for module in HOLDERS[name]]
    asked += [(module, "_WINDOW_TOKENS", size) for module, size in windows]
    usual = [(module, name, getattr(module, name)) for module, name, _ in asked]
    for module, name, size in asked:
        setattr(module, name, size)
    try:
        yield {**sizes, "window": windows[0][1], "held-out window": windows[1][1]}
    finally:
        for module, name, size in usual:
            setattr(module, name, size)
