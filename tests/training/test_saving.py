"""Checkpoints written behind training: on a full disk, from where they are, by a broken thread."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.small_disk import small_disk
from tests.training.forking import Strike, log_of, run_step
from tests.training.volume import make_config, make_volume, read_lines
from trainer.checkpoints.tensors import SliceReader
from trainer.contract.checkpoints import name_of, newest_good, steps_there, verify_run
from trainer.contract.sealed_folder import verify
from trainer.contract.topics import CheckpointsConfig
from trainer.training.engine.partitions import KINDS, Slice
from trainer.training.record.tensorboard import TensorBoard
from trainer.training.save import retrying
from trainer.training.save.records import Records
from trainer.training.save.saving import Saver


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    with small_disk(tmp_path / "disk", megabytes=64) as place:
        yield place


FAST = "trainer.training.save.retrying:RETRY_SECONDS=0.05"
# Killed by the thread that has just sealed step 4, so there are two checkpoints for sure.
STOPPED_AT_4 = Strike("trainer.training.save.saving:seal", 2, after=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    """A file that takes all of the disk but `leave_bytes`."""
    path = disk / "ballast"
    with open(path, "wb") as file:
        file.write(b"\0" * (shutil.disk_usage(disk).free - leave_bytes))
    return path


def test_a_full_disk_fails_the_run_but_keeps_the_last_good_checkpoint(disk: Path) -> None:
    config = make_config(make_volume(disk), save_steps=2)
    run = disk / "run"
    run_step("finetune", config, STOPPED_AT_4)
    before = steps_there(run / "checkpoints")
    assert before == [2, 4]
    shutil.rmtree(run / "checkpoints" / "step-00000002")  # only the last good one is left
    ballast = fill(disk, 100_000)  # a checkpoint takes 380 kB
    assert run_step("finetune", config, setting=FAST) == 1
    assert "a checkpoint can't be written ([Errno 28] the volume lacks 0.3 MiB" in log_of(config)
    said = log_of(config)
    # One sentence: what is needed, what is free, what can be freed; and before it trains.
    figures = r"3\d\d\.\d kB are needed and \d+\.\d kB are free"
    sentence = rf"the volume is full \({figures}\); `finetune prune"
    assert re.search(rf"a checkpoint could not be written: {sentence}", said), said
    assert re.search(rf"warning: the next checkpoint has no room: {sentence}", said), said
    assert newest_good(run / "checkpoints")[0] == run / "checkpoints" / "step-00000004"
    ballast.unlink()
    assert run_step("finetune", config) == 0, log_of(config)
    assert log_of(config).count("has no room") == 2  # as text and as a notice, of that time alone
    assert not any(verify_run(run).values())


@pytest.mark.parametrize("processes", [1, 2])
def test_where_room_is_short_older_checkpoints_go_first(disk: Path, processes: int) -> None:
    changes = {"processes": processes, "gradients": 2 // processes}
    config = make_config(make_volume(disk), save_steps=2, **changes)
    run = disk / "run"
    run_step("finetune", config, STOPPED_AT_4)
    assert steps_there(run / "checkpoints") == [2, 4]
    fill(disk, 200_000)  # room for the next one only where step 2 was
    assert run_step("finetune", config, setting=FAST) == 0, log_of(config)
    assert steps_there(run / "checkpoints")[-1] == 12
    assert not any(verify_run(run).values())


def a_saver(disk: Path) -> Saver:
    """Of one process that trains four numbers."""
    piece = Slice("w", 0, 4, (4,), {kind: torch.arange(4.0) for kind in KINDS})
    (disk / "checkpoints").mkdir(exist_ok=True)
    return Saver(disk / "checkpoints", [piece], 0, 1, CheckpointsConfig())


def test_what_waits_for_room_is_written_whole_once_there_is_some(
    disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Room comes while it waits.
    monkeypatch.setattr(
        retrying, "time", SimpleNamespace(sleep=lambda _: ballast.unlink(missing_ok=True))
    )
    (disk / "run").mkdir()
    records, line = Records(disk / "run"), {"step": 1, "loss": 0.5, "text": "w" * 6000}
    curves = TensorBoard(disk / "curves", disk / "none", 0)
    saver = a_saver(disk)
    writes = [
        (lambda: records.add("metrics.jsonl", line), "metrics.jsonl can't be written"),
        (lambda: [curves.add(line) for _ in range(200)], "curves can't be written"),
        (lambda: [saver.save(1, {}), saver.wait()], "a checkpoint can't be written"),
    ]
    for write, said in writes:
        ballast = fill(disk, 4096)  # one page: less than any of them takes
        write()
        assert said in capfd.readouterr().out
    assert read_lines(disk / "run" / "metrics.jsonl") == [line]
    events = EventAccumulator(str(disk / "curves")).Reload().Scalars("train/loss")
    assert [event.value for event in events] == [0.5] * 200
    assert verify(disk / "checkpoints" / name_of(1)) == []


def test_what_is_written_in_place_is_of_the_step_it_was_saved_at(tmp_path: Path) -> None:
    numbers = 2**22  # enough for the writing to take longer than what follows
    tensors = {kind: torch.full((numbers,), 1.0) for kind in KINDS}
    saver = Saver(
        tmp_path, [Slice("w", 0, numbers, (numbers,), tensors)], 0, 1, CheckpointsConfig(),
        in_place=True,
    )  # fmt: skip
    saver.save(1, {})
    saver.let_change()
    for tensor in tensors.values():
        tensor.fill_(2.0)
    read, reader = np.empty(numbers, np.float32), SliceReader(saver.wait())
    for kind in KINDS:
        reader.read(f"{kind}/w", 0, read)
        assert (read == 1.0).all()


def test_a_thread_that_breaks_ends_training_at_the_next_look(tmp_path: Path) -> None:
    saver = a_saver(tmp_path)
    saver.save(1, {"unwritable": object()})
    saver._thread.join()  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="not JSON serializable"):
        saver.check()
    assert not list((tmp_path / "checkpoints").iterdir())
