"""What to say of a volume that is full: what is needed, what is free, and what can be freed."""

import errno
import shutil
from pathlib import Path

from trainer.contract.checkpoints import name_of, steps_there
from trainer.contract.errors import StepError
from trainer.contract.topics import RetentionConfig
from trainer.contract.wording import format_bytes
from trainer.retention import nights
from trainer.retention.removal import own_bytes
from trainer.retraining.series import Series, series_names

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException | None) -> bool:
    """Whether the error is a volume's that has no more room, or no more for this user."""
    return isinstance(error, OSError) and error.errno in _FULL


def full_sentence(volume: Path, needed: int = 0) -> str:
    """One sentence: the volume is full, what is needed, what is free, what can be freed.

    Args:
        volume: Its root.
        needed: Bytes of what was to be written; 0: not known.
    """
    free = format_bytes(shutil.disk_usage(volume).free)
    needs = f"{format_bytes(needed)} are needed and {free} are free" if needed else f"{free} free"
    return f"the volume is full ({needs}); {what_can_be_freed(volume)}"


def what_can_be_freed(volume: Path) -> str:
    """How much `finetune prune` would free, and with --runs."""
    try:
        tokens = sum(item.size for item in _tokens(volume))
        runs = tokens + sum(item.size for item in _runs(volume))
    except (OSError, StepError):  # what is looked at may be damaged, too
        return "`finetune prune` says what can be freed"
    if not runs:
        return (
            "`finetune prune` finds nothing to free: remove a run (`finetune rm RUN`), or add room"
        )
    more = f", with --runs {format_bytes(runs)}" if runs > tokens else ""
    return f"`finetune prune --delete` would free {format_bytes(tokens)}{more}"


def short_of_room(checkpoints: Path, newest: Path) -> str:
    """What to say where the next checkpoint of a run has no room; '' where it has.

    Older checkpoints of the run would go for it.

    Args:
        checkpoints: The run's folder of them.
        newest: The one that the run resumes from, which stays.
    """
    volume = checkpoints.parents[1]
    needed = own_bytes([newest]) or sum(p.stat().st_size for p in newest.rglob("*") if p.is_file())
    older = [checkpoints / name_of(step) for step in steps_there(checkpoints)]
    freed = own_bytes([path for path in older if path != newest])
    if shutil.disk_usage(volume).free + freed >= needed:
        return ""
    return f"the next checkpoint has no room: {full_sentence(volume, needed)}"


def _tokens(volume: Path) -> list[nights.Removable]:
    from trainer.tokens.prune import prune

    return [nights.Removable(*item) for item in prune(volume)]


def _runs(volume: Path) -> list[nights.Removable]:
    keep = RetentionConfig()
    found = nights.old_logs(volume, dry_run=True)
    for name in series_names(volume):
        found += nights.retain(Series(volume, name), keep, dry_run=True)
    return found
