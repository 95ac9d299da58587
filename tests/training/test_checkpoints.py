"""What counts as a good checkpoint, what happens to bad ones, and which are kept."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training.forking import Strike, log_of, run_step
from tests.training.volume import make_config, make_volume, read_lines
from trainer.checkpoints.tensors import SliceReader, write_tensors
from trainer.contract.checkpoints import (
    clear_parts,
    name_of,
    newest_good,
    part_of,
    prune,
    set_aside,
    steps_there,
    verify_run,
)
from trainer.contract.errors import DamagedError
from trainer.contract.sealed_folder import seal, verify


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
    assert "resumes from step 8 of 12" in log_of(config)
    assert [line.get("loss") for line in read_lines(run / "metrics.jsonl")] == losses
    assert (run / "final" / "model.safetensors").read_bytes() == weights


def test_with_no_good_checkpoint_the_run_stops_and_nothing_is_lost(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), epochs=1)
    run = tmp_path / "run"
    strike = Strike("trainer.training.save.final:seal", 1)
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


def test_some_stay_for_replays_the_first_of_each_stretch(tmp_path: Path) -> None:
    for step in (5, 10, 12, 20, 23, 25, 30, 41):
        make_checkpoint(tmp_path, step)
        prune(tmp_path, keep_last=1, keep_best=False, keep_every=10)
    assert steps_there(tmp_path) == [10, 20, 30, 41]
    prune(tmp_path, keep_last=1, keep_best=False)
    assert steps_there(tmp_path) == [41]
