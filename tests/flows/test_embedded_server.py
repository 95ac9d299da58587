"""The server of one run: it answers, outlasts Ctrl-C of a terminal, and is never left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.cli import prefect_server as embedded_server
from flows.cli.prefect_server import answers
from tests.prefect_processes import prefect_environment
from trainer.contract.errors import RequestError, StepError

HOLD = (
    "import time; from flows.cli.prefect_server import embedded_server\n"
    "with embedded_server() as url:\n"
    "    try: print(url, flush=True); time.sleep(100)\n"
    "    except KeyboardInterrupt:\n"
    "        import urllib.request\n"
    "        print(urllib.request.urlopen(url + '/health').status, flush=True)\n"
    "        time.sleep(100)\n"
)


# A proxy that nobody can reach is in the environment, as others are of many machines.
NO_WAY = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")


def test_it_answers_after_a_terminals_ctrl_c_and_ends_with_a_killed_run(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=prefect_environment(tmp_path) | NO_WAY | {"NO_PROXY": "", "no_proxy": "corp.example"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline().startswith("http://127.0.0.1:")
        started = psutil.Process(holder.pid).children(recursive=True)
        assert len(started) >= 2  # the guard and the server
        os.killpg(holder.pid, signal.SIGINT)
        assert holder.stdout.readline() == "200\n"
        holder.kill()
        holder.wait()
        _, left = psutil.wait_procs(started, timeout=240)
        assert not left
    finally:
        holder.kill()
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get("PREFECT_HOME") == str(tmp_path):
                process.kill()


def wait_for_end(process: psutil.Process) -> None:
    """Until it has ended; its parent, which lives, may never ask how."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)


@pytest.mark.parametrize("first", ["guard", "run"])
def test_it_ends_by_itself_where_its_guard_was_killed_as_well(tmp_path: Path, first: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=prefect_environment(tmp_path) | NO_WAY,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None
        url = holder.stdout.readline().strip()
        (guard,) = psutil.Process(holder.pid).children()
        servers = guard.children(recursive=True)
        assert servers
        killed = (guard, holder) if first == "guard" else (holder, guard)
        for process in killed:
            process.kill()
            if process is guard and first == "guard":
                wait_for_end(guard)
                while not answers(url):  # the run still needs it; a busy one answers late
                    assert psutil.pid_exists(servers[0].pid)
        _, left = psutil.wait_procs(servers, timeout=240)
        assert not left
    finally:
        holder.kill()
        holder.wait()
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get("PREFECT_HOME") == str(tmp_path):
                process.kill()


@pytest.mark.parametrize("url", ["foo", "127.0.0.1:4200", "http://", "http://host:port/api"])
def test_what_is_no_address_of_a_server_is_refused_by_name(url: str) -> None:
    with pytest.raises(RequestError, match="PREFECT_API_URL is no address") as refused:
        answers(url)
    assert f"(got {url!r})" in str(refused.value)


def test_a_server_that_is_late_is_told_from_one_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in prefect_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(embedded_server, "READY_SECONDS", 0.0)
    with (
        pytest.raises(StepError, match="did not answer within 0 s"),
        embedded_server.embedded_server(),
    ):
        pass
