"""A finished run on a volume that takes no writes: it can be read; and its files have one mode."""

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from flows.cli.main import cli
from tests.flows.small_volume import PVC, make_volume
from tests.training.forking import log_of, run_step
from tests.training.volume import make_config
from trainer.contract.errors import RequestError
from trainer.contract.run_folder import RunFolder
from trainer.contract.service_history import append
from trainer.contract.step_configs import TokenizeConfig
from trainer.serving.deploy.kept_models import keep
from trainer.tokens import step as tokenize


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with two finished runs, one of them with adapters and a kept model."""
    volume = make_volume(tmp_path_factory.mktemp("home"))
    before = os.umask(0o022)
    try:
        usual = {"dataset": "dataset", "model": "models/tiny", "context": 64}
        store = tokenize.run(TokenizeConfig(volume=str(volume), **usual)).result["store"]
        (volume / "tokens/tiny").symlink_to(Path(store).name)
        for name, changes in {"one": {}, "two": {"lora": {"rank": 2}, "processes": 2}}.items():
            config: dict[str, Any] = make_config(volume, run_name=name, save_steps=4, **changes)
            config |= {"tokens": store, "epochs": 1}
            config["request"] = {"dataset": "dataset", "model": "models/tiny"}
            assert run_step("finetune", config) == 0, log_of(config)
        run = RunFolder(volume, "one")
        keep(run, run.final)
        append(run, "stopped", revision=1)
    finally:
        os.umask(before)
    return volume


def modes(folder: Path, *, of_files: bool) -> dict[str, str]:
    """The modes of all files, or folders, below."""
    paths = [path for path in folder.rglob("*") if path.is_file() == of_files]
    assert paths
    return {str(p.relative_to(folder)): oct(stat.S_IMODE(p.stat().st_mode)) for p in paths}


@pytest.mark.parametrize("place", ["one", "two", "logs"])
def test_all_files_of_a_run_have_one_mode(finished: Path, place: str) -> None:
    files = modes(finished / place, of_files=True)
    assert set(files.values()) == {"0o644"}, files
    assert set(modes(finished / place, of_files=False).values()) == {"0o755"}
    if place == "one":
        assert {"final/model.safetensors", "report.html", "metrics.jsonl"} <= set(files)
        assert any(name.startswith("served/") for name in files)


@pytest.fixture
def read_only(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """The home of the same volume, mounted read-only."""
    place = tmp_path / PVC
    place.mkdir()
    mounts = (["mount", "--bind", finished, place], ["mount", "-o", "remount,ro,bind", place])
    if any(subprocess.run(command, capture_output=True).returncode for command in mounts):
        pytest.skip("needs the right to mount a file system")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("runs", "two"),
        ("runs --json", '"two"'),
        ("show one", "final"),
        ("verify one", "final: good"),
        ("verify tokens/tiny", "tokens/tiny: good"),
        ("tokens tiny", "contexts of 64 ids"),
        ("tokens tiny --context 0", "context 0 of"),
        ("diff one two", "training differs from step 1 on"),
        ("plan -p run_name=x -p model=models/tiny -p context=64", "disk"),
        ("prune", "would be freed"),
        ("prune --runs", "would be freed"),
        ("render -p run_name=x -p model=models/tiny -p context=64", "kind: Job"),
    ],
)
def test_commands_that_only_read_work(read_only: Path, command: str, shown: str) -> None:
    result = CliRunner().invoke(cli, [*command.split(), "--home", str(read_only)])
    assert result.exit_code == 0, (result.output, result.exception)
    assert shown in result.output


def test_the_report_is_made_elsewhere(
    read_only: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(click, "launch", opened.append)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = CliRunner().invoke(cli, ["show", "one", "--open", "--home", str(read_only)])
    assert result.exit_code == 0, result.exception
    assert opened[0].startswith("file://")
    assert "<html" in Path(result.output.strip()).read_text()


def test_a_run_is_not_removed_there_and_that_is_said(read_only: Path) -> None:
    result = CliRunner().invoke(cli, ["rm", "two", "--yes", "--home", str(read_only)])
    assert isinstance(result.exception, RequestError)
    assert "can't be written" in str(result.exception)
    assert "Read-only file system" in str(result.exception)
