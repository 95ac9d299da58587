"""One Prefect task for each step of a run.

A task shows as Cached when its step found the result there and verified it: the step
itself, which can see the volume, decides that, so no record of Prefect's can be stale.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import StateType
from prefect.states import State

from tasks import artifacts, configs
from tasks.keys import tracking_key
from tasks.run_step import Run, run_step
from tasks.specs import step_spec
from trainer.contract.outcome import Outcome

# Whose digest tells whether what the step made is still on the volume.
RESULT_OF = {"finetune": "final", "evaluate": "report"}


def _run(run: Run, step: str, config: Mapping[str, Any]) -> Outcome:
    config = {**config, "flow_began": run.began, "asked": time.time()}
    seen = run.seen(RESULT_OF[step]) if step in RESULT_OF else None
    spec = step_spec(run.parameters, step, config, attempt=run.attempt, nodes=run.nodes, seen=seen)
    if spec.secrets and not run.backend.detaches:  # there are no Kubernetes Secrets here
        spec = dataclasses.replace(spec, environment=tracking_key(run.parameters["wandb_key"]))
    return run_step(run, spec)


def _fetch_config(run: Run) -> dict[str, Any]:
    return configs.fetch_config(run.parameters, run.request, listing=run.listing)


def ended(outcome: Outcome) -> Any:
    """The state that a task returns to end in it; its caller gets the outcome."""
    name = "Cached" if outcome.reused else "Completed"
    return State(type=StateType.COMPLETED, name=name, message=outcome.message, data=outcome)


@task(name="fetch", task_run_name="fetch {run.parameters[model]}", cache_policy=NO_CACHE)
def fetch(run: Run) -> Outcome:
    """Check the request against the volume, and bring the base model there."""
    return ended(_run(run, "fetch", _fetch_config(run)))


def look(run: Run) -> dict[str, Any]:
    """What a plan is made from, read where the volume is; nothing is touched there.

    Raises:
        RequestError: The request does not fit what is on the volume, or on the hub.
    """
    outcome = _run(run, "plan", _fetch_config(run))
    run.outcomes.remove(outcome)  # what was looked at is part of no result
    return outcome.result["plan_facts"]


@task(name="tokenize", task_run_name="tokenize {run.request[dataset]}", cache_policy=NO_CACHE)
def tokenize(run: Run, fetched: Outcome) -> Outcome:
    """Make the store of tokenized contexts, or find it."""
    config = configs.tokenize_config(
        run.parameters,
        model=fetched.result["model"],
        tokenizer=fetched.result["tokenizer"],
        listing=run.listing,
        digests=run.digests,
    )
    outcome = _run(run, "tokenize", {**config, "paranoid": run.paranoid})
    artifacts.show_tokens(run.run_name, outcome.result, run.on_volume(outcome.result["store"]))
    return ended(outcome)


@task(name="finetune", task_run_name="finetune {run.parameters[run_name]}", cache_policy=NO_CACHE)
def train(run: Run, fetched: Outcome, tokenized: Outcome) -> Outcome:
    """Train the base model on the store, from the newest good checkpoint on."""
    config = configs.finetune_config(
        run.parameters,
        run.request,
        model=fetched.result["model"],
        tokenizer=fetched.result["tokenizer"],
        tokens=tokenized.result["store"],
        nodes=run.nodes,
        grace_seconds=run.grace_seconds,
        attempt=run.attempt,
        earlier_outcomes=[dataclasses.asdict(outcome) for outcome in run.outcomes],
        plan=run.plan,
        digests=run.digests,
    )
    artifacts.show_curves(run.run_name, run.curves)
    return ended(_run(run, "finetune", config))


@task(name="evaluate", task_run_name="evaluate {run.parameters[run_name]}", cache_policy=NO_CACHE)
def evaluate(run: Run, fetched: Outcome, tokenized: Outcome) -> Outcome:
    """Compare the base and the finetuned model on the held-out contexts."""
    config = configs.evaluate_config(
        run.parameters,
        model=fetched.result["model"],
        tokens=tokenized.result["store"],
        digests=run.digests,
    )
    return ended(_run(run, "evaluate", config))
