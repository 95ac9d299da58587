"""Commands around many runs: compare them, make new ones out of them, be told of them."""

import sys
from pathlib import Path

import click

from flows.cli.options import home_option, pvc_option, run_argument
from flows.cli.runs import overview
from trainer.contract.errors import EXIT_FAILED, RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import RunFolder


@click.command()
@run_argument("one")
@run_argument("other")
@home_option
@pvc_option
def diff(one: str, other: str, home: Path, pvc: str) -> None:
    """Say what differs between two runs: parameters, data by file, versions, losses."""
    from flows.cli.runs.diff import compare

    click.echo(compare(*(overview.known_run(home, pvc, name) for name in (one, other))))


@click.command()
@run_argument("run")
@click.option("--as", "name", help="Name of the new run.  [default: RUN-again]")
@home_option
@pvc_option
def reproduce(run: str, name: str | None, home: Path, pvc: str) -> None:
    """Make a run again from what it recorded, and compare the models bit for bit.

    What is known to be in the way is said first. Exit code 1 when the weights differ.
    """
    from flows.cli.run_here import run_flow
    from flows.cli.runs import reproduce as again

    known = overview.known_run(home, pvc, run)
    if name == run:
        raise RequestError(f"--as is RUN itself (got {run!r}). Take another name.")
    again.refuse_unfinished(known)
    asked = again.recorded_parameters(known, pvc, name or f"{run}-again", again.worked_out(known))
    for missing in again.what_is_missing(known, home, pvc):
        print(f"may differ: {missing}", file=sys.stderr)
    if forked := again.fork_point(known):
        _fork_once(home, pvc, *forked, asked)
    run_flow(asked, home, on_cluster=False)
    same, sentence = again.reproduced(known, RunFolder(home / pvc, asked.run_name))
    click.echo(sentence)
    if not same:
        sys.exit(EXIT_FAILED)


@click.command()
@run_argument("run")
@click.option("--step", type=int, help="Checkpoint to begin from.  [default: the newest]")
@click.option("--as", "name", help="Name of the new run.  [default: RUN-fork]")
@click.option(
    "-p", "--param", "assignments", multiple=True, metavar="NAME=VALUE", help="What is to change."
)
@home_option
@pvc_option
def fork(
    run: str,
    step: int | None,
    name: str | None,
    assignments: tuple[str, ...],
    home: Path,
    pvc: str,
) -> None:
    """Go on from a checkpoint of a run as a new run, with other parameters.

    \b
    Tokens and base model are shared, and the checkpoint takes no space of its own:
        finetune fork RUN --step 500 --as slower -p learn_rate=1e-5
    """
    from flows.cli.run_here import run_flow
    from flows.cli.runs import reproduce as again

    known = overview.known_run(home, pvc, run)
    changed = dict(assignment.partition("=")[::2] for assignment in assignments)
    again.refuse_what_cannot_fork(changed)
    asked = again.recorded_parameters(known, pvc, name or f"{run}-fork", changed)
    _fork_once(home, pvc, run, step, asked)
    run_flow(asked, home, on_cluster=False)


def _fork_once(home: Path, pvc: str, run: str, step: int | None, asked: Parameters) -> None:
    """Make the fork's folder, or find the same one: it is resumed."""
    from flows.cli.run_here import check_request
    from flows.cli.runs import reproduce as again

    record = RunFolder(home / pvc, asked.run_name).record()
    if record is None:
        check_request(asked, home)
        begun = again.fork(home, pvc, run, step, asked)
        print(f"{asked.run_name} resumes from step {begun} of {run}", file=sys.stderr)
    else:
        again.refuse_other_fork(record, run, step, asked.run_name)


@click.command()
@click.option(
    "--tell",
    "blocks",
    multiple=True,
    metavar="TYPE/NAME",
    help="Notification block to tell of failed, crashed, late and finished runs; may be repeated.",
)
def automations(blocks: tuple[str, ...]) -> None:
    """Have the Prefect server tell of runs, and put crashed ones back to work.

    \b
    The server is that of PREFECT_API_URL; the blocks are made in its UI:
        finetune automations --tell slack-webhook/team --tell sendgrid-email/owners
    """
    from flows.cli.automations.notifications import apply

    for name in apply(blocks):
        click.echo(name)


COMMANDS = [diff, reproduce, fork, automations]
