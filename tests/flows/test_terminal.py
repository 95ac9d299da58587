"""What a person sees of a run: live bars on a terminal, plain lines in a pipe."""

import os
import pty
import re
import subprocess
import sys

from tasks.wording import describe_progress

# Events as a step prints them.
SHOW = """
import sys
from flows.terminal import watcher_for
from trainer.events import parse_event
from trainer.outcome import Outcome

watcher = watcher_for(sys.stderr)
watcher.started("finetune", "process 7")
watcher.line("finetune", "goes on from step [80]")
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
    assert "  finetune | goes on from step [80]" in text
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


def test_a_pipe_gets_plain_lines() -> None:
    ran = subprocess.run([sys.executable, "-c", SHOW], input="", capture_output=True, text=True)
    assert ran.stdout == ""
    assert ran.stderr == (
        "finetune: process 7\n"
        "finetune | goes on from step [80]\n"
        "finetune: weights are [bold]\n"  # the progress comes after some seconds
        "finetune: done in 1:06 min: ready\n"
    )


def test_the_speed_of_reading_has_its_unit() -> None:
    fields = {"label": "digest", "done": 3.0, "total": 9.0, "unit": "MB", "per_second": 1.5}
    assert describe_progress(fields) == "digest 3/9 MB, 1.5 MB/s"
