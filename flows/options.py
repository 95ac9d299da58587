"""What several commands of the command line take: home, volume, parameters."""

import os
from pathlib import Path
from typing import Any

import click
import yaml

from flows.parameters import Parameters
from infra.place import HOME_VARIABLE, home_from_environment
from trainer.errors import RequestError
from trainer.parsing import load_parameters


def _home(context: click.Context, option: click.Parameter, value: Path | None) -> Path:
    if value is not None:
        os.environ[HOME_VARIABLE] = str(value.resolve())
    return home_from_environment()


home_option = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    callback=_home,
    help="Folder that holds the volumes.  [default: $FINETUNE_HOME, else this folder]",
)
pvc_option = click.option(
    "--pvc", default="finetune-data", show_default=True, help="Volume: a folder below --home."
)


def backend_option(help: str | None = None, *, default: str = "local") -> Any:
    """Where a command's steps run, or where it asks; `help` says it in the command's words."""
    return click.option(
        "--backend",
        type=click.Choice(["local", "kubernetes"]),
        default=default,
        show_default=True,
        help=help,
    )


parameter_options = [
    click.option(
        "-p",
        "--param",
        "assignments",
        multiple=True,
        metavar="NAME=VALUE",
        help="A parameter; may be repeated. `finetune parameters` lists them.",
    ),
    click.option(
        "--params",
        "file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML or JSON file of parameters; -p goes before it.",
    ),
]


def takes_parameters(command: Any) -> Any:
    for option in reversed(parameter_options):
        command = option(command)
    return command


def read_parameters(assignments: tuple[str, ...], file: Path | None, **known: str) -> Parameters:
    """The parameters of `-p NAME=VALUE` over those of a file.

    Raises:
        RequestError: Naming every problem there is.
    """
    return load_parameters(Parameters, known | given_parameters(assignments, file))


def given_parameters(assignments: tuple[str, ...], file: Path | None) -> dict[str, Any]:
    """What was given, as it was typed."""
    given: dict[str, Any] = {}
    if file is not None:
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RequestError(f"--params {file} is not YAML or JSON ({error}).") from error
        if not isinstance(found, dict):
            raise RequestError(f"--params {file} holds no names and values (got {found!r}).")
        given |= found
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise RequestError(f"-p takes NAME=VALUE (got {assignment!r}).")
        given[name] = value
    return given
