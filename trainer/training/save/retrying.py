"""Writes that wait for a volume that is full or ails, instead of ending a run at once."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.contract.errors import StepError
from trainer.contract.events import notice
from trainer.retention.full_volume import full_sentence, is_full

ATTEMPTS = 5
RETRY_SECONDS = 5.0


def insist(write: Callable[[], Any], what: str, on_failure: Callable[[], None]) -> Any:
    """What `write` returns; after an OSError it is tried again, later and later.

    Args:
        write: Begins anew, or continues, at each call.
        what: What is written, as the user knows it.
        on_failure: Done before each wait.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return write()
        except OSError as error:
            if attempt == ATTEMPTS:
                raise
            wait = RETRY_SECONDS * attempt
            notice(f"{what} can't be written ({error}); trying again in {wait:.0f} s")
            on_failure()
            time.sleep(wait)
    raise AssertionError


def append(file: Any, data: bytes, name: str) -> None:
    """Write all of `data` to an unbuffered file of the run; what it took before stays.

    Raises:
        StepError: The volume takes no more, also after some time.
    """
    left = memoryview(data)

    def write_rest() -> None:
        nonlocal left
        while left:
            left = left[file.write(left) :]  # a full volume takes a part, then none

    try:
        insist(write_rest, name, on_failure=lambda: None)
    except OSError as error:
        volume = Path(file.name).parents[1]
        why = f": {full_sentence(volume)}" if is_full(error) else f" ({error})"
        raise StepError(
            f"{name} could not be written{why}. The checkpoints are intact. Make room on the "
            "volume and run it again: it resumes from the last one."
        ) from error
