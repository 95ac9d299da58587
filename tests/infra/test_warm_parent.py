"""A fork of the warm parent is what a fresh interpreter would be, and ends like one."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.contract import warm
from trainer.contract.warm import WarmProcess, start, warm_parents

# What a process was born with, as JSON.
ABOUT = """
import json, os, resource, sys
open_files = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
files = [os.readlink(path) for path in open_files if os.path.lexists(path)]  # not the listing
print(json.dumps({
    "argv": sys.argv[1:], "folder": os.getcwd(), "umask": os.umask(0), "env": sorted(os.environ),
    "limits": resource.getrlimit(resource.RLIMIT_FSIZE), "session": os.getsid(0) == os.getpid(),
    "stdin": sys.stdin.read(), "files": sorted(files),
    "name": __name__, "niceness": os.nice(0), "threads": len(os.listdir("/proc/self/task")),
}), flush=True)
print("an error", file=sys.stderr)
raise SystemExit(7)
"""
SLEEP = "import time\nprint('begins', flush=True)\ntime.sleep(60)\n"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be started, with a parent of its own that loads nothing yet."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv(warm.VARIABLE)
    monkeypatch.setattr(warm, "_parents", warm._Parents())
    (tmp_path / "about.py").write_text(ABOUT)
    (tmp_path / "sleeper.py").write_text(SLEEP)
    with warm_parents():
        # "fetch" is the first argument: such a step makes no parent load torch.
        yield tmp_path


def started(module: str, place: Path, *arguments: str, **options: object) -> warm.Process:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "ONLY_THERE": "yes"}
    with open(place / "output", "ab") as output:
        return start(module, arguments, environment=environment, output=output.fileno(), **options)  # type: ignore[arg-type]


def until(done: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def lines(place: Path) -> list[str]:
    return (place / "output").read_text().splitlines()


def about(place: Path, expected: type) -> dict[str, object]:
    (place / "output").unlink(missing_ok=True)
    with open(place / "lock", "a") as lock, open(place / "about.py") as stdin:
        files = {"inherited": [lock.fileno()], "stdin": stdin.fileno()}
        process = started("about", place, "fetch", "more", pid_file=place / "pid", **files)
        assert isinstance(process, expected)
        assert process.wait() == 7
    assert lines(place)[1] == "an error"
    assert int((place / "pid").read_text()) == process.pid
    return json.loads(lines(place)[0])


def test_a_fork_was_born_with_what_a_fresh_process_is(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, umask = resource.getrlimit(resource.RLIMIT_FSIZE), os.umask(0o027)
    monkeypatch.chdir(modules)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        fork = about(modules, WarmProcess)
        monkeypatch.setenv(warm.VARIABLE, warm.OFF)
        fresh = about(modules, subprocess.Popen)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.umask(umask)
    assert fork == fresh
    assert fork["session"] and fork["umask"] == 0o027
    assert [Path(file).name for file in fork["files"]] == ["about.py", "lock", "output", "output"]


def test_a_fork_that_is_killed_is_told_of_like_a_process(modules: Path) -> None:
    process = started("sleeper", modules, "fetch")
    until(lambda: lines(modules) == ["begins"])
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert about(modules, WarmProcess), "the parent still serves"


def test_the_end_of_a_fork_is_seen_without_its_parent(modules: Path) -> None:
    process = started("sleeper", modules, "fetch")
    (parent,) = warm._parents._started.values()
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    assert process.poll() is None, "a fork outlives its parent"
    other = started("sleeper", modules, "fetch")
    assert isinstance(other, subprocess.Popen)
    for each in (process, other):
        os.kill(each.pid, signal.SIGTERM)
        assert each.wait() < 0


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "HF_HOME", "PYTHONHASHSEED"])
def test_what_is_read_at_import_has_to_be_the_same(
    modules: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    about(modules, WarmProcess)
    monkeypatch.setenv(name, "3")
    about(modules, subprocess.Popen)


def test_a_parent_exits_with_its_owner_and_its_forks_do_not(modules: Path) -> None:
    code = (
        "import os, time\nfrom pathlib import Path\nfrom tests.infra import test_warm_parent as t\n"
        "from trainer.contract import warm\n"
        "os.environ.pop(warm.VARIABLE)\n"
        "with warm.warm_parents():\n"
        f"    process = t.started('sleeper', Path({str(modules)!r}), 'fetch')\n"
        "    (parent,) = warm._parents._started.values()\n"
        "    print(process.pid, parent.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    fork, parent = map(int, owner.stdout.readline().split())
    until(lambda: lines(modules) == ["begins"])
    owner.kill()
    owner.communicate()
    until(lambda: not Path(f"/proc/{parent}").exists())
    os.kill(fork, 0)
    os.kill(fork, signal.SIGKILL)
