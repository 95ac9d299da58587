"""What counts as a good checkpoint, what happens to bad ones, and which are kept."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.forking import Strike, log_of, run_step
from tests.training.volume import make_config, make_volume, read_lines
from trainer.checkpoints import newest_good, seal, set_aside, steps_there, verify, verify_run
from trainer.checkpoints.folder import clear_parts, name_of, part_of, prune
from trainer.checkpoints.tensors import SliceReader, write_tensors
from trainer.errors import DamagedError
from trainer.topics import CheckpointsConfig
from trainer.training import retrying
from trainer.training.partitions import KINDS, Slice
from trainer.training.records import Records
from trainer.training.saving import Saver
from trainer.training.tracking import TensorBoard


def make_checkpoint(folder: Path, step: int, eval_loss: float | None = None) -> Path:
    place = folder / name_of(step)
    part = part_of(place)
    part.mkdir(parents=True)
    weights = {"weight/a@0": np.arange(6, dtype=np.float32) + step}
    known = {"w.safetensors": write_tensors(part / "w.safetensors", weights)}
    (part / "more").mkdir()
    (part / "more" / "text.txt").write_text("some text")
    seal(part, place, {"step": step, "eval_loss": eval_loss}, known)
    return place


def flip_a_byte(checkpoint: Path) -> None:
    path = next(checkpoint.glob("*.safetensors"))
    with open(path, "r+b") as file:
        file.seek(-3, os.SEEK_END)
        byte = file.read(1)
        file.seek(-3, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))


def cut_short(checkpoint: Path) -> None:
    path = next(checkpoint.glob("*.safetensors"))
    os.truncate(path, path.stat().st_size - 1)


def lose_a_file(checkpoint: Path) -> None:
    next(checkpoint.glob("*.safetensors")).unlink()


def add_a_file(checkpoint: Path) -> None:
    (checkpoint / "stray.txt").write_text("what is this?")


def lose_the_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def spoil_the_manifest(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text()[:-20])


def alter_the_manifest(checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text().replace('"step": 7', '"step": 6'))


DAMAGES = [flip_a_byte, cut_short, lose_a_file, add_a_file]
DAMAGES += [lose_the_manifest, spoil_the_manifest, alter_the_manifest]


def test_an_intact_checkpoint_has_no_problems(tmp_path: Path) -> None:
    assert verify(make_checkpoint(tmp_path, 5)) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found_and_the_one_before_is_used(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    good, bad = make_checkpoint(tmp_path, 5), make_checkpoint(tmp_path, 7)
    damage(bad)
    found, [(path, problems)] = newest_good(tmp_path)
    assert found == good
    assert path == bad and problems and all(bad.name in problem for problem in problems)


def test_with_none_intact_it_stops_instead_of_starting_over(tmp_path: Path) -> None:
    flip_a_byte(make_checkpoint(tmp_path, 5))
    with pytest.raises(DamagedError, match="none of the run's 1 checkpoints is intact"):
        newest_good(tmp_path)
    assert steps_there(tmp_path) == [5]
    set_aside(tmp_path / name_of(5))  # no less bad for being called so
    with pytest.raises(DamagedError, match="damaged-step-00000005 was set aside before"):
        newest_good(tmp_path)


def test_without_any_checkpoint_it_begins(tmp_path: Path) -> None:
    assert newest_good(tmp_path) == (None, [])
    assert newest_good(tmp_path / "missing") == (None, [])


def test_the_newest_and_the_best_are_never_pruned(tmp_path: Path) -> None:
    for step, loss in [(10, 3.0), (20, 1.0), (30, 2.0), (40, None), (50, 2.5)]:
        make_checkpoint(tmp_path, step, loss)
    prune(tmp_path, keep_last=2, keep_best=True)
    assert steps_there(tmp_path) == [20, 40, 50]
    prune(tmp_path, keep_last=2, keep_best=True, max_bytes=1)
    assert steps_there(tmp_path) == [20, 50]
    prune(tmp_path, keep_last=1, keep_best=False, max_bytes=1)
    assert steps_there(tmp_path) == [50]


def test_nothing_half_written_is_left_to_be_believed(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 5)
    part = part_of(tmp_path / name_of(7))
    part.mkdir()
    part.with_name(f"{part.name}.rank-00001").write_text("{}")  # a dead process' note
    clear_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name_of(5)]


def test_slices_of_several_writers_are_read_as_one(tmp_path: Path) -> None:
    numbers = np.arange(10, dtype=np.float32)
    write_tensors(tmp_path / "a.safetensors", {"weight/x@0": numbers[:4]})
    write_tensors(tmp_path / "b.safetensors", {"weight/x@4": numbers[4:]})
    out = np.empty(5, dtype=np.float32)
    reader = SliceReader(tmp_path)
    reader.read("weight/x", 2, out)
    assert out.tolist() == numbers[2:7].tolist()
    with pytest.raises(ValueError, match="has 2 of 5 numbers from 8 on"):
        reader.read("weight/x", 8, out)
    with pytest.raises(ValueError, match="weight/x has 10 numbers instead of 5"):
        reader.read("weight/x", 0, out, whole=5)


def test_torch_reads_what_is_written(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    arrays = {"weight/x@0": np.arange(5, dtype=np.float32), "empty": np.empty(0, np.float32)}
    write_tensors(tmp_path / "a.safetensors", arrays)
    loaded = load_file(tmp_path / "a.safetensors")
    assert {name: a.tolist() for name, a in loaded.items()} == {
        name: a.tolist() for name, a in arrays.items()
    }


def test_a_damaged_checkpoint_is_set_aside_and_the_run_is_still_the_same(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path))
    run = tmp_path / "run"
    assert run_step("finetune", config) == 0, log_of(config)
    losses = [line.get("loss") for line in read_lines(run / "metrics.jsonl")]
    weights = (run / "final" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "final")
    flip_a_byte(run / "checkpoints" / "step-00000012")
    assert run_step("finetune", config) == 0, log_of(config)
    assert "step-00000012 was set aside as damaged-step-00000012" in log_of(config)
    assert "its digest is not the manifest's" in log_of(config)
    assert "goes on from step 8 of 12" in log_of(config)
    assert [line.get("loss") for line in read_lines(run / "metrics.jsonl")] == losses
    assert (run / "final" / "model.safetensors").read_bytes() == weights


def test_with_no_good_checkpoint_the_run_stops_and_nothing_is_lost(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), epochs=1)
    run = tmp_path / "run"
    strike = Strike("trainer.training.final:seal", 1)
    run_step("finetune", config, strike)
    for step in steps_there(run / "checkpoints"):
        flip_a_byte(run / "checkpoints" / name_of(step))
    metrics = (run / "metrics.jsonl").read_bytes()
    assert run_step("finetune", config) == 1
    assert "none of the run's 2 checkpoints is intact" in log_of(config)
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert len(steps_there(run / "checkpoints")) == 2


def test_a_damaged_final_model_is_made_again(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), epochs=1)
    run = tmp_path / "run"
    assert run_step("finetune", config) == 0, log_of(config)
    weights = (run / "final" / "model.safetensors").read_bytes()
    flip_a_byte(run / "final")
    assert verify_run(run)["final"]
    assert run_step("finetune", config) == 0, log_of(config)
    assert (run / "final" / "model.safetensors").read_bytes() == weights
    assert not any(verify_run(run).values())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB; skips where this user may mount none."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # a failed test has files open


FAST = "trainer.training.retrying:RETRY_SECONDS=0.05"
# Killed by the thread that has just sealed step 4, so there are two checkpoints for sure.
STOPPED_AT_4 = Strike("trainer.training.saving:seal", 2, after=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    """A file that takes all of the disk but `leave_bytes`."""
    path = disk / "ballast"
    with open(path, "wb") as file:
        file.write(b"\0" * (shutil.disk_usage(disk).free - leave_bytes))
    return path


def test_a_full_disk_fails_the_run_but_keeps_the_last_good_checkpoint(small_disk: Path) -> None:
    config = make_config(make_volume(small_disk), save_steps=2)
    run = small_disk / "run"
    run_step("finetune", config, STOPPED_AT_4)
    before = steps_there(run / "checkpoints")
    assert before == [2, 4]
    shutil.rmtree(run / "checkpoints" / "step-00000002")  # only the last good one is left
    ballast = fill(small_disk, 100_000)  # a checkpoint takes 380 kB
    assert run_step("finetune", config, setting=FAST) == 1
    assert "a checkpoint can't be written ([Errno 28] the volume lacks 0.3 MiB" in log_of(config)
    assert "a checkpoint could not be written" in log_of(config)
    assert newest_good(run / "checkpoints")[0] == run / "checkpoints" / "step-00000004"
    ballast.unlink()
    assert run_step("finetune", config) == 0, log_of(config)
    assert not any(verify_run(run).values())


@pytest.mark.parametrize("processes", [1, 2])
def test_where_room_is_short_older_checkpoints_go_first(small_disk: Path, processes: int) -> None:
    changes = {"processes": processes, "gradients": 2 // processes}
    config = make_config(make_volume(small_disk), save_steps=2, **changes)
    run = small_disk / "run"
    run_step("finetune", config, STOPPED_AT_4)
    assert steps_there(run / "checkpoints") == [2, 4]
    fill(small_disk, 200_000)  # room for the next one only where step 2 was
    assert run_step("finetune", config, setting=FAST) == 0, log_of(config)
    assert steps_there(run / "checkpoints")[-1] == 12
    assert not any(verify_run(run).values())


def a_saver(disk: Path) -> Saver:
    """Of one process that trains four numbers."""
    piece = Slice("w", 0, 4, (4,), {kind: torch.arange(4.0) for kind in KINDS})
    (disk / "checkpoints").mkdir(exist_ok=True)
    return Saver(disk / "checkpoints", [piece], 0, 1, CheckpointsConfig())


def test_what_waits_for_room_is_written_whole_once_there_is_some(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.05)
    (small_disk / "run").mkdir()
    records, line = Records(small_disk / "run"), {"step": 1, "loss": 0.5, "text": "w" * 6000}
    curves = TensorBoard(small_disk / "curves", small_disk / "none", 0)
    saver = a_saver(small_disk)
    writes = [
        (lambda: records.add("metrics.jsonl", line), "metrics.jsonl can't be written"),
        (lambda: [curves.add(line) for _ in range(200)], "curves can't be written"),
        (lambda: [saver.save(1, {}), saver.wait()], "a checkpoint can't be written"),
    ]
    for write, said in writes:
        ballast = fill(small_disk, 4096)  # one page: less than any of them takes
        threading.Timer(0.12, ballast.unlink).start()
        write()
        assert said in capfd.readouterr().out
    assert read_lines(small_disk / "run" / "metrics.jsonl") == [line]
    events = EventAccumulator(str(small_disk / "curves")).Reload().Scalars("train/loss")
    assert [event.value for event in events] == [0.5] * 200
    assert verify(small_disk / "checkpoints" / name_of(1)) == []


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
