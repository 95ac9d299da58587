"""The deploy task: prove that the model answers, leave it served if asked.

On this machine a run's model is served for a moment, where not its loss alone is asked for; on a
cluster when it is to stay.
"""

from collections.abc import Callable

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from infra.local_processes import LocalBackend
from infra.service_client import Address, curl_command
from tasks import artifacts
from tasks.cluster_deployment import deploy_on_cluster
from tasks.local_deployment import deploy_here
from tasks.running import Run, run_step
from tasks.specs import step_spec
from tasks.steps import ended
from trainer.outcome import Outcome


@task(name="deploy", task_run_name="deploy {run.parameters[run_name]}", cache_policy=NO_CACHE)
def deploy(run: Run) -> Outcome:
    """Start the server, hold it to what was trained, and stop it again unless it is to stay."""
    backend = run.backend
    outcome = _here(run, backend) if isinstance(backend, LocalBackend) else _on_cluster(run)
    run.outcomes.append(outcome)
    if outcome.result["url"]:
        artifacts.show_endpoint(run.run_name, outcome.result["url"])
    return ended(outcome)


def _here(run: Run, backend: LocalBackend) -> Outcome:
    if run.watcher:
        run.watcher.started("deploy", "the inference server")
    outcome = deploy_here(run.parameters, backend.volume(run.parameters["pvc"]), _teller(run))
    if run.watcher:
        run.watcher.ended("deploy", outcome)
    return outcome


def _on_cluster(run: Run) -> Outcome:
    say = _teller(run)

    def check(config: dict[str, object]) -> Outcome:
        spec = step_spec(run.parameters, "deploy", config, attempt=run.attempt)
        outcome = run_step(run, spec)
        run.outcomes.remove(outcome)  # the whole of them counts as one
        return outcome

    place = run.backend.serving(run.parameters["serving"]["kind"])  # type: ignore[attr-defined]
    outcome = deploy_on_cluster(run.parameters, place, check, say)
    url, prompt = outcome.result["url"], outcome.result.get("prompt", "The")
    say(f"serves at {url}; ask it yourself: {curl_command(Address(url), prompt)}")
    return outcome


def _teller(run: Run) -> Callable[[str], None]:
    """Tell both the run's log and whoever watches it."""
    logger = get_run_logger()

    def say(line: str) -> None:
        logger.info("%s", line)
        if run.watcher:
            run.watcher.line("deploy", line)

    return say
