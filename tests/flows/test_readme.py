"""README's commands for one's own text are run as they stand; all others are at least understood.

With a server: test_deployment.py. From an empty cluster to a nightly retraining: test_retrain.py.
Rehearsals and sweeps: test_rehearse.py and test_sweep.py.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from flows.cli.main import cli
from flows.cli.options import given_parameters
from infra.local import service as local_service
from tests import readme
from tests.demo.test_demo import demo
from tests.flows.small_volume import PVC, finetune
from trainer.contract.parameters import Parameters
from trainer.contract.validation import load_parameters


def in_sentences_and_blocks() -> list[str]:
    """Every `finetune ...` of README."""
    parts = readme.text().split("```")
    spans = [span for part in parts[0::2] for span in re.findall(r"`(finetune [^`]+)`", part)]
    blocks = [line for block in parts[1::2] for line in readme.commands(block)]
    lines = [*spans, *(line for line in blocks if re.match(r"finetune [a-z]", line))]
    return sorted({" ".join(line.split()).partition(" > ")[0] for line in lines})


@pytest.mark.parametrize("line", in_sentences_and_blocks())
def test_every_command_is_one_that_the_program_knows(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    _, *words = shlex.split(line)
    if words == ["--help"]:
        return
    with click.Context(cli) as group:
        command = cli.get_command(group, words[0])
        assert command is not None, words[0]
        if len(words) == 1:  # its name is mentioned
            return
        given = command.make_context(words[0], words[1:], parent=group).params
    if "assignments" in given:
        parameters = given_parameters(given["assignments"], None)
        load_parameters(Parameters, {"run_name": "readme", **parameters})


@pytest.fixture(scope="module")
def demo_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` begins with, but of the text 16 tales alone; as `my-text`, too."""
    home = tmp_path_factory.mktemp("demo")
    made = demo(home / PVC)
    assert made.returncode == 0, made.stderr
    tales = sorted((home / PVC / "dataset").rglob("*.txt"))[:16]
    for path in [path for path in (home / PVC / "dataset").rglob("*") if path.is_file()]:
        if path not in tales:
            path.unlink()
    shutil.copytree(home / PVC / "dataset", home / PVC / "my-text")
    return home


def run(home: Path, environment: dict[str, str], line: str) -> str:
    process = finetune(home, environment, *shlex.split(line)[1:])
    out, err = process.communicate(timeout=1000)
    assert process.returncode == 0, line + out + err
    return err + out


@pytest.mark.timeout(2400)
def test_your_own_text_is_trained_on_served_asked_and_made_again(
    demo_home: Path, environment: dict[str, str]
) -> None:
    (activate, train, show), (ask_by_curl,), _ = readme.blocks("Your own text")
    assert activate == ". .venv/bin/activate"
    assert "first is done" in run(demo_home, environment, train)
    assert run(demo_home, environment, show).startswith("first: done, ")
    assert "ask it yourself: curl " in run(demo_home, environment, f"{train} -p run_inference=true")
    try:
        service = local_service.running(demo_home / PVC, "first")
        assert service is not None and service.url in run(demo_home, environment, show)
        words = shlex.split(ask_by_curl.replace("http://127.0.0.1:PORT", service.url))
        told = subprocess.run(
            [*words, "--silent", "--show-error", "--noproxy", "*"],
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(demo_home)},
            check=True,
        ).stdout
        assert '"generated_text": "The sheriff' in told or '"generated_text":"The sheriff' in told
        assert "The sheriff" in run(demo_home, environment, 'finetune ask first "The sheriff"')
        again = run(demo_home, environment, "finetune reproduce first")
        assert "first-again is first bit for bit" in again
        told = run(demo_home, environment, "finetune diff first first-again")
        assert told.endswith("losses:\n  the same\n")
    finally:
        run(demo_home, environment, "finetune stop first")
