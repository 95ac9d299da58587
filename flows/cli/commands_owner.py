"""Commands of the `finetune` command line around runs: what the owner of a pipeline does."""

import os
from pathlib import Path
from typing import Any

import click

from flows.cli.options import (
    backend_option,
    given_parameters,
    home_option,
    pvc_option,
    read_parameters,
    run_argument,
    takes_parameters,
)
from infra.choose_backend import BACKEND_VARIABLE
from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json


@click.command("import-argo")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def import_argo(file: Path) -> None:
    """Print the request of an Argo parameter file or Workflow as parameters for --params.

    \b
    FILE is what `argo submit --parameter-file` took, or `argo get NAME -o yaml` printed:
        finetune import-argo FILE > request.yaml && finetune run --params request.yaml
    """
    from flows.cli.argo.request import import_argo as read_argo

    click.echo(read_argo(file.read_text(encoding="utf-8"), file.name).to_yaml(), nl=False)


@click.command()
@run_argument("run")
@click.option("--as", "name", help="Name of the run here.  [default: RUN]")
@home_option
@pvc_option
def adopt(run: str, name: str | None, home: Path, pvc: str) -> None:
    """Make a run of what the reference's workflow left finished, so that it can be served.

    \b
    RUN is a name below finetunes/results-..., as `finetune runs` lists it:
        finetune adopt RUN && finetune run -p run_name=RUN -p inference_only=true
    """
    from flows.cli.argo import claim as reference_claim
    from trainer.contract.parameters import Parameters
    from trainer.contract.validation import load_parameters

    named = load_parameters(Parameters, {"run_name": name or run, "pvc": pvc}).run_name
    reference_claim.adopt(home / pvc, run, named)


@click.command()
@takes_parameters
@home_option
@backend_option("Where the run is to be; with kubernetes the cluster is asked too.")
@click.option("--checks-only", is_flag=True, help="Leave the run in small out.")
def rehearse(
    assignments: tuple[str, ...], file: Path | None, home: Path, backend: str, checks_only: bool
) -> None:
    """Find out what would go wrong, and run every step in small on this CPU.

    About two minutes. Asks for no GPU and leaves nothing behind. For a cluster a folder
    {home}/{pvc} is taken for a copy of the claim; without one, what is on the claim is left
    out. Exit code 78 when the run would be refused.
    """
    from flows.cli.rehearse import checks as rehearsal
    from flows.cli.rehearse import small_run as rehearse_small

    parameters = read_parameters(assignments, file)
    on_cluster = backend == "kubernetes"
    problems = rehearsal.problems_of(parameters, home, on_cluster=on_cluster, say=click.echo)
    if problems:
        raise RequestError(*problems)
    if checks_only:
        return
    if on_cluster and not rehearsal.has_volume(parameters, home):
        rehearse_small.rehearse_run_without_volume(parameters, home, click.echo)
    else:
        rehearse_small.rehearse_run(parameters, home, click.echo)


@click.command("notify-data")
@click.argument("dataset")
@pvc_option
def notify_data(dataset: str, pvc: str) -> None:
    """Tell the Prefect server that DATASET changed, so that retrain/nightly starts now."""
    from flows.cli.automations import notify_data as notify

    event = notify.notify_data(dataset, pvc)
    click.echo(f"{notify.EVENT}: {dataset} (event {event})")


@click.command()
@takes_parameters
@home_option
@click.option(
    "--over",
    multiple=True,
    metavar="NAME=VALUES",
    help="What varies: learn_rate=1e-5,1e-4 or =1e-6..1e-3 or =...:log, gradients=1..8 in whole "
    "numbers; may be repeated.",
)
@click.option("--method", type=click.Choice(["grid", "random"]), default="grid", show_default=True)
@click.option("--trials", default=8, show_default=True, help="How many to draw at random.")
@click.option("--parallel", default=1, show_default=True, help="Runs at a time, at most.")
@click.option(
    "--halving",
    default=1,
    show_default=True,
    help="After each round continue with one in so many, trained so many times longer; 1: don't.",
)
@backend_option()
def sweep(
    assignments: tuple[str, ...],
    file: Path | None,
    home: Path,
    over: tuple[str, ...],
    backend: str,
    **options: Any,
) -> None:
    """Run many trials with other values, and compare them by validation loss.

    Again with the same request it continues. The table and a picture lie in
    {home}/{pvc}/sweeps/{run_name}.
    """
    os.environ[BACKEND_VARIABLE] = backend
    given = given_parameters(assignments, file) | options
    given["over"] = dict(map(values_of, over))
    from flows.cli.run_here import prefect_api
    from flows.sweep_request import SweepParameters, asked_trials
    from trainer.contract.validation import load_parameters

    asked_trials(load_parameters(SweepParameters, given))  # refused before a server is started
    with prefect_api():
        from flows.cli.terminal import PlainWatcher
        from flows.sweep import sweep as run_sweep
        from tasks.run_step import watch_with

        watch_with(PlainWatcher())
        rows = run_sweep(**given)
    for row in rows:
        click.echo("  ".join(f"{name}={value}" for name, value in row.items()))


def values_of(assignment: str) -> tuple[str, Any]:
    """Name and values of `NAME=1,2,3` or `NAME=MIN..MAX` or `NAME=MIN..MAX:log`."""
    name, equals, text = assignment.partition("=")
    bounds, _, scale = text.partition(":")
    low, between, high = bounds.partition("..")
    if not (equals and text) or scale not in ("", "log"):
        raise RequestError(f"--over takes NAME=VALUES (got {assignment!r}).")
    if between:
        return name, {"min": _value(low), "max": _value(high), "log": scale == "log"}
    return name, [_value(part) for part in text.split(",")]


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


COMMANDS = [import_argo, adopt, rehearse, notify_data, sweep]
