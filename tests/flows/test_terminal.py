"""What a person sees of a run: live bars on a terminal, plain lines in a pipe."""

import os
import pty
import re
import subprocess
import sys

import pytest

from flows.cli.progress_line import progress_line
from tests.flows.screen import Screen
from trainer.contract.wording import describe_progress

# Events as a step prints them.
SHOW = """
import sys
from flows.cli.terminal import watcher_for
from trainer.contract.events import parse_event
from trainer.contract.outcome import Outcome

watcher = watcher_for(sys.stderr)
watcher.started("finetune", "process 7")
watcher.line("finetune", "resumes from step [80]")
for line in (
    '::finetune notice {"message": "weights are [bold]"}',
    '::finetune progress {"label": "finetune", "done": 81, "total": 159, "unit": "steps", '
    '"loss": 1.143, "tokens_per_second": 5526.0, "remaining_seconds": 27}',
):
    watcher.event("finetune", parse_event(line))
sys.stdin.read()
watcher.ended("finetune", Outcome(step="finetune", status="done", message="ready", seconds=66.0))
watcher.close()
"""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_a_terminal_gets_a_bar_with_figures_that_is_gone_at_the_end() -> None:
    ours, theirs = pty.openpty()
    shown = {"TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": ""}
    command, environment = [sys.executable, "-c", SHOW], os.environ | shown
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=theirs, env=environment) as run:
        assert run.stdin is not None
        os.close(theirs)
        raw = _read(ours, until="s left")
        run.stdin.close()
        raw += _read(ours)
    os.close(ours)
    assert run.returncode == 0, raw
    text = ESCAPES.sub("", raw)
    assert re.search(r"finetune +\S+ +81/159 +steps  loss 1\.143, 5,526 tokens/s, 27 s left", text)
    assert "  finetune | resumes from step [80]" in text
    assert "  finetune: weights are [bold]" in text
    assert "✓ finetune  done in 1:06 min: ready" in text
    # Transient: the bar's line is cleared, and the cursor shown again.
    after_the_last_bar = raw[raw.rindex("81/159") :]
    assert "\x1b[2K" in after_the_last_bar and "\x1b[?25h" in after_the_last_bar


def _read(terminal: int, until: str = "") -> str:
    """What is written to the terminal up to those words, or until nobody has it open."""
    read = b""
    while not until or until.encode() not in read:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux' way to say that the other end was closed
            break
        if not piece:
            break
        read += piece
    return read.decode()


# The same, with a step that continues until Ctrl-C, and then says what it has saved.
INTERRUPTED = """
import itertools, sys, time
from flows.cli.terminal import watcher_for
from trainer.contract.events import Event

watcher = watcher_for(sys.stderr)
watcher.started("finetune", "process 7")
figures = {"label": "finetune", "total": 159, "unit": "steps", "loss": 1.143,
           "tokens_per_second": 5526.0, "remaining_seconds": 27}
try:
    try:
        for step in itertools.count():
            watcher.event("finetune", Event("progress", figures | {"done": step % 159}))
            if step % 50 == 0:
                watcher.line("finetune", f"said at {step}")
    except KeyboardInterrupt:
        watcher.event("finetune", Event("notice", {"message": "stopping"}))
        time.sleep(0.3)
        watcher.line("finetune", "saved")
finally:
    watcher.close()
"""


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_after_ctrl_c_no_copy_of_the_bar_is_left(columns: int) -> None:
    """With the keys pressed on a real terminal, which echoes them into the bar's line."""
    pid, terminal = pty.fork()
    if pid == 0:
        shown = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "200", "NO_COLOR": ""}
        os.execve(sys.executable, [sys.executable, "-c", INTERRUPTED], os.environ | shown)
    raw = _read(terminal, until="said at 200")
    os.write(terminal, b"\x03")
    raw += _read(terminal)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, raw
    assert "^C" in raw
    drawn = [line for line in re.split(r"[\r\n]+", ESCAPES.sub("", raw)) if "/159" in line]
    assert drawn and max(map(len, drawn)) <= columns
    seen = Screen(columns).write(raw).lines
    assert [line for line in seen if "/159" in line or "━" in line] == []
    said = [line for line in seen if line.startswith("  finetune | said at")]
    assert said == [f"  finetune | said at {50 * at}" for at in range(len(said))]
    assert seen[-2:] == ["  finetune: stopping", "  finetune | saved"]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (100, "finetune  " + "━" * 24 + " 81/159 steps  loss 1.143, 5,526 tokens/s, 27 s left"),
        (80, "finetune  " + "━" * 12 + " 81/159 steps  loss 1.143, 5,526 tokens/s, 27 s left"),
        (60, "finetune  " + "━" * 12 + " 81/159 steps  loss 1.143, 27 s left"),
        (45, "finetune  81/159 steps  loss 1.143, 27 s left"),
        (30, "finetune  81/159 steps"),
        (20, "finetune  81/159 st…"),
    ],
)
def test_the_bar_leaves_out_what_does_not_fit(columns: int, line: str) -> None:
    figures = ["steps", "loss 1.143", "5,526 tokens/s", "27 s left"]
    shown = progress_line("finetune", 81, 159, figures, columns).plain
    assert shown == line
    assert len(shown) <= columns


def test_a_pipe_gets_plain_lines() -> None:
    ran = subprocess.run([sys.executable, "-c", SHOW], input="", capture_output=True, text=True)
    assert ran.stdout == ""
    assert ran.stderr == (
        "finetune: process 7\n"
        "finetune | resumes from step [80]\n"
        "finetune: weights are [bold]\n"  # the progress comes after some seconds
        "finetune: done in 1:06 min: ready\n"
    )


def test_the_speed_of_reading_has_its_unit() -> None:
    fields = {"label": "digest", "done": 3.0, "total": 9.0, "unit": "MB", "per_second": 1.5}
    assert describe_progress(fields) == "digest 3/9 MB, 1.5 MB/s"
