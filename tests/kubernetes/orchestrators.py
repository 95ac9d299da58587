"""Orchestrators that can be killed at a request of theirs, started quickly one after the other.

    python -m tests.kubernetes.orchestrators MODULE

loads MODULE once, and forks for each line of JSON that it reads: {"function": name in MODULE,
"arguments": {...}, "result": path}. It writes `started PID` and `ended PID` for each. One that is
not killed leaves what its function returned as JSON in `result`.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.kubernetes_double.cluster import Cluster

ROOT = Path(__file__).parents[2]


class Orchestrators:
    """Processes that talk to `cluster`, one at a time; a context manager.

    Args:
        folder: For their results.
        module: Name of the module with the functions that they call.
    """

    def __init__(self, cluster: Cluster, folder: Path, module: str) -> None:
        self.folder, self._result = folder, folder / "result.json"
        self._cluster = cluster
        self._starter = subprocess.Popen(
            [sys.executable, "-m", "tests.kubernetes.orchestrators", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.num_requests = 0  # of the latest one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._starter.stdin is not None
        self._starter.stdin.close()
        self._starter.wait()

    def call(
        self, function: str, *, kill_at: int = 0, before: bool = True, **arguments: Any
    ) -> Any:
        """What the function returned; None if it was killed, at its request number `kill_at`.

        Args:
            before: Kill before the request is answered, else after it took effect.
        """
        self._result.unlink(missing_ok=True)
        pid: list[int] = []
        self.num_requests = 0

        def kill(*_: Any) -> None:
            self.num_requests += 1
            if self.num_requests == kill_at:
                while not pid:  # the request may come before the process id
                    os.sched_yield()
                os.kill(pid[0], signal.SIGKILL)

        faults = self._cluster.faults
        faults.before_request = kill if before else lambda *_: None
        faults.after_request = kill if not before else lambda *_: None
        assert self._starter.stdin is not None
        order = {"function": function, "arguments": arguments, "result": str(self._result)}
        print(json.dumps(order), file=self._starter.stdin, flush=True)
        pid.append(self._read("started"))
        self._read("ended")
        faults.before_request = faults.after_request = lambda *_: None
        with contextlib.suppress(FileNotFoundError):
            return json.loads(self._result.read_text())
        return None

    def _read(self, word: str) -> int:
        assert self._starter.stdout is not None
        said, pid = self._starter.stdout.readline().split()
        assert said == word
        return int(pid)


def main() -> None:
    """Fork for each order on standard input."""
    module = importlib.import_module(sys.argv[1])
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                order = json.loads(line)
                result = getattr(module, order["function"])(**order["arguments"])
                Path(order["result"]).write_text(json.dumps(result))
            finally:
                os._exit(0)
        print("started", child, flush=True)
        os.waitpid(child, 0)
        print("ended", child, flush=True)


if __name__ == "__main__":
    main()
