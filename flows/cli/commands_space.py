"""Commands that free space: remove a run, and what no run needs."""

import sys
from pathlib import Path

import click

from flows.cli.options import home_option, pvc_option
from flows.cli.runs import overview, space
from trainer.contract.errors import RequestError
from trainer.contract.topics import RetentionConfig

_KEEP = RetentionConfig()


@click.command("rm")
@click.argument("run_name")
@click.option("--yes", is_flag=True, help="Remove it without asking.")
@home_option
@pvc_option
def remove(run_name: str, yes: bool, home: Path, pvc: str) -> None:
    """Remove a run: its model, checkpoints, records, logs and events.

    Shows what goes and how much that frees, and asks. A run that runs, serves, or that another
    run or a retraining needs is refused, with the name of what needs it. Its token store goes by
    `finetune prune`, once no other run names it.
    """
    volume = home / pvc
    for ended in space.end_removals(volume):
        click.echo(ended)
        if ended.startswith(f"{run_name} "):
            return
    overview.known_run(home, pvc, run_name)
    space.refuse_needed(volume, run_name)
    for line in space.contents(volume, run_name):
        click.echo(line)
    if not yes:
        if not sys.stdin.isatty():
            raise RequestError("Nothing was removed: there is no terminal to ask on. Give --yes.")
        if not click.confirm(f"Remove {run_name} for good?"):
            click.echo("Nothing was removed.")
            return
    click.echo(space.remove(volume, run_name))


@click.command()
@click.option("--delete", is_flag=True, help="Delete it; without this, only say what it is.")
@click.option("--runs", is_flag=True, help="Also old runs of retrainings, and logs without a run.")
@click.option(
    "--keep-finals",
    type=click.IntRange(1),
    default=_KEEP.keep_finals,
    show_default=True,
    help="With --runs: of each retraining, the newest runs that stay.",
)
@click.option(
    "--keep-checkpoints-of",
    type=click.IntRange(0),
    default=_KEEP.keep_checkpoints_of,
    show_default=True,
    help="With --runs: of those, the newest that keep their checkpoints.",
)
@home_option
@pvc_option
def prune(
    delete: bool, runs: bool, keep_finals: int, keep_checkpoints_of: int, home: Path, pvc: str
) -> None:
    """Free space: token stores that no run needs, cached pieces, and with --runs old runs.

    Of the runs, only those that `retrain` made go, by the rule of its parameter `retention`:
    never one that runs, serves, or that another run or a rollback needs. Others: finetune rm.
    """
    keep = RetentionConfig(keep_finals=keep_finals, keep_checkpoints_of=keep_checkpoints_of)
    click.echo(space.prune(home / pvc, delete=delete, keep=keep if runs else None))


COMMANDS = [remove, prune]
