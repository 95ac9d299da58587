"""`finetune replay`: steps again, and what they would have been with other parameters."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.cli.runs.in_jobs import Jobs
from flows.cli.runs.reproduce import FORKABLE, parameters_of_record
from flows.cli.runs.verify import in_process
from trainer.contract.errors import RequestError
from trainer.contract.run_folder import RunFolder

MODULE = "trainer.replaying"
STEP = "replay"
# What a step depends on beside its weights. The data, their order and the model's form stay.
CHANGEABLE = frozenset("learn_rate warmup_ratio schedule epochs skip".split()) | {
    name for name in FORKABLE if name.startswith("optimizer.") and name != "optimizer.adam_bits"
}


def replay_on_cluster(
    pvc: str, jobs: Jobs, ends: tuple[int, int], assignments: Sequence[str]
) -> int:
    """As `replay_steps`, as a Job."""
    given = changes_of(pvc, jobs.run, jobs.record, assignments) if assignments else None
    return jobs.act("replay", [*map(str, ends)], given=given)[0]


def replay_steps(
    home: Path, pvc: str, run: RunFolder, ends: tuple[int, int], assignments: Sequence[str]
) -> int:
    """Show what the process says; its exit code."""
    words = [MODULE, str(home / pvc), run.root.name, *map(str, ends)]
    if not assignments:
        return in_process(words, STEP)[0]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(changes_of(pvc, run.root.name, run.record() or {}, assignments), file)
        file.flush()
        return in_process([*words, file.name], STEP)[0]


def changes_of(
    pvc: str, run: str, record: Mapping[str, Any], assignments: Sequence[str]
) -> dict[str, Any]:
    """The fields of the finetune step's config that the assignments change.

    Args:
        record: What the run recorded.
    Raises:
        RequestError: One is wrong, or of what a replay can't change.
    """
    changed = dict(assignment.partition("=")[::2] for assignment in assignments)
    wrong = [name for name in changed if not {name, name.partition(".")[0]} & CHANGEABLE]
    if wrong:
        raise RequestError(
            *(
                f"{name} can't be another in a replay. It trains on the run's data, in its order, "
                f"from its checkpoint; {', '.join(sorted(CHANGEABLE))} may change."
                for name in wrong
            )
        )
    asked = parameters_of_record(record, pvc, f"{run}-if", changed).model_dump()
    return {name: asked[name] for name in {name.partition(".")[0] for name in changed}}
