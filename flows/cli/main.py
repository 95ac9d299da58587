"""The `finetune` command line. Loads Prefect only when a run is started.

Exit codes: 0 done; 1 it failed; 75 interrupted, run it again to resume; 78 the
request is wrong and nothing was started.
"""

import dataclasses
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import click

from flows.cli import (
    commands_again,
    commands_export,
    commands_owner,
    commands_runs,
    commands_serving,
    commands_space,
    commands_tokens,
    parameter_listing,
)
from flows.cli.cluster_stop import stop_on_cluster
from flows.cli.doctor import doctor
from flows.cli.options import (
    backend_option,
    home_option,
    pvc_option,
    read_parameters,
    run_argument,
    takes_parameters,
)
from flows.cli.runs import overview
from flows.cli.runs.table import runs_table
from infra.choose_backend import BACKEND_VARIABLE
from trainer.contract.errors import EXIT_INTERRUPTED, EXIT_REFUSED, Interrupted, StepError
from trainer.contract.volume import path_on_volume

EXIT_CODES = "Exit codes: 0 done, 1 failed, 75 interrupted (run it again to resume), 78 refused."


@click.group(epilog=EXIT_CODES, context_settings={"max_content_width": 100})
@click.version_option(package_name="finetune-pipeline")
def cli() -> None:
    """Finetune language models on your own text, from a folder to a served model.

    \b
    Try it on this machine:  finetune run -p run_name=first -p dataset=dataset -p model=...
    The text lies in {home}/finetune-data/dataset, models in {home}/finetune-data/models.
    """


@cli.command(epilog=EXIT_CODES)
@takes_parameters
@home_option
@backend_option("Processes of this machine, or Jobs of the cluster that your kubeconfig names.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--paranoid", is_flag=True, help="Read every file again, whatever its time says.")
@click.option("--only-compared", is_flag=True, hidden=True)  # a trial of a sweep
def run(
    assignments: tuple[str, ...],
    file: Path | None,
    home: Path,
    backend: str,
    as_json: bool,
    paranoid: bool,
    only_compared: bool,
) -> None:
    """Run the whole pipeline here: fetch, tokenize, finetune, evaluate, deploy.

    Again with the same run_name it resumes, or finishes at once when all is done.
    Ctrl-C stops it after saving.
    """
    os.environ[BACKEND_VARIABLE] = backend
    parameters = read_parameters(assignments, file)
    from flows.cli.run_here import run_flow

    on_cluster = backend == "kubernetes"
    run_flow(
        parameters,
        home,
        on_cluster=on_cluster,
        as_json=as_json,
        only_compared=only_compared,
        paranoid=paranoid,
    )


@cli.command(epilog=EXIT_CODES)
@takes_parameters
@home_option
@backend_option("Plan for this machine, or for the GPUs that the parameters name.")
@click.option("--contexts", type=click.IntRange(1), help="Plan for so many contexts of text.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    assignments: tuple[str, ...],
    file: Path | None,
    home: Path,
    backend: str,
    contexts: int | None,
    as_json: bool,
) -> None:
    """Say what a run will do, need, take and cost; nothing is touched.

    Exit code 78 when it would be refused.
    """
    from flows import plan_request

    parameters = read_parameters(assignments, file, run_name=plan_request.PLANNED_NAME)
    made = plan_request.plan_request(
        parameters, home, num_contexts=contexts, on_cluster=backend == "kubernetes"
    )
    click.echo(json.dumps(made.to_dict(), indent=1) if as_json else plan_request.as_table(made))
    if made.problems:
        sys.exit(EXIT_REFUSED)


@cli.command(epilog=EXIT_CODES)
@takes_parameters
@home_option
@click.option(
    "--step",
    "steps",
    multiple=True,
    type=click.Choice(["fetch", "tokenize", "finetune", "evaluate", "deploy"]),
    help="Only this step; may be repeated.",
)
@click.option("--tokens", help="Store of tokens, as the tokenize step printed it: tokens/...")
def render(
    assignments: tuple[str, ...],
    file: Path | None,
    home: Path,
    steps: tuple[str, ...],
    tokens: str | None,
) -> None:
    """Print the Kubernetes objects of each step as YAML; nothing is touched.

    \b
    One step after the other, each once the one before it is Complete:
        finetune render -p ... --step fetch | kubectl apply -f -
    """
    from flows.cli.cluster_yaml import UNKNOWN_STORE, WITH_DEPLOY, render_request

    parameters = read_parameters(assignments, file)
    asked = steps or WITH_DEPLOY
    click.echo(render_request(parameters, home, asked, tokens or UNKNOWN_STORE), nl=False)
    if not tokens and {"finetune", "evaluate"} & set(asked):
        print(
            f"{UNKNOWN_STORE} stands for what tokenize makes: give it with --tokens for the steps "
            "after it",
            file=sys.stderr,
        )


