"""End a process whose work is done, without the interpreter's own teardown.

The teardown looks through a million objects of torch and transformers for garbage: 1.5 s of
processor time. What gc.freeze spares of that, a library may report as its own leak: triton's
bindings print thirty lines "nanobind: leaked ..." behind a step that went well.
"""

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """Wait for threads, run what is registered for the end, flush, and exit with `code`."""
    threading._shutdown()  # type: ignore[attr-defined]  # no public name; not for daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader is gone, or it is closed
            stream.flush()
    os._exit(code)
