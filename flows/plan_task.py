"""The plan as the flow's first task: shown in the UI, recorded with the run."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from flows.parameters import Parameters
from flows.plan_request import as_table, gather, plan_with
from infra.local_processes import LocalBackend
from tasks.artifacts import show_plan
from tasks.running import Run
from tasks.steps import look
from trainer.errors import RequestError
from trainer.plan_facts import PlanFacts


@task(name="plan", task_run_name="plan {parameters.run_name}", cache_policy=NO_CACHE)
def make_plan(parameters: Parameters, run: Run) -> dict[str, Any]:
    """Say what the run will do, need, take and cost, before a model is downloaded.

    Raises:
        RequestError: With everything that cannot work, unless the run is under way already.
    """
    backend = run.backend
    if isinstance(backend, LocalBackend):
        known = gather(parameters, backend.volume(parameters.pvc), listing=run.listing)
    else:  # who follows a step on a cluster has no volume to look at
        known = PlanFacts.from_dict(look(run))
    made = plan_with(known, parameters, on_cluster=backend.detaches)
    get_run_logger().info("%s", as_table(made))
    show_plan(run.run_name, made.rows())
    if made.problems and not known.admitted:
        raise RequestError(*made.problems)
    return made.to_dict()
