"""Compare stores of random corpora with the slow model, for as long as you like.

    python -m tests.tokens.fuzz --minutes 10 [--seed N]

Prints how many documents agreed, or the first corpus that did not, with its seed.
"""

import argparse
import contextlib
import io
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.tokens.agreement import disagreement, random_corpus
from tests.tokens.conftest import Volume, save_models

_DOCUMENTS = 2_000


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--seed", type=int, default=None, help="begin with this one")
    asked = parser.parse_args(arguments)
    seed = random.randrange(2**32) if asked.seed is None else asked.seed
    end = time.monotonic() + 60 * asked.minutes
    agreed = 0
    with tempfile.TemporaryDirectory() as folder:
        volume = Volume(Path(folder))
        save_models(volume.root)
        while time.monotonic() < end:
            with contextlib.redirect_stdout(io.StringIO()):
                corpus = random_corpus(random.Random(seed), _DOCUMENTS)
                difference = disagreement(volume, corpus)
            if difference:
                print(f"seed {seed}: {difference} with {corpus.options}")
                return 1
            agreed += _DOCUMENTS
            seed += 1
            for name in ("tokens", "cache/tokens/pieces"):
                shutil.rmtree(volume.root / name, ignore_errors=True)
    print(f"{agreed:,} documents agree with the slow model; the next seed is {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
