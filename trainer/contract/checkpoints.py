"""The checkpoints of a run: which there are, which is good, which may go.

checkpoints/step-00000500/        sealed
checkpoints/.step-00000500.part/  being written, or left by a process that was killed
checkpoints/damaged-step-.../     set aside, with the reason in the log
"""

import re
import shutil
from pathlib import Path

from trainer.contract.errors import DamagedError
from trainer.contract.files import size_of
from trainer.contract.sealed_folder import read_manifest, verify

_STEP = re.compile(r"^step-(\d{8,})$")


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def part_of(place: Path) -> Path:
    """Where the folder for `place` is written before it is sealed."""
    return place.with_name(f".{place.name}.part")


def steps_there(folder: Path) -> list[int]:
    """The steps of the checkpoints in `folder`, good or bad, oldest first."""
    if not folder.is_dir():
        return []
    matches = (_STEP.match(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def newest_good(folder: Path) -> tuple[Path | None, list[tuple[Path, list[str]]]]:
    """The newest checkpoint that verifies, and the newer ones that don't, with reasons.

    Raises:
        DamagedError: There are checkpoints, or were before they were set aside, and none is good.
    """
    bad: list[tuple[Path, list[str]]] = []
    for step in reversed(steps_there(folder)):
        path = folder / name_of(step)
        problems = verify(path)
        if not problems:
            return path, bad
        bad.append((path, problems))
    reasons = [problem for _, problems in bad for problem in problems]
    aside = [path.name for path in sorted(folder.glob("damaged-*"))]
    if bad or aside:
        reasons += [f"{name} was set aside before" for name in aside]
        raise DamagedError(
            f"none of the run's {len(bad) + len(aside)} checkpoints is intact: "
            f"{'; '.join(reasons)}. They were left as they are. Bring one back from a copy, or "
            "start over with no_resume=true."
        )
    return None, bad


def set_aside(path: Path) -> Path:
    """Rename a bad checkpoint so that nothing takes it for a good one; return where it is."""
    for number in range(1, 10_000):
        aside = path.with_name(f"damaged-{path.name}" + (f"-{number}" if number > 1 else ""))
        if not aside.exists():
            return path.rename(aside)
    raise DamagedError(f"{path} can't be set aside: too many damaged ones of its name are there")


def clear_parts(folder: Path) -> None:
    """Delete what killed processes left half written."""
    for path in folder.glob(".*.part*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:  # a process' note for the first one: of another time, it would be believed
            path.unlink()


def prune(
    folder: Path, keep_last: int, keep_best: bool, max_bytes: int = 0, keep_every: int = 0
) -> list[Path]:
    """Delete checkpoints that the rule does not keep; return what went.

    Kept are the newest, `keep_last` in all, the one of the lowest validation loss, and of each
    `keep_every` steps (0: none) the first, for replays.
    To stay under `max_bytes` (0: no limit) older ones go too, never the newest or best.
    Call it only when the newest one was verified.
    """
    steps = steps_there(folder)
    newest = steps[-1:]
    protected = {*newest, *(_best(folder, steps) if keep_best else [])}
    kept = {*steps[-max(1, keep_last) :], *protected, *for_replays(steps, keep_every)}
    gone = [step for step in steps if step not in kept]
    if max_bytes:
        total = sum(size_of(folder / name_of(step)) for step in kept)
        for step in sorted(kept - protected):
            if total > max_bytes:
                total -= size_of(folder / name_of(step))
                gone.append(step)
    return [delete(folder / name_of(step)) for step in gone]


def for_replays(steps: list[int], every: int) -> list[int]:
    """The first checkpoint at or after each multiple of `every` steps."""
    first: dict[int, int] = {}
    for step in steps if every else ():
        first.setdefault(step // every, step)
    return [step for number, step in first.items() if number]


def sealed_folders(run: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first, its final model, and the models kept to serve.

    Args:
        run: The run's folder.
    """
    checkpoints = run / "checkpoints"
    models = [run / "final", *sorted((run / "served").glob("[!.]*"))]
    there = [path for path in models if path.is_dir()]
    return [*(checkpoints / name_of(step) for step in steps_there(checkpoints)), *there]


def verify_run(run: Path) -> dict[str, list[str]]:
    """The problems of each sealed folder of a run, by name."""
    return {path.relative_to(run).as_posix(): verify(path) for path in sealed_folders(run)}


def _best(folder: Path, steps: list[int]) -> list[int]:
    """The step of the lowest validation loss, if any was measured."""
    losses = {}
    for step in steps:
        try:
            loss = read_manifest(folder / name_of(step)).about.get("eval_loss")
        except DamagedError:
            continue
        if loss is not None:
            losses[step] = loss
    return [min(losses, key=lambda step: losses[step])] if losses else []


def remove(path: Path) -> None:
    """Delete a folder, or what has its name, if there is either."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def delete(path: Path) -> Path:
    """Delete a checkpoint so that a killed process leaves no half of one behind."""
    part = part_of(path)
    path.rename(part)
    remove(part)
    return path
