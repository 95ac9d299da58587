"""Follow a log file that a process is writing: whole lines, each once."""

from pathlib import Path
from typing import Self

from infra.backend import Line

CHUNK_BYTES = 1 << 20


class LogFollower:
    """Hands over the lines that a file gains after `offset` bytes.

    Args:
        path: The log; must exist.
        offset: Bytes to pass over.
    """

    def __init__(self, path: Path, offset: int) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by __exit__
        self._file.seek(offset)
        self._rest = b""

    @property
    def position(self) -> int:
        """Bytes of the file that were handed over."""
        return self._file.tell() - len(self._rest)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def hand_over(self, on_line: Line, *, final: bool = False) -> bool:
        """Pass on what has come; with `final` also a last line that no newline ends.

        Returns:
            Whether there was anything.
        """
        found = False
        while chunk := self._file.read(CHUNK_BYTES):
            found = True
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                on_line(_text(line))
        if final and self._rest:
            on_line(_text(self._rest))
            self._rest = b""
        return found


def _text(line: bytes) -> str:
    # A progress bar that draws over itself counts as what it shows last.
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace")