@cli.command(epilog=EXIT_CODES)
@takes_parameters
@home_option
@click.option("--text-field", help="As -p text_field=...")
@click.option("--paranoid", is_flag=True, help="Read every file again, whatever its time says.")
def tokenize(
    assignments: tuple[str, ...],
    file: Path | None,
    home: Path,
    text_field: str | None,
    paranoid: bool,
) -> None:
    """Make the store of tokenized contexts alone; its path is the last line printed."""
    if text_field is not None:
        assignments = (*assignments, f"text_field={text_field}")
    parameters = read_parameters(assignments, file, run_name="tokenize")
    from flows.cli.run_here import run_tokenize

    print(run_tokenize(parameters, home, paranoid=paranoid))


@cli.command()
@click.option("--yaml", "as_yaml", is_flag=True, help="Print a commented file for --params.")
def parameters(as_yaml: bool) -> None:
    """List every parameter with its default.

    \b
    A file to begin with, in which what is to change is uncommented:
        finetune parameters --yaml > request.yaml && finetune run --params request.yaml
    """
    click.echo(parameter_listing.as_yaml() if as_yaml else parameter_listing.as_text())


@cli.command()
@home_option
@pvc_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def runs(home: Path, pvc: str, as_json: bool) -> None:
    """List the runs on a volume: losses are on held-out text, before and after.

    Where the terminal is narrow, columns are left out; --json has them all.
    """
    rows = overview.list_runs(home, pvc)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        # What reads it from a pipe gets all of it.
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        click.echo(runs_table(rows, columns))


@cli.command()
@run_argument("run_name")
@home_option
@pvc_option
@click.option("--open", "opened", is_flag=True, help="Make the report anew, and open it.")
def show(run_name: str, home: Path, pvc: str, opened: bool) -> None:
    """Show what a run was asked, how far it is, what it made, and where the time went.

    The report is RUN/report.html on the volume: one file, also readable without this program.
    """
    if opened:
        from trainer.report.page import write_page, write_page_beside

        run = overview.known_run(home, pvc, run_name)
        try:
            page = write_page(run)
        except OSError:  # a volume that takes no writes
            page = write_page_beside(run, Path(tempfile.mkdtemp(prefix="finetune-report-")))
        click.echo(page)
        click.launch(page.resolve().as_uri())
        return
    click.echo(overview.show_run(home, pvc, run_name))


@cli.command()
@run_argument("run_name")
@home_option
@pvc_option
@click.option(
    "--resume", is_flag=True, help="Prove instead that going on from a checkpoint is exact."
)
@click.option("--certificate", is_flag=True, help="Compute what `finetune forget` certified again.")
@click.option("--from-start", is_flag=True, help="Also train it from its start, and compare.")
def verify(
    run_name: str, home: Path, pvc: str, resume: bool, certificate: bool, from_start: bool
) -> None:
    """Compare digests: of checkpoints, the final model, what serves of it, and the tokens.

    RUN_NAME may also name a token store: tokens/NAME.

    --resume trains again from the last checkpoint but one to the last, apart from the run,
    and compares weights, optimizer and losses bit for bit; it takes that training's time and
    the space of two checkpoints.

    --certificate computes every field of RUN_NAME/certificate.json again; --from-start trains the
    whole run once more as well.

    Exit code 1 when something is damaged, or came out otherwise.
    """
    if resume:
        from flows.cli.runs.verify import verify_resume

        sys.exit(verify_resume(home, pvc, run_name))
    if certificate or from_start:
        from flows.cli.runs.verify import verify_certificate

        sys.exit(verify_certificate(home, pvc, run_name, from_start=from_start))
    if run_name.startswith("tokens/"):
        path = path_on_volume(home / pvc, "RUN_NAME", run_name)
        sys.exit(0 if overview.verify_store(path, run_name, click.echo) else 1)
    if not overview.verify_run(home, pvc, run_name, click.echo):
        sys.exit(1)


@cli.command()
@run_argument("run_name")
@home_option
@pvc_option
@backend_option("Where it runs: on this machine, or on the cluster that your kubeconfig names.")
@click.option("--namespace", default="", help="On Kubernetes: if not your kubeconfig's.")
def stop(run_name: str, home: Path, pvc: str, backend: str, namespace: str) -> None:
    """Stop what a run has running: its step, after saving, and its service.

    On this machine the service has 30 seconds for the answers that are running.
    """
    if backend == "kubernetes":
        stopped = stop_on_cluster(pvc, run_name, namespace)
    else:
        stopped = overview.stop_run(home, pvc, run_name)
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else f"{run_name}: nothing was running")


_GROUPS = (
    commands_again,
    commands_export,
    commands_owner,
    commands_runs,
    commands_serving,
    commands_space,
    commands_tokens,
)
for command in (doctor, *(command for group in _GROUPS for command in group.COMMANDS)):
    cli.add_command(command)


def main() -> None:
    """Run the command line; errors become one message and an exit code."""
    try:
        cli(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        print("interrupted: run it again to resume", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_REFUSED if isinstance(error, click.UsageError) else error.exit_code)
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except StepError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `finetune runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
