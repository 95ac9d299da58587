"""What a retraining does about old runs once it has decided: remove, measure, report."""

from typing import Any

from trainer.contract.errors import StepError
from trainer.contract.events import say
from trainer.contract.run_folder import damaged_records
from trainer.contract.topics import RetentionConfig
from trainer.contract.wording import format_bytes
from trainer.retention import nights, space
from trainer.retraining.series import Series


def after_night(series: Series, keep: RetentionConfig, run: str = "") -> dict[str, Any]:
    """Remove what the series does not need any more; figures for the decision's table.

    No failure here is one of the night: what can't be removed is reported.

    Args:
        series: The series.
        keep: What stays.
        run: The run that was decided on just now; empty: nothing was trained.
    """
    try:
        return _after_night(series, keep, run)
    except (OSError, StepError) as error:
        say(f"old runs of {series.name} could not be removed ({error})")
        return {"old_runs": f"could not be removed ({error})"}


def _after_night(series: Series, keep: RetentionConfig, run: str) -> dict[str, Any]:
    volume = series.volume
    night_bytes = space.run_bytes(volume, run) if run else 0
    gone = [*nights.retain(series, keep), *nights.old_logs(volume), *nights.unused_tokens(volume)]
    for item in gone:
        say(f"removed {item.path.relative_to(volume)} ({format_bytes(item.size)}): {item.reason}")
    for damage in damaged_records(volume):
        say(f"no old run was removed: {damage}")
    if run:
        space.keep_line(series, space.measure(series, night_bytes))
    left = space.nights_left_of(volume, series.name, keep.keep_finals)
    return {
        "removed": len(gone),
        "freed": format_bytes(sum(item.size for item in gone)),
        "nights_until_full": left,
    }
