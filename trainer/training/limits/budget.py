"""A run's budget: when training has to end, and a schedule that ends by then.

What is planned to cost too much is refused before it begins (trainer/planning/gates.py).
Here is what happens where reality is slower than the plan: the last step comes earlier,
the learning rate falls to 0 there, and what comes out is a finished model.
"""

from bisect import bisect_right
from collections.abc import Callable
from datetime import UTC, datetime

from trainer.contract.errors import RequestError
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import FinetuneConfig
from trainer.report.times import IMAGE, QUEUE, STOPPED, ledger

AIM = 0.97
"""Of the time left: a schedule is planned to take so much of it, ..."""
LEAST = 0.9
"""... and is planned anew when it would take more than all of it, or less than this."""
AFTER_TRAINING = ("final model", "evaluation")
"""Parts of the plan's hours."""
BELIEVED = 0.02
"""Of the time left: so long has to be measured before its pace is believed."""


def end_by(config: FinetuneConfig, run: RunFolder, now: float) -> float:
    """When training has to have ended (Unix time); 0: no limit.

    What the run took so far counts, over all its attempts, and what is planned to come after
    training. A run that was stopped takes no hours, and one that waits for a machine no dollars.

    Raises:
        RequestError: Dollars are limited, and what an hour costs is not known.
    """
    budget, plan, limits = config.budget, config.plan, []
    spent = {name: seconds for name, seconds in ledger(run).items() if name != STOPPED}
    if budget.max_hours:
        limits.append(now + 3600 * budget.max_hours - sum(spent.values()))
    if budget.max_dollars and (per_hour := _dollars_per_hour(config)):
        paid = sum(spent.values()) - spent.get(QUEUE, 0.0) - spent.get(IMAGE, 0.0)
        limits.append(now + 3600 * budget.max_dollars / per_hour - paid)
    if budget.deadline:
        moment = datetime.fromisoformat(budget.deadline)
        limits.append((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    parts = plan.get("hours_parts", {})
    reserve = 3600 * sum(parts.get(name, 0.0) for name in AFTER_TRAINING)
    return max(1.0, min(limits) - reserve) if limits else 0.0


def _dollars_per_hour(config: FinetuneConfig) -> float:
    """What an hour costs by the run's plan; 0: nothing, on this machine."""
    price = config.plan.get("dollars_per_hour")
    if price is None:  # a GPU without one, or Jobs that were rendered without a plan
        raise RequestError(
            f"budget.max_dollars can't be kept (got {config.budget.max_dollars}). The run's plan "
            "does not say what an hour costs. Add the trainer_gpu to the file of prices "
            "(trainer/planning/prices.yaml, or the one that FINETUNE_PRICES names) and start the "
            "run as a flow, or leave max_dollars out."
        )
    return price


def last_step(
    done: int,
    end: int,
    whole: int,
    left: float,
    measured: float,
    remaining_seconds: Callable[[int], float],
) -> int:
    """The last step that there is time for; `end`, as it is planned, where that will do.

    Args:
        done: Steps that are done.
        end: The last one as the schedule is now.
        whole: The last one of all epochs.
        left: Seconds.
        measured: Seconds in which the pace was measured.
        remaining_seconds: What the steps up to a last one take, and what comes between them.
    """
    if measured < left * BELIEVED:
        return end
    needed = remaining_seconds(end)
    if needed <= left and (end == whole or needed >= left * LEAST):
        return end
    later = range(done + 1, whole + 1)
    return done + bisect_right(later, left * AIM, key=remaining_seconds)
