"""What several commands of the command line take: home, volume, parameters."""

import os
from pathlib import Path
from typing import Any

import click

from flows.cli.parameter_file import read_parameter_file
from infra.choose_backend import HOME_VARIABLE, home_from_environment
from trainer.contract.errors import RequestError
from trainer.contract.nested_names import with_value
from trainer.contract.parameters import Parameters
from trainer.contract.validation import load_parameters
from trainer.contract.volume import can_be_a_path, shortened


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


def _name_below(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A name that stays below the folder that it is looked for in.

    Raises:
        RequestError: It is empty, leads out of there, or no file system takes it.
    """
    path = Path(value)
    if value and not path.is_absolute() and ".." not in path.parts and can_be_a_path(value):
        return value
    shown = (
        parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
    )
    raise RequestError(
        f"{shown} can't be the name of a folder (got {shortened(value)!r}). "
        "Names are relative, without '..', and have at most 255 bytes."
    )


pvc_option = click.option(
    "--pvc",
    default="finetune-data",
    show_default=True,
    callback=_name_below,
    help="Volume: a folder below --home.",
)


def run_argument(name: str, **attributes: Any) -> Any:
    """An argument that names a run, or another folder of the volume."""
    return click.argument(name, callback=_name_below, **attributes)


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
        given |= read_parameter_file(file)
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise RequestError(f"-p takes NAME=VALUE (got {assignment!r}).")
        given = with_value(given, name, value)
    return given
