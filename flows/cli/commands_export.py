"""`finetune export`: a finished model to a Hugging Face hub, or as a GGUF file."""

import sys
from pathlib import Path

import click

from flows.cli.options import home_option, pvc_option
from flows.cli.runs import overview
from trainer.contract.errors import RequestError


@click.command()
@click.argument("run")
@click.option("--to-hub", metavar="OWNER/NAME", help="Push to this repository of the hub.")
@click.option("--public", is_flag=True, help="A repository that all can read, not a private one.")
@click.option("--revision", default="", metavar="BRANCH", help="Its branch.  [default: main]")
@click.option("--gguf", is_flag=True, help="Write a GGUF file, and compare it with the model.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["f16", "q8_0"]),
    default="f16",
    show_default=True,
    help="Of the GGUF file's weights.",
)
@home_option
@pvc_option
def export(
    run: str,
    to_hub: str | None,
    public: bool,
    revision: str,
    gguf: bool,
    kind: str,
    home: Path,
    pvc: str,
) -> None:
    """Take a run's final model elsewhere.

    \b
    To a Hugging Face hub, as a private repository, with the adapter of a LoRA run, the data
    ledger and the evaluation in its card; HF_TOKEN must be able to write there:
        finetune export RUN --to-hub OWNER/NAME
    As a file for llama.cpp, made by its own converter and held to the model's answers:
        finetune export RUN --gguf --type q8_0
    """
    if not (to_hub or gguf):
        raise RequestError("export needs to know where to: --to-hub OWNER/NAME, or --gguf.")
    known = overview.known_run(home, pvc, run)
    from trainer.export.finished import finished_run
    from trainer.export.gguf import converter, export_gguf
    from trainer.export.hub_push import push, target_of

    command = converter() if gguf else []
    target = target_of(to_hub, public, revision) if to_hub else None
    finished = finished_run((home / pvc).resolve(), known)
    if command:
        click.echo(export_gguf(finished, kind, command, _say))
    if target:
        click.echo(push(finished, target, _say, quiet=not sys.stderr.isatty()))


def _say(line: str) -> None:
    click.echo(line, err=True)


COMMANDS = [export]
