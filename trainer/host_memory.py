"""What the C library does with memory that was freed: keep it for the next time, or give it back.

Settings of glibc's malloc; elsewhere nothing happens.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_PAGES = 64 << 10
_LARGEST = 32 << 20  # glibc takes no larger one for M_MMAP_THRESHOLD


def keep_freed() -> None:
    """Have large buffers reused instead of given back.

    Each MB of text takes some twenty buffers of its size; fetching them anew from the
    kernel, page by page, took as long as what was done with them.
    """
    _tune(_MMAP_THRESHOLD, _LARGEST)
    _tune(_TRIM_THRESHOLD, 2 * _LARGEST)


@contextmanager
def given_back() -> Iterator[None]:
    """Give back what is freed meanwhile: loading a model frees as much as it keeps.

    By itself glibc would keep every tensor below 32 MiB that was freed once, which was twice
    the size of a small model's weights.
    """
    _tune(_MMAP_THRESHOLD, _PAGES)
    try:
        yield
    finally:
        _call("malloc_trim", 0)
        keep_freed()


def _tune(name: int, number: int) -> None:
    _call("mallopt", name, number)


def _call(function: str, *numbers: int) -> None:
    call: Any = getattr(ctypes.CDLL(None), function, None)
    if call:
        call(*numbers)
