"""The flow: a folder of text and a base model in, a finetuned and served model out.

Each step is a process of its own, started by infra's backend and followed here. The
flow holds no state: killed at any point and started again with the same parameters,
it adopts what is running and takes over what is done.
"""

from contextlib import suppress
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.plan_task import make_plan
from flows.without_effect import without_effect
from infra.choose_backend import backend_from_environment
from tasks.artifacts import show_result, tag_run
from tasks.deployment import deploy
from tasks.following import claimed
from tasks.local_deployment import stays
from tasks.run_step import (
    Run,
    cancelled_with_its_steps,
    current_listing,
    current_watcher,
    is_paranoid,
    only_compared,
)
from tasks.steps import evaluate, fetch, tokenize, train
from tasks.summary import losses
from trainer.contract.addresses import masked
from trainer.contract.parameters import Parameters, cluster_settings, takes
from trainer.contract.validation import load_parameters
from trainer.report.journal import record_flow
from trainer.report.page import write_page_if_possible


@flow(name="finetune", flow_run_name="{run_name}", validate_parameters=False)
@takes(Parameters)
def finetune(**given: Any) -> dict[str, Any]:
    """Finetune a language model on a folder of text, evaluate it and serve it."""
    # Checked here and not by Prefect, so that one error names every parameter to mend.
    parameters = load_parameters(Parameters, given)
    settings = cluster_settings(parameters)
    backend = backend_from_environment(parameters.logs, settings)
    run = Run(
        parameters=parameters.model_dump(),
        request=parameters.request,
        attempt=str(flow_run.get_id()),
        backend=backend,
        listing=current_listing(),
        paranoid=is_paranoid(),
        nodes=settings.nodes if backend.detaches else 1,
        grace_seconds=settings.grace_seconds,
        watcher=current_watcher(),
    )
    tag_run(parameters.model, masked(parameters.dataset))
    _say_what_chooses_nothing(run, parameters)
    with (
        claimed(run.backend, parameters.pvc, parameters.run_name, attempt=run.attempt),
        cancelled_with_its_steps(run),
    ):
        if not parameters.inference_only:
            run.plan.update(make_plan(parameters, run))
            fetched = fetch(run)
            tokenized = tokenize(run, fetched)
            train(run, fetched, tokenized)
            evaluate(run, fetched, tokenized)
        # On a cluster a server costs a GPU: none is started only to show that it can be. Nor for
        # one of many runs, of which the best are served, and held to what was trained, later.
        if stays(run.parameters) or not (backend.detaches or only_compared()):
            deploy(run)
        if run.volume_folder is not None and run.volume_folder.is_admitted:
            with suppress(OSError):  # a full volume; all that was asked for is done
                record_flow(run.volume_folder, run.began)
            if said := write_page_if_possible(run.volume_folder):
                get_run_logger().warning("%s", said)
        result = losses(run.outcomes)
        show_result(run.run_name, run.outcomes, result)
    seconds = {outcome.step: outcome.seconds for outcome in run.outcomes}
    return {**result, "digests": run.digests, "seconds": seconds}


def _say_what_chooses_nothing(run: Run, parameters: Parameters) -> None:
    if unused := without_effect(parameters, on_cluster=run.backend.detaches):
        words = f"without effect here: {', '.join(unused)}"
        get_run_logger().warning("%s", words)
        if run.watcher:
            run.watcher.line("parameters", words)
