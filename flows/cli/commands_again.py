"""Commands that repeat a run with one thing changed: forget, replay, blame."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.cli.options import backend_option, home_option, pvc_option
from flows.cli.runs import overview

if TYPE_CHECKING:
    from flows.cli.runs.in_jobs import Jobs


def _where(command: Any) -> Any:
    """Options of a command that is done where the volume is."""
    command = click.option(
        "--params",
        "file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="With kubernetes: a file with its parameters, as image, GPU and region.",
    )(command)
    return backend_option("In processes of this machine, or in Jobs of the cluster.")(command)


def _jobs(pvc: str, run: str, file: Path | None) -> "Jobs":
    from flows.cli.runs.in_jobs import Jobs

    return Jobs(pvc, run, file)


@click.command()
@click.argument("run")
@click.option("--document", "documents", multiple=True, metavar="PATTERN", help="Path, PATH#N.")
@click.option("--sha256", multiple=True, metavar="HEX", help="Of a document's text or a file.")
@click.option("--containing", multiple=True, metavar="TEXT", help="Documents that contain TEXT.")
@click.option("--as", "name", required=True, help="Name of the new run.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--purge", is_flag=True, help="At the end remove the text from the volume.")
@_where
@home_option
@pvc_option
def forget(
    run: str,
    documents: tuple[str, ...],
    sha256: tuple[str, ...],
    containing: tuple[str, ...],
    name: str,
    yes: bool,
    purge: bool,
    backend: str,
    file: Path | None,
    home: Path,
    pvc: str,
) -> None:
    """Make a run again as if some documents had never been in its data, and certify that.

    \b
    It begins at the newest checkpoint before the first step that trained on them:
        finetune forget RUN --document 'books/secret.txt' --as RUN-without

    The plan is shown first. Copies under other names are left out, too. Later nights of
    `retrain` leave the documents out as well.
    """
    from flows.cli.runs import forgetting

    asked = {
        "documents": [*documents],
        "sha256": [digest.lower() for digest in sha256],
        "containing": [*containing],
    }
    if backend == "kubernetes":
        forgetting.forget_on_cluster(_jobs(pvc, run, file), asked, name, yes=yes, purge=purge)
        return
    known = overview.known_run(home, pvc, run)
    forgetting.forget(home, pvc, known, asked, name, yes=yes, purge=purge)


@click.command()
@click.argument("run")
@click.option("--from", "first", type=click.IntRange(1), required=True, help="First step.")
@click.option("--to", "last", type=click.IntRange(1), required=True, help="Last step.")
@click.option(
    "-p", "--param", "assignments", multiple=True, metavar="NAME=VALUE", help="What if it was so?"
)
@_where
@home_option
@pvc_option
def replay(
    run: str,
    first: int,
    last: int,
    assignments: tuple[str, ...],
    backend: str,
    file: Path | None,
    home: Path,
    pvc: str,
) -> None:
    """Run steps of a run again, bit for bit, and show what happened in them.

    \b
        finetune replay RUN --from 14200 --to 14210
        finetune replay RUN --from 14200 --to 14210 -p learn_rate=1e-5

    It begins at the newest checkpoint before them, changes nothing of the run, and writes
    RUN/replays/steps-FROM-TO.html: the loss of each context with its documents and text, and the
    norms of gradient and update by layer. With -p the same steps are also trained with other
    parameters, and shown beside them. Exit code 1 when other numbers come out than were
    recorded; the step is named.
    """
    from flows.cli.runs.what_if import replay_on_cluster, replay_steps

    if backend == "kubernetes":
        sys.exit(replay_on_cluster(pvc, _jobs(pvc, run, file), (first, last), assignments))
    known = overview.known_run(home, pvc, run)
    sys.exit(replay_steps(home, pvc, known, (first, last), assignments))


@click.command()
@click.argument("run")
@click.option("--held-out", is_flag=True, help="About the loss on held-out text.")
@click.option("--prompt", metavar="TEXT", help="With --answer: what comes before it.")
@click.option("--answer", metavar="TEXT", help="About how likely this answer is.")
@click.option("--context", type=click.IntRange(0), help="About the loss of this context, from 0.")
@click.option(
    "--what-made-it",
    "direction",
    type=click.Choice(["worse", "better"]),
    help="Documents that raised or lowered its loss.  [default: worse; of an answer better]",
)
@click.option("--max-hours", type=click.FloatRange(0, min_open=True), help="Start no replay later.")
@click.option("--max-replays", type=click.IntRange(1), default=10, show_default=True)
@click.option("--at-a-time", type=click.IntRange(1), help="Replays.  [default: as fit the machine]")
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Of what is drawn."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_where
@home_option
@pvc_option
def blame(
    run: str,
    held_out: bool,
    prompt: str | None,
    answer: str | None,
    context: int | None,
    direction: str | None,
    max_hours: float | None,
    max_replays: int,
    at_a_time: int | None,
    seed: int,
    as_json: bool,
    backend: str,
    file: Path | None,
    home: Path,
    pvc: str,
) -> None:
    """Show which documents made a run's model better or worse, and prove it by replays.

    \b
        finetune blame RUN --held-out
        finetune blame RUN --prompt 'The capital of Peru is' --answer ' Paris'

    All documents are ranked by influence. The first of them are then left out of replays, half of
    them at a time, until few explain the difference. The run is only read; the answer is written to
    RUN/blame/. An interrupted command resumes.
    """
    from flows.cli.runs import blaming

    jobs = _jobs(pvc, run, file) if backend == "kubernetes" else None
    if jobs is None:
        overview.known_run(home, pvc, run)
    question = blaming.question_of(
        held_out=held_out,
        prompt=prompt,
        answer=answer,
        context=context,
        direction=direction or "",
        max_hours=max_hours or 0.0,
        max_replays=max_replays,
        at_a_time=at_a_time or 0,
        seed=seed,
    )
    blaming.blame(home, pvc, run, question, jobs=jobs, as_json=as_json)


COMMANDS = [forget, replay, blame]
