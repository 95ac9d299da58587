"""Check a token store's digests while the model loads, so that no damaged token is trained on."""

import os
import threading
from pathlib import Path

from trainer.contract.errors import DamagedError
from trainer.tokens.store import check_file, read_manifest


class StoreCheck:
    """Reads every file of a store once, in a thread of its own: hashing releases Python's lock.

    The fast digest costs as much as reading: 100 GB take 20 s at 5 GB/s.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._check, name="store check", daemon=True)
        self._thread.start()

    def problem(self) -> str | None:
        """Wait for the end; what is wrong with the store, or None."""
        self._thread.join()
        return self._problem

    def _check(self) -> None:
        path = self._folder
        try:
            manifest, _ = read_manifest(self._folder)
            for name in manifest.files:
                path = self._folder / name
                check_file(path, manifest.digests[name], verify="fast")
        except (DamagedError, OSError) as error:
            self._problem = (
                f"{error} Nothing was trained on it. Run it again: the tokenize step makes the "
                "tokens again."
            )
            # The tokenize step reads again what has another time than it remembers.
            if path.is_file() and os.access(path, os.W_OK):
                os.utime(path)
