"""Prove that a run resumes exactly: train from its last checkpoint but one to its last, compare.

Run: `finetune verify RUN --resume`, or `python -m trainer.training.verify_resume VOLUME RUN`.
Takes the time of the steps in between and the space of two checkpoints below the volume's
cache/, deleted at the end. The run is read only, and may be running or done.
Exit codes: 0 the same, 1 not the same, 78 it can't be compared, 143 interrupted.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.contract.asked_process import exit_code_of
from trainer.contract.checkpoints import name_of, steps_there
from trainer.contract.errors import RequestError
from trainer.contract.files import link_or_copy
from trainer.contract.json_text import parse_json
from trainer.contract.locks import only_one, taken
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest, verify
from trainer.contract.step_configs import FinetuneConfig, load_step_config
from trainer.contract.volume import path_on_volume
from trainer.tokens.store import TokenStore
from trainer.training.job import Job
from trainer.training.save.records import MEASURED, NAMES
from trainer.training.schedule import Shortened

SCRATCH = "verify-resume-"
# Of a checkpoint's manifest: what training determines, the clock apart.
_DETERMINED = ("step", "tokens", "loss", "skipped_in_row", "optimizer")

_Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint, and the files that grow beside it as they were then."""

    place: Path
    run: Path
    about: dict[str, Any]

    @classmethod
    def at(cls, place: Path, run: Path) -> "_Checkpoint":
        return cls(place, run, read_manifest(place).about)

    def lines(self, name: str, since: "_Checkpoint") -> list[dict[str, Any]]:
        """What was added to a file of the run, less what is measured of the machine."""
        first, last = (c.about["records"].get(name, 0) for c in (since, self))
        with open(self.run / name, "rb") as file:
            file.seek(first)
            text = file.read(last - first)
        lines = [parse_json(line) for line in text.splitlines()]
        return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def rehearse(volume: Path, run_name: str) -> list[str]:
    """Train again between the run's last two checkpoints; what came out otherwise, if anything.

    Raises:
        RequestError: There are not two good ones that can be compared.
    """
    run = RunFolder(volume, run_name)
    older, newer = _last_two(run)
    job = _job_of(run, older.about, newer.about)
    first, last = older.about["step"], newer.about["step"]
    with scratch_folder(volume) as folder:
        below = f"cache/{folder.name}"
        scratch = RunFolder(volume, f"{below}/run")
        _link(older.place, scratch.checkpoints)
        newer = replace(newer, place=_link(newer.place, scratch.root / "recorded"))
        _copy_records(run.root, scratch.root, older.about["records"])
        print(f"trains {run_name} again from step {first} to step {last}", flush=True)
        config = replace(job.config, run_name=f"{below}/run", logs=f"{below}/logs", wandb_key="")
        train_again(replace(job, config=config), newer.about["threads"])
        again = _Checkpoint.at(scratch.checkpoints / newer.place.name, scratch.root)
        by_clock = (run.record() or {})["config"]["checkpoints"]["every_minutes"] > 0
        found = [
            *different_numbers(newer.place, again.place),
            *_differences(older, newer, again, by_clock),
        ]
    if found:
        return found + [
            f"{name} was {newer.about[name]}, here it is {again.about[name]}"
            for name in ("torch", "device")
            if newer.about[name] != again.about[name]
        ]
    print(
        f"{run_name} resumes exactly: from step {first} to step {last} weights, Adam's moments, "
        "losses and samples came out the same, bit for bit"
    )
    return []


@contextmanager
def scratch_folder(volume: Path) -> Iterator[Path]:
    """A folder in cache/ for this time; those that killed processes left go first."""
    cache = volume / "cache"
    cache.mkdir(exist_ok=True)
    for left in cache.glob(f"{SCRATCH}*"):
        if (left / "lock").exists() and not taken(left / "lock"):
            shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=SCRATCH, dir=cache) as name,
        only_one(Path(name) / "lock"),
    ):
        yield Path(name)


def _last_two(run: RunFolder) -> list[_Checkpoint]:
    if run.record() is None:
        raise RequestError(f"RUN is not a run on {run.root.parent} (got {run.root.name!r}).")
    places = [run.checkpoints / name_of(step) for step in steps_there(run.checkpoints)[-2:]]
    if len(places) < 2:
        raise RequestError(
            f"{run.root.name} has too few checkpoints to compare (got {len(places)}). It takes "
            "two. Train with a smaller save_steps, and with keep_last of checkpoints at 2 or more."
        )
    if problems := [problem for place in places for problem in verify(place)]:
        raise RequestError(
            f"{run.root.name} has a damaged checkpoint among its last two: {'; '.join(problems)}. "
            "Run it again: what is damaged is set aside, and made anew."
        )
    return [_Checkpoint.at(place, run.root) for place in places]


