"""Compare stores of random corpora with the slow model, for as long as you like.

    python -m tests.tokens.fuzz --minutes 10 | --documents 1000000 [--seed N]

Prints how many documents agreed, or the first corpus that did not, with its seed.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.tokens.agreement import disagreement
from tests.tokens.conftest import Volume, save_models
from tests.tokens.corpora import random_corpus
from tests.tokens.seams import narrow

_DOCUMENTS = 2_000
_TOLD_SECONDS = 60.0
# In memory where that is offered: a corpus is a thousand small files.
_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=None, help="how long (default 1)")
    parser.add_argument("--documents", type=int, default=None, help="or how many documents")
    parser.add_argument("--seed", type=int, default=None, help="begin with this one")
    asked = parser.parse_args(arguments)
    seed = random.randrange(2**32) if asked.seed is None else asked.seed
    minutes = asked.minutes or (float("inf") if asked.documents else 1.0)
    with tempfile.TemporaryDirectory(dir=_FOLDER) as folder:
        volume = Volume(Path(folder))
        save_models(volume.root)
        return fuzz(volume, seed, minutes * 60, asked.documents or sys.maxsize)


def fuzz(volume: Volume, seed: int, seconds: float, documents: int) -> int:
    """Compare until the time is over or so many documents agreed; returns the exit code."""
    began = told = time.monotonic()
    agreed = 0
    while time.monotonic() - began < seconds and agreed < documents:
        count, difference = one_corpus(volume, seed)
        if difference:
            print(f"seed {seed}: {difference}")
            return 1
        agreed += count
        seed += 1
        if time.monotonic() - told >= _TOLD_SECONDS:
            told = time.monotonic()
            print(f"{agreed:,} documents agree, {agreed / (told - began):,.0f} a second")
            sys.stdout.flush()
    print(f"{agreed:,} documents agree with the slow model; the next seed is {seed}")
    return 0


def one_corpus(volume: Volume, seed: int) -> tuple[int, str]:
    """How many documents the corpus of `seed` has, and what differs."""
    draw = random.Random(seed)
    with contextlib.redirect_stdout(io.StringIO()), narrow(draw) as sizes:
        corpus = random_corpus(draw, _DOCUMENTS)
        difference = disagreement(volume, corpus)
    for name in ("tokens", "cache/tokens/pieces"):
        shutil.rmtree(volume.root / name, ignore_errors=True)
    if difference:
        difference += f" with {corpus.options} and {sizes}"
    return corpus.documents, difference


if __name__ == "__main__":
    sys.exit(main())
