"""A step's process ends with its own exit code and its own last words, and nothing behind them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What the interpreter calls last of all in its teardown, as a library's check for leaks is.
AT_TEARDOWN = "import ctypes; ctypes.pythonapi.Py_AtExit(ctypes.CDLL(None).abort)\n"
LATE = """
import atexit, threading, time
from trainer.process_end import end_process
atexit.register(print, "registered")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
print("last words", end="")
end_process(75)
"""


def run(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": "/usr/bin:/bin", **variables}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_no_library_reports_behind_the_end_of_a_step(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_TEARDOWN)
    torn_down = run("-c", "", PYTHONPATH=str(tmp_path))
    assert torn_down.returncode < 0
    done = run("-m", "trainer", "fetch", "{}", PYTHONPATH=str(tmp_path))
    assert done.returncode == 78 and "volume" in done.stderr


def test_threads_handlers_and_output_come_before_the_end() -> None:
    done = run("-c", LATE)
    assert (done.returncode, done.stderr) == (75, "")
    assert done.stdout == "last wordsthread\nregistered\n"
