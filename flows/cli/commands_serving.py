"""Commands for a model that is served: ask it, talk with it, put the one before back."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from flows.cli.options import (
    backend_option,
    home_option,
    pvc_option,
    read_parameters,
    run_argument,
    takes_parameters,
)
from flows.cli.runs.ask import Conversation, served
from infra.choose_backend import BACKEND_VARIABLE
from infra.local import service_client

step_option = click.option("--step", type=int, help="The checkpoint of this step, not the service.")
tokens_option = click.option(
    "--max-tokens", default=100, show_default=True, help="Most tokens of an answer."
)


@click.command()
@run_argument("run_name")
@click.argument("prompt")
@tokens_option
@step_option
@home_option
@pvc_option
def ask(
    run_name: str, prompt: str, max_tokens: int, step: int | None, home: Path, pvc: str
) -> None:
    """Ask the service that a run left; the answer appears as it is made.

    With --step it is a checkpoint's answer, which takes as long as loading it.
    """
    with served(home, pvc, run_name, step) as endpoint:
        click.echo(prompt, nl=False)
        for piece in service_client.stream(endpoint, prompt, max_tokens=max_tokens):
            click.echo(piece, nl=False)
        click.echo()


@click.command()
@run_argument("run_name")
@tokens_option
@step_option
@home_option
@pvc_option
def chat(run_name: str, max_tokens: int, step: int | None, home: Path, pvc: str) -> None:
    """Talk with the service that a run left; an empty line ends it.

    A model without a chat template continues with the text that both of you write.
    """
    with served(home, pvc, run_name, step) as endpoint:
        conversation = Conversation(endpoint, max_tokens)
        lines = sys.stdin
        while True:
            click.echo("> ", nl=False, err=True)
            line = lines.readline().rstrip("\n")
            if not line:
                return
            for piece in conversation.say(line):
                click.echo(piece, nl=False)
            click.echo()


@click.command()
@run_argument("name", metavar="RUN")
@takes_parameters
@home_option
@backend_option("Where it is served.")
def rollback(
    name: str, assignments: tuple[str, ...], file: Path | None, home: Path, backend: str
) -> None:
    """Serve the model that served before the one that serves now.

    It takes over once it has passed the same check; until then the one that serves continues.
    """
    os.environ[BACKEND_VARIABLE] = backend
    parameters = read_parameters(assignments, file, run_name=name)
    say: Any = click.echo
    if backend == "local":
        from tasks.local_deployment import rollback_here

        service = rollback_here((home / parameters.pvc).resolve(), name, parameters.logs)
        say(f"{name}: revision {service.revision} serves {service.model} at {service.url}")
        return
    from flows.cli.cluster_rollback import rollback_on_cluster

    say(f"{name}: {rollback_on_cluster(parameters, say)}")


COMMANDS = [ask, chat, rollback]
