"""The flow `retrain`: train again when something changed, and serve what came out if it is better.

Made for a schedule. What it decided is kept on the volume (trainer/retraining/step.py), so a
run that is killed is resumed by the next one.
"""

import dataclasses
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from annotated_types import MaxLen
from prefect import flow
from prefect.client.schemas.objects import StateType
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import State

from flows.finetune import finetune
from infra.backend import PlaceError
from infra.choose_backend import backend_from_environment
from tasks.filling_up import filling_up
from tasks.following import claimed
from tasks.local_adapters import replace_everywhere
from tasks.retraining import champion, show_decision
from tasks.run_step import (
    Run,
    cancelled_with_its_steps,
    compared_by_loss,
    current_listing,
    current_watcher,
    sharing_listing,
)
from tasks.steps import fetch, tokenize
from trainer.contract.errors import RequestError
from trainer.contract.outcome import Outcome
from trainer.contract.parameter_types import RunName
from trainer.contract.parameters import Parameters, Retention, cluster_settings, takes
from trainer.contract.topics import RetentionConfig
from trainer.contract.validation import load_parameters

DATED = len("-20261123-999")


class RetrainParameters(Parameters):
    """What `retrain` can be asked: all that `finetune` can, under one name for a series."""

    run_name: Annotated[RunName, MaxLen(40 - DATED)] = "nightly"
    """Name of the series; its runs are named after it and the day (at most 27 characters)."""
    start_from: Literal["base", "last"] = "base"
    """What is trained: the base model, or the best one that the series made so far."""
    retention: Retention = RetentionConfig()
    """Of the series' runs: keep_finals=3 stay, keep_checkpoints_of=1 with checkpoints."""


@flow(name="retrain", flow_run_name="{run_name}", validate_parameters=False)
@takes(RetrainParameters)
def retrain(**given: Any) -> Any:
    """Train again when data, base model or parameters changed; serve the result if it is better."""
    parameters = load_parameters(RetrainParameters, given)
    _refuse_what_needs_no_series(parameters)
    settings = cluster_settings(parameters)
    run = Run(
        parameters=parameters.model_dump(),
        request={n: v for n, v in parameters.request.items() if n != "start_from"},
        attempt=str(flow_run.get_id()),
        backend=backend_from_environment(parameters.logs, settings),
        listing=current_listing(),
        nodes=settings.nodes,
        watcher=current_watcher(),
    )
    with (
        claimed(run.backend, parameters.pvc, parameters.run_name, attempt=run.attempt),
        cancelled_with_its_steps(run),
        sharing_listing(run.listing),  # it trains on the text that it found changed
    ):
        return _retrain(run, parameters)


def _retrain(run: Run, parameters: RetrainParameters) -> State[Any]:
    series = parameters.run_name
    fetched = fetch(run)
    places = run.outcomes[-1].result
    at: dict[str, Any] = {"series": series, "fetched": fetched, "tokenized": tokenize(run, fetched)}
    at["retention"] = dataclasses.asdict(parameters.retention)
    look = _champion(run, action="look", **at)
    if look.result["decision"] == "unchanged":
        return _ended(series, "Unchanged", look.result, look.message, look.result["room"])
    get_run_logger().info("%s", look.message)
    name = look.result["run"]
    asked = parameters.model_dump(exclude={"start_from", "run_inference", "retention"})
    asked |= {"run_name": name, "model": look.result["model"]}
    asked["skip"] = look.result.get("skip") or asked["skip"]
    if asked["model"] != places["model"]:
        # A finished model's copy of the tokenizer is other files: the text would be tokenized
        # anew, and its losses compared with none.
        asked["tokenizer"] = places["tokenizer"] or places["model"]
    # One that is to be served is proven below, once it is known to be better.
    with compared_by_loss() if parameters.run_inference else nullcontext():
        made = finetune(**asked)
    at |= {"candidate": name, "digests": {**made["digests"], "champion": look.result["champion"]}}
    judged = _champion(run, action="judge", **at)
    promoted = judged.result["decision"] == "promoted"
    if promoted and parameters.run_inference:
        finetune(**{**asked, "inference_only": True})
        _stop_service(run, look.result["champion"])
        at["replaced"] = look.result["champion"]
    room = _champion(run, action="record", verdict=judged.result, **at).result["room"]
    if promoted and run.backend.serving(parameters.serving.kind) is None:
        volume = run.backend.mount(parameters.pvc)
        replace_everywhere(volume, series, get_run_logger().info)
    figures = {"run": name, "champion_before": look.result["champion"], **judged.result}
    return _ended(series, "Promoted" if promoted else "Kept", figures, judged.message, room)


def _champion(run: Run, **asked: Any) -> Outcome:
    """What the task came to: a task that names its own state hands that to its caller."""
    champion(run, **asked)
    return run.outcomes[-1]


def _refuse_what_needs_no_series(parameters: RetrainParameters) -> None:
    problems = [
        f"{name} is not for retrain (got true). {instead}"
        for name, instead in (
            ("inference_only", "Serve a run by finetune."),
            ("no_resume", "Each run of a series has a name of its own."),
        )
        if getattr(parameters, name)
    ]
    if parameters.data.is_of_pairs:
        problems.append(
            "data.shape='preference' is not for retrain: a champion's loss on pairs is one against "
            "its own base model. Train pairs by finetune."
        )
    if parameters.train_ratio == 1:
        problems.append(
            "train_ratio leaves no held-out text to compare models on (got 1.0). Set it below 1."
        )
    if problems:
        raise RequestError(*problems)


def _stop_service(run: Run, replaced: str) -> None:
    """Stop what the champion before served: its successor serves now."""
    if not replaced:
        return
    kind = run.parameters["serving"]["kind"]
    try:
        run.backend.stop_service(run.parameters["pvc"], replaced, kind=kind)
    except PlaceError as error:  # it was told to stop, and the night's model serves
        get_run_logger().warning("The service of %s was stopped. %s", replaced, error)


def _ended(
    series: str, state: str, figures: dict[str, Any], words: str, room: dict[str, Any]
) -> State[Any]:
    """Completed, under a name and with words that say what was decided, and how much room is left.

    Args:
        room: What was removed of older runs, see trainer/retention/after_night.py.
    """
    decided = datetime.now(UTC).isoformat(timespec="seconds")
    left = ("fingerprint", "room")
    shown = {name: value for name, value in figures.items() if name not in left} | room
    show_decision(series, {"decision": state.lower(), **shown, "decided": decided}, words)
    if warning := filling_up(series, room):
        get_run_logger().warning("%s", warning)
        words = f"{words}; {warning}"
    return State(type=StateType.COMPLETED, name=state, message=words, data=shown)
