"""What `sweep` is asked, and what its trials ask in turn: checked without Prefect."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, MaxLen
from pydantic import BeforeValidator

from flows.trials import Trial, Values, make_trials, rungs
from trainer.contract.errors import RequestError
from trainer.contract.nested_names import with_value
from trainer.contract.parameter_types import Count, RunName, from_text
from trainer.contract.parameters import Parameters
from trainer.contract.validation import load_parameters

OWN = ("over", "method", "trials", "parallel", "halving")
NUMBERED = len("-999-e9999")


class SweepParameters(Parameters):
    """What `sweep` can be asked: all that `finetune` can, and what to vary."""

    run_name: Annotated[RunName, MaxLen(40 - NUMBERED)]
    """Name of the sweep; its runs are numbered after it (at most 30 characters)."""
    over: Annotated[dict[str, Values], BeforeValidator(from_text)]
    """What varies: {"learn_rate": {"min": 1e-5, "max": 1e-3, "log": true}, "lora.rank": [8]}."""
    method: Literal["grid", "random"] = "grid"
    """Every combination, or as many as `trials` drawn by random_seed."""
    trials: Count = 8
    """How many to draw (>0)."""
    parallel: Count = 1
    """Runs at a time, at most (>0)."""
    halving: Annotated[int, Ge(1)] = 1
    """Go on with one in so many after each round, and train it so many times longer; 1: don't."""


def asked_trials(parameters: SweepParameters) -> tuple[list[Trial], dict[int, dict[str, Any]]]:
    """All trials, and by number the parameters of each one's longest run.

    Raises:
        RequestError: A trial would be refused.
    """
    if not parameters.over:
        raise RequestError("over names nothing to vary. Name a parameter and its values.")
    trials = make_trials(
        parameters.over, parameters.method, parameters.trials, parameters.random_seed
    )
    epochs = rungs(parameters.epochs, parameters.halving)[-1]
    return trials, {trial.number: _request(parameters, trial, epochs) for trial in trials}


def _request(parameters: SweepParameters, trial: Trial, epochs: int) -> dict[str, Any]:
    fixed = {*OWN, "run_name", "pvc", *(["epochs"] if parameters.halving > 1 else [])}
    varied = {name: name.partition(".")[0] for name in trial.values}
    problems = [f"over can't vary {name}." for name, topic in varied.items() if topic in fixed]
    if "preference" in varied.values():
        problems.append(
            "over can't vary preference: runs are ranked by their held-out loss, which another "
            "beta measures in another unit. Compare such runs by their reward accuracy."
        )
    if parameters.halving > 1 and parameters.schedule.max_steps:
        problems.append(
            f"schedule.max_steps can't be combined with halving (got {parameters.halving}): each "
            "round trains more epochs than the one before. Leave one of them out."
        )
    if problems:
        raise RequestError(*problems)
    values = parameters.model_dump(mode="json", exclude=set(OWN))
    values["epochs"] = epochs
    for name, value in trial.values.items():
        values = with_value(values, name, value)
    checked = load_parameters(Parameters, values)
    return checked.model_dump(mode="json")