def _job_of(run: RunFolder, older: Mapping[str, Any], newer: Mapping[str, Any]) -> Job:
    """What the processes were told when they trained from one checkpoint to the other."""
    record = run.record() or {}
    if "config" not in record:
        raise RequestError(f"{run.root.name} was made by a version that kept no config of it.")
    same = ("processes", "threads", "zero_stage", "precision", "offload", "torch")
    if changed := [f"{n} {older[n]}, then {newer[n]}" for n in same if older[n] != newer[n]]:
        raise RequestError(
            f"{run.root.name} was not trained in one way between its last two checkpoints "
            f"({'; '.join(changed)}), so nothing can be expected to the bit. Let it save twice "
            "more, then verify again."
        )
    given = {
        **record["config"],
        "volume": str(run.root.parent),
        "processes": newer["processes"],  # of all nodes
        "nodes": 1,
        "precision": newer["precision"],
        "checkpoints": {"keep_last": 1, "keep_best": False},
    }
    given.pop("wandb_key", None)
    config = load_step_config("finetune", json.dumps(given))
    assert isinstance(config, FinetuneConfig)
    sizes = {
        name: newer[name]
        for name in "num_contexts global_batch batch_size zero_stage offload".split()
    }
    store = TokenStore.open(path_on_volume(config.volume, "tokens", config.tokens))
    return Job(
        config=config,
        num_ids=store.manifest.vocab_size,
        checkpointed_layers=newer["checkpointed_layers"],
        from_step=older["step"],
        until=newer["step"],
        # The clock decided that, after the older one perhaps.
        shortened=Shortened(*newer["shortened"]) if newer.get("shortened") else None,
        left_out=tuple((first, stop) for first, stop in newer.get("left_out", ())),
        **sizes,
    )


def _link(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint once more, by hard links where the volume has them."""
    folder.mkdir(parents=True)
    try:
        shutil.copytree(checkpoint, folder / checkpoint.name, copy_function=link_or_copy)
    except (FileNotFoundError, shutil.Error) as error:
        raise RequestError(
            f"{checkpoint.name} was pruned while it was looked at: the run continues. Try again."
        ) from error
    return folder / checkpoint.name


def _copy_records(run: Path, scratch: Path, sizes: Mapping[str, int]) -> None:
    for name in NAMES:
        with open(run / name, "rb") as file:
            (scratch / name).write_bytes(file.read(sizes.get(name, 0)))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file."""
    return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def train_again(job: Job, threads: int) -> None:
    """Train in this process, or in as many as the job says, with so many threads each."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # sums come out otherwise with another number
    processes = job.config.processes
    if processes == 1:
        import torch

        from trainer.training.process import train

        torch.set_num_threads(threads)  # torch may be loaded already
        train(job)
    else:
        from trainer.training.processes.launch import train_in_processes

        train_in_processes(job, processes)


def _differences(
    older: _Checkpoint, newer: _Checkpoint, again: _Checkpoint, by_clock: bool
) -> Iterator[str]:
    """What else training determines and came out otherwise.

    Args:
        by_clock: Whether the run made checkpoints by the clock, too.
    """
    expected, found = newer.about, again.about
    for name in _DETERMINED:
        if found[name] != expected[name]:
            yield f"{name} is {found[name]!r}, was {expected[name]!r}"
    for name in NAMES:
        was, now = (c.lines(name, older) for c in (newer, again))
        if name != "skipped.jsonl":
            was, now = _of_both(was, now, None if by_clock else expected["step"])
        if was != now:
            pairs = zip(was, now, strict=False)
            step = next((a["step"] for a, b in pairs if a != b), expected["step"])
            yield f"{name} has other lines from step {step} on"


def _of_both(was: _Lines, now: _Lines, step: int | None) -> tuple[_Lines, _Lines]:
    """The lines without validations and samples that one of them alone has.

    Stopped while it validated, a run saves first and validates after going on; and where the
    clock calls for it (`step` None), that may be at any step.
    """
    looked = [{line["step"] for line in lines if "loss" not in line} for lines in (was, now)]
    alone = {s for s in looked[0] ^ looked[1] if step is None or s == step}
    return (
        [line for line in was if "loss" in line or line["step"] not in alone],
        [line for line in now if "loss" in line or line["step"] not in alone],
    )


def different_numbers(newer: Path, again: Path) -> Iterator[str]:
    """How far weights and moments are apart, by kind."""
    if read_manifest(newer).files == read_manifest(again).files:
        return
    import numpy as np

    from trainer.checkpoints.tensors import SliceReader
    from trainer.training.engine.partitions import KINDS

    was, now = SliceReader(newer), SliceReader(again)
    for kind in KINDS:
        largest, where = 0.0, []
        for name in was.names(kind):
            key = f"{kind}/{name}"
            pair = [np.empty(was.numel(key), np.float32) for _ in range(2)]
            for reader, out in zip((was, now), pair, strict=True):
                reader.read(key, 0, out)
            if pair[0].tobytes() != pair[1].tobytes():
                where.append(name)
                largest = max(largest, float(np.abs(pair[0] - pair[1]).max()))
        if where:
            yield f"{kind} differs in {len(where)} tensors (first {where[0]}), by up to {largest:g}"
    names = sorted({*was.names("buffer"), *now.names("buffer")})
    if where := [n for n in names if _buffer_bytes(was, n) != _buffer_bytes(now, n)]:
        yield f"buffer differs in {len(where)} tensors (first {where[0]})"


def _buffer_bytes(reader: Any, name: str) -> bytes | None:
    return reader.buffer(name).tobytes() if name in reader.names("buffer") else None


def act(arguments: list[str]) -> int:
    """Do what is asked, with its errors raised; its exit code."""
    differences = rehearse(Path(arguments[0]).resolve(), arguments[1])
    for difference in differences:
        print(difference)
    return int(bool(differences))


def main(arguments: list[str]) -> int:
    return exit_code_of(act, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
