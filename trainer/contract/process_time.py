"""When a process began: what tells it from a later one that got the same process id."""

import os
import subprocess
from pathlib import Path


def process_started(pid: int) -> str | None:
    """When the process began, as its kernel tells it; None where there is none or it ended.

    Source: proc(5), field 22 (starttime) of /proc/pid/stat; `ps` where there is no /proc.
    """
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat.rsplit(")", 1)[1].split()  # the name before may hold anything
        return None if fields[0] in "ZX" and _is_reaped(pid) else fields[19]
    listed = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True
    )
    state, _, began = listed.stdout.strip().partition(" ")
    return began.strip() if state and not state.startswith("Z") else None


def _is_reaped(pid: int) -> bool:
    """Whether a zombie is gone for good; a child of ours stays one until it is waited for."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid  # 0: a thread of it has yet to end
    except ChildProcessError:
        return True
