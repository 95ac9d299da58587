"""The `finetune` command line. Loads Prefect only when a run is started.

Exit codes: 0 done; 1 it failed; 75 interrupted, run it again to go on; 78 the
request is wrong and nothing was started.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from flows import compare_commands, overview, owner_commands, serving_commands, stores
from flows.cluster_stop import stop_on_cluster
from flows.options import backend_option, home_option, pvc_option, read_parameters, takes_parameters
from flows.parameters import Parameters
from infra.place import BACKEND_VARIABLE
from trainer.errors import EXIT_INTERRUPTED, EXIT_REFUSED, Interrupted, StepError

EXIT_CODES = "Exit codes: 0 done, 1 failed, 75 interrupted (run it again to go on), 78 refused."


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
@click.option("--only-compared", is_flag=True, hidden=True)  # a trial of a sweep
def run(
    assignments: tuple[str, ...],
    file: Path | None,
    home: Path,
    backend: str,
    as_json: bool,
    only_compared: bool,
) -> None:
    """Run the whole pipeline here: fetch, tokenize, finetune, evaluate, deploy.

    Again with the same run_name it goes on, or finishes at once when all is done.
    Ctrl-C stops it after saving.
    """
    os.environ[BACKEND_VARIABLE] = backend
    parameters = read_parameters(assignments, file)
    from flows.running import run_flow

    on_cluster = backend == "kubernetes"
    run_flow(parameters, home, on_cluster=on_cluster, as_json=as_json, only_compared=only_compared)


@cli.command(epilog=EXIT_CODES)
@takes_parameters
@home_option
@backend_option(
    "Plan for this machine's CPU, or for the GPUs that the parameters name.", default="kubernetes"
)
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

    parameters = read_parameters(assignments, file, run_name="plan")
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
    from flows.render import UNKNOWN_STORE, WITH_DEPLOY, render_request

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
    from flows.running import run_tokenize

    print(run_tokenize(parameters, home, paranoid=paranoid))


@cli.command()
@click.argument("store")
@click.option("--context", "number", type=int, help="Show this context as text, from 0.")
@home_option
@pvc_option
def tokens(store: str, number: int | None, home: Path, pvc: str) -> None:
    """Show what is in a STORE of tokens, and where every token went.

    STORE is a folder, or a name below {home}/{pvc}/tokens.
    """
    click.echo(stores.show(home / pvc, store, number))


@cli.command()
@click.option("--delete", is_flag=True, help="Delete it; without this, only say what it is.")
@home_option
@pvc_option
def prune(delete: bool, home: Path, pvc: str) -> None:
    """Free space: token stores that no run needs, and cached pieces."""
    click.echo(stores.prune(home / pvc, delete))


@cli.command()
def parameters() -> None:
    """List every parameter with its default."""
    for name, field in Parameters.model_fields.items():
        default = "required" if field.is_required() else f"[{_as_typed(field.default)}]"
        click.echo(f"{name:<20} {default:<28} {field.description}")


def _as_typed(value: Any) -> str:
    """A default as `-p` takes it; what a topic's are, its description says."""
    if dataclasses.is_dataclass(value) or value == {}:
        return "{...}"
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@cli.command()
@home_option
@pvc_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def runs(home: Path, pvc: str, as_json: bool) -> None:
    """List the runs on a volume."""
    rows = overview.list_runs(home, pvc)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        click.echo(overview.runs_table(rows))


@cli.command()
@click.argument("run_name")
@home_option
@pvc_option
@click.option("--open", "opened", is_flag=True, help="Make the report anew, and open it.")
def show(run_name: str, home: Path, pvc: str, opened: bool) -> None:
    """Show what a run was asked, how far it is, what it made, and where the time went.

    The report is RUN/report.html on the volume: one file, also readable without this program.
    """
    if opened:
        from trainer.report.page import write_page

        page = write_page(overview.known_run(home, pvc, run_name))
        click.echo(page)
        click.launch(page.resolve().as_uri())
        return
    click.echo(overview.show_run(home, pvc, run_name))


@cli.command()
@click.argument("run_name")
@home_option
@pvc_option
@click.option(
    "--resume", is_flag=True, help="Prove instead that going on from a checkpoint is exact."
)
def verify(run_name: str, home: Path, pvc: str, resume: bool) -> None:
    """Read every checkpoint, the final model and what serves of it, and compare their digests.

    --resume trains again from the last checkpoint but one to the last, apart from the run,
    and compares weights, optimizer and losses bit for bit; it takes that training's time and
    the space of two checkpoints.

    Exit code 1 when something is damaged, or came out otherwise.
    """
    if resume:
        from flows.verifying import verify_resume

        sys.exit(verify_resume(home, pvc, run_name))
    if not overview.verify_run(home, pvc, run_name, click.echo):
        sys.exit(1)


@cli.command()
@click.argument("run_name")
@home_option
@pvc_option
@backend_option("Where it runs: on this machine, or on the cluster that your kubeconfig names.")
@click.option("--namespace", default="", help="On Kubernetes: if not your kubeconfig's.")
def stop(run_name: str, home: Path, pvc: str, backend: str, namespace: str) -> None:
    """Stop what a run has under way: its step, after saving, and its service.

    On this machine the service has 30 seconds for the answers that are under way.
    """
    if backend == "kubernetes":
        stopped = stop_on_cluster(pvc, run_name, namespace)
    else:
        stopped = overview.stop_run(home, pvc, run_name)
    click.echo(f"stopped: {', '.join(stopped)}" if stopped else f"{run_name}: nothing was running")


_MORE = (*compare_commands.COMMANDS, *owner_commands.COMMANDS, *serving_commands.COMMANDS)
for command in _MORE:
    cli.add_command(command)


def main() -> None:
    """Run the command line; errors become one message and an exit code."""
    try:
        cli(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        print("interrupted: run it again to go on", file=sys.stderr)
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
