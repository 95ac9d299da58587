"""The tasks of the flow `retrain` that a run by itself has not."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks import configs
from tasks.run_step import Run, run_step
from tasks.specs import step_spec
from tasks.steps import ended
from trainer.contract.outcome import Outcome
from trainer.contract.wording import figure


@task(name="champion", task_run_name="{action} {series}", cache_policy=NO_CACHE)
def champion(
    run: Run,
    series: str,
    action: str,
    fetched: Outcome,
    tokenized: Outcome,
    digests: Mapping[str, str] = MappingProxyType({}),
    **more: Any,
) -> Outcome:
    """Look whether anything changed, judge what was trained, or record what was decided."""
    config = configs.champion_config(
        run.parameters,
        run.request,
        series=series,
        action=action,
        model=fetched.result["model"],
        tokens=tokenized.result["store"],
        digests={**run.digests, **digests},
        **more,
    )
    return ended(run_step(run, step_spec(run.parameters, "champion", config, attempt=run.attempt)))


def show_decision(series: str, figures: Mapping[str, Any], words: str) -> None:
    """A table of what was decided and why, each night's a version of the last one's."""
    create_table_artifact(
        [
            {"figure": name.replace("_", " "), "value": figure(value)}
            for name, value in figures.items()
        ],
        key=f"{series}-decision",
        description=words,
    )
