"""Odd names and odd files of parameters are refused in one sentence."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli.main import cli
from flows.cli.parameter_file import read_parameter_file
from tests.flows.fuzz import YAMLS, problem_of
from trainer.contract.errors import RequestError
from trainer.contract.volume import can_be_a_path, path_on_volume

ODD = ["", "..", "../up", "/etc", "a" * 256, "a/" * 2048, "[" * 80_000]
COMMANDS = [
    *(["show"], ["verify"], ["stop"], ["reproduce"], ["fork"], ["rollback"], ["chat"], ["adopt"]),
    *(["ask", "-"], ["diff", "run"]),
]


@pytest.mark.parametrize("name", ODD, ids=lambda name: name[:10])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_of_a_run(tmp_path: Path, command: list[str], name: str) -> None:
    first, *more = command
    done = CliRunner().invoke(cli, [first, name, *more, "--home", str(tmp_path)])
    assert isinstance(done.exception, RequestError)
    [problem] = done.exception.problems
    assert "can't be the name of a folder (got " in problem and len(problem) < 300


@pytest.mark.parametrize("name", ODD, ids=lambda name: name[:10])
def test_of_a_volume(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(cli, ["runs", "--home", str(tmp_path), "--pvc", name])
    assert isinstance(done.exception, RequestError)


def test_of_a_store(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["tokens", "[" * 80_000, "--home", str(tmp_path)])
    assert isinstance(done.exception, RequestError) and len(str(done.exception)) < 300


@pytest.mark.parametrize("path", ["a" * 256, "é" * 128, "a/" * 2048, "a\0b", "\ud800"])
def test_of_a_parameter(tmp_path: Path, path: str) -> None:
    assert not can_be_a_path(path)
    with pytest.raises(RequestError, match=r"^logs is no path \(got ") as refused:
        path_on_volume(tmp_path, "logs", path)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("path", ["a" * 255, "é/中文", "\udcff", "a/b c/\n"])
def test_what_the_file_system_takes_is_a_path(tmp_path: Path, path: str) -> None:
    assert can_be_a_path(path)
    path_on_volume(tmp_path, "logs", path).mkdir(parents=True)


@pytest.mark.parametrize("text", [*YAMLS, "9" * 5000, "lora: " + "[" * 5000])
def test_a_file_of_parameters_is_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    try:
        assert isinstance(read_parameter_file(path), dict)
    except RequestError as refused:
        assert str(refused).startswith(f"--params {path} ") and len(str(refused)) < 1000


@pytest.mark.parametrize(
    ("code", "output", "wrong"),
    [
        (78, "error: run_name is missing", ""),
        (2, "", "exit code 2"),
        (1, "Traceback (most recent call last):\n", "a traceback"),
        (-24, "", "it took more than"),
    ],
)
def test_the_fuzz_tells_what_is_wrong(code: int, output: str, wrong: str) -> None:
    assert problem_of(code, output).startswith(wrong) and bool(problem_of(code, output)) == bool(
        wrong
    )
