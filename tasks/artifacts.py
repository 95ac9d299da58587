"""What the Prefect UI shows of a run besides its logs."""

import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import httpx
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from trainer.contract.outcome import Outcome
from trainer.contract.wording import describe_progress, figure, format_seconds

P = ParamSpec("P")
# What Prefect's client raises when the server does not take something, after its own retries.
SERVER_ERRORS = (httpx.HTTPError, PrefectException)


def _only_shown(show: Callable[P, None]) -> Callable[P, None]:
    """Have `show` fail with a warning alone: what is shown of a run is not the run."""

    @functools.wraps(show)
    def shown(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            show(*args, **kwargs)
        except SERVER_ERRORS as error:
            get_run_logger().warning("Prefect's UI lacks what %s says: %s", show.__name__, error)

    return shown


class ProgressArtifact:
    """A bar in the UI for one step, made when there is something to show.

    Args:
        name: Prefix of its key; lower-case letters, digits and dashes.
    """

    def __init__(self, name: str) -> None:
        self._key = f"{name}-progress"
        self._id: uuid.UUID | None = None

    def show(self, fields: Mapping[str, Any]) -> None:
        """Bring the bar up to the progress event `fields`."""
        if not fields.get("total"):
            return
        percent = min(100.0, 100.0 * fields["done"] / fields["total"])
        text = describe_progress(fields)
        if self._id is None:
            made = create_progress_artifact(percent, key=self._key, description=text)
            assert isinstance(made, uuid.UUID)  # not a coroutine: steps run in a sync flow
            self._id = made
        else:
            update_progress_artifact(self._id, percent, description=text)


@_only_shown
def show_plan(run_name: str, rows: Sequence[Sequence[str]]) -> None:
    """A table of what the run will do, need, take and cost."""
    create_table_artifact(
        _rows(("figure", "plan"), rows), key=f"{run_name}-plan", description=f"Plan of {run_name}"
    )


@_only_shown
def show_tokens(run_name: str, result: Mapping[str, Any], folder: str) -> None:
    """A table of what is in the store, and the command that shows it, where the volume is."""
    create_table_artifact(
        _rows(("figure", "value"), tokens_rows(result)),
        key=f"{run_name}-tokens",
        description="Tokens",
    )
    # A browser opens no file:// link from a page of a server.
    create_markdown_artifact(
        f"Where the volume is:\n\n    finetune tokens {folder}\n",
        key=f"{run_name}-store",
        description="The store of tokens",
    )


def tokens_rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """What the tokenize step said, name by name; how fast it was where it made the store."""
    names = (
        "files documents num_tokens num_contexts num_train_contexts num_padding repeated_share "
        "trained_tokens masked_tokens dropped seconds megabytes_per_second encoder store"
    ).split()
    return [
        [name.removeprefix("num_").replace("_", " "), figure(result[name])]
        for name in names
        if result.get(name) is not None
    ]


@_only_shown
def show_report(name: str, title: str, markdown: str) -> None:
    """A page that a step made: losses, samples."""
    create_markdown_artifact(markdown, key=f"{name}-report", description=title)


@_only_shown
def show_endpoint(run_name: str, url: str) -> None:
    """A link to the service that the run left."""
    create_link_artifact(url, link_text=f"{run_name} is served here", key=f"{run_name}-endpoint")


@_only_shown
def show_curves(run_name: str, folder: str) -> None:
    """The command that shows TensorBoard's events, where the volume is."""
    create_markdown_artifact(
        f"Where the volume is:\n\n    tensorboard --logdir {folder}\n",
        key=f"{run_name}-tensorboard",
        description="TensorBoard's events",
    )


@_only_shown
def tag_run(*tags: str) -> None:
    """Add tags to the flow run running: what it can be found by in the UI."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(uuid.UUID(str(flow_run.id)), tags=sorted({*flow_run.tags, *tags}))


@_only_shown
def show_result(run_name: str, outcomes: Sequence[Outcome], losses: Mapping[str, Any]) -> None:
    """The run in one table: its steps, and the losses before and after."""
    rows = [
        [
            outcome.step,
            "cached" if outcome.reused else "done",
            format_seconds(outcome.seconds),
            outcome.message,
        ]
        for outcome in outcomes
    ]
    for name, value in losses.items():
        rows.append([name, "-", "-", figure(value)])
    table = _rows(("step", "state", "time", "result"), rows)
    create_table_artifact(table, key=f"{run_name}-result", description=f"Result of {run_name}")


def _rows(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in rows]
