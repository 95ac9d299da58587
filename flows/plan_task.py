"""The plan as the flow's first task: shown in the UI, recorded with the run."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from flows.plan_request import as_table, gather, plan_with
from tasks.artifacts import show_plan
from tasks.run_step import Run
from tasks.steps import look
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.plan.facts import PlanFacts


@task(name="plan", task_run_name="plan {parameters.run_name}", cache_policy=NO_CACHE)
def make_plan(parameters: Parameters, run: Run) -> dict[str, Any]:
    """Say what the run will do, need, take and cost, before a model is downloaded.

    Raises:
        RequestError: With everything that cannot work, unless the run is already running.
    """
    if (volume := run.backend.volume(parameters.pvc)) is not None:
        known = gather(parameters, volume, listing=run.listing)
    else:  # who follows a step on a cluster has no volume to look at
        known = PlanFacts.from_dict(look(run))
    made = plan_with(known, parameters, on_cluster=run.backend.detaches)
    get_run_logger().info("%s", as_table(made))
    show_plan(run.run_name, made.rows())
    if made.problems and not known.admitted:
        raise RequestError(*made.problems)
    return made.to_dict()
