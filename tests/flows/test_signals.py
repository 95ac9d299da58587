"""SIGTERM to the process of `finetune run` alone: it says what continues, under Prefect too."""

import subprocess
import sys

import pytest

from flows.cli import run_here
from infra.local.processes import LocalBackend
from tests.infra.test_local_processes import PVC, backend, home, spec  # noqa: F401 - fixtures
from trainer.contract.parameters import Parameters

TERMINATED = """
import os, signal, sys, time
from contextlib import nullcontext
from flows.cli import main
from flows.cli.signals import ending_on_sigterm
from prefect.utilities.engine import capture_sigterm

def run():
    with ending_on_sigterm(lambda: "the finetune step continues"):
        with (capture_sigterm() if sys.argv[1] == "in-a-flow" else nullcontext()):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

main.cli = lambda standalone_mode: run()
main.main()
"""


@pytest.mark.parametrize("where", ["in-a-flow", "before-the-flow"])
def test_sigterm_ends_it_with_a_sentence_and_the_exit_code_of_interrupted(where: str) -> None:
    command = [sys.executable, "-c", TERMINATED, where]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 75, ended.stderr
    assert ended.stderr.endswith("the finetune step continues\n")


def test_it_names_the_step_that_goes_on_and_how_to_follow_it(
    backend: LocalBackend,  # noqa: F811
) -> None:
    asked = Parameters(run_name="run", pvc=PVC)
    assert "no step was running" in run_here._what_goes_on(asked, backend.home)
    backend.submit(spec(until="never"))
    try:
        words = run_here._what_goes_on(asked, backend.home)
        assert "the finetune step continues" in words
        assert "finetune show run" in words and "finetune stop run" in words
    finally:
        backend.stop(PVC, "run", grace_seconds=1)
