"""The deploy task: prove that the model answers, leave it served if asked.

On this machine a run's model is served for a moment, where not its loss alone is asked for; on a
cluster when it is to stay.
"""

import dataclasses
import time
from collections.abc import Callable

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from infra.local.service_client import Address, curl_command
from infra.serving_place import API_KEY_VARIABLE, ServingPlace
from tasks import artifacts
from tasks.cluster_deployment import deploy_on_cluster
from tasks.local_deployment import deploy_here
from tasks.run_step import Run, run_step
from tasks.specs import step_spec
from tasks.steps import ended
from trainer.contract.outcome import Outcome


@task(name="deploy", task_run_name="deploy {run.parameters[run_name]}", cache_policy=NO_CACHE)
def deploy(run: Run) -> Outcome:
    """Start the server, hold it to what was trained, and stop it again unless it is to stay."""
    place = run.backend.serving(run.parameters["serving"]["kind"])
    outcome = _here(run) if place is None else _on_cluster(run, place)
    run.outcomes.append(outcome)
    if outcome.result["url"]:
        artifacts.show_endpoint(run.run_name, outcome.result["url"])
    return ended(outcome)


def _here(run: Run) -> Outcome:
    if run.watcher:
        run.watcher.started("deploy", "the inference server")
    outcome = deploy_here(run.parameters, run.backend.mount(run.parameters["pvc"]), _teller(run))
    if run.watcher:
        run.watcher.ended("deploy", outcome)
    return outcome


def _on_cluster(run: Run, place: ServingPlace) -> Outcome:
    say, clock = _teller(run), time.monotonic()

    def check(config: dict[str, object]) -> Outcome:
        spec = step_spec(run.parameters, "deploy", config, attempt=run.attempt)
        outcome = run_step(run, spec)
        run.outcomes.remove(outcome)  # the whole of them counts as one
        return outcome

    outcome = deploy_on_cluster(run.parameters, place, check, say, digests=run.digests)
    url, prompt = outcome.result["url"], outcome.result.get("prompt", "The")
    variable = API_KEY_VARIABLE if run.parameters["serving"]["api_key"] else ""
    curl = curl_command(Address(url, api_key_variable=variable), prompt)
    say(f"serves at {url}; ask it yourself: {curl}")
    # From the first Job to the last client: the wait for the server is most of it.
    return dataclasses.replace(outcome, seconds=round(time.monotonic() - clock, 3))


def _teller(run: Run) -> Callable[[str], None]:
    """Tell both the run's log and its terminal."""
    logger = get_run_logger()

    def say(line: str) -> None:
        logger.info("%s", line)
        if run.watcher:
            run.watcher.line("deploy", line)

    return say
