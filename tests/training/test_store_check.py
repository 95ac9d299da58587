"""A damaged token store is found when it is opened for training, and nothing is trained on it."""

import json
import os
from pathlib import Path

import pytest

from flows.cli.runs import overview
from tests.training.forking import log_of, run_step
from tests.training.volume import make_config, make_volume
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import file_record
from trainer.tokens.store import FAST, FILES, Manifest, read_manifest
from trainer.training.store_check import StoreCheck


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_volume(tmp_path_factory.mktemp("home") / "finetune-data")


def flip(path: Path) -> bytes:
    """Change one byte; size and mtime stay. Returns what was there."""
    status, good = path.stat(), path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return good


def with_fast_digests(folder: Path) -> None:
    """Make it a store of this version: the fast digest stands beside SHA-256."""
    fields = vars(read_manifest(folder)[0])
    digests = {n: entry | file_record(folder / n, FAST) for n, entry in fields["digests"].items()}
    made = Manifest(**{**fields, "digests": digests})
    (folder / "manifest.json").write_text(made.to_json())


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_flipped_byte_in_any_file_is_found(volume: Path, name: str, fast: bool) -> None:
    store = volume / "tokens/tiny"
    if fast:
        with_fast_digests(store)
    assert StoreCheck(store).problem() is None
    before = (store / name).stat().st_mtime_ns
    good = flip(store / name)
    problem = StoreCheck(store).problem()
    assert problem and name in problem and "Run it again" in problem
    # The tokenize step reads it again, although it may remember the time.
    assert (store / name).stat().st_mtime_ns != before
    said: list[str] = []
    assert not overview.verify_store(store, "tokens/tiny", said.append)
    assert name in said[0]
    (store / name).write_bytes(good)
    assert overview.verify_store(store, "tokens/tiny", said.append)


def test_nothing_is_trained_on_a_damaged_store(volume: Path) -> None:
    config = make_config(volume, epochs=1)
    good = flip(volume / "tokens/tiny/tokens.bin")
    assert run_step("finetune", config) == 1
    assert "tokens.bin has other content" in log_of(config)
    run = RunFolder(volume, "run")
    assert (not run.final.exists() and not run.checkpoints.exists()) or not any(
        run.checkpoints.glob("step-*")
    )
    assert not run.metrics.exists() or not run.metrics.read_text()
    (volume / "tokens/tiny/tokens.bin").write_bytes(good)
    assert run_step("finetune", config) == 0, log_of(config)
    said: list[str] = []
    assert overview.verify_run(volume.parent, volume.name, "run", said.append), said
    assert "tokens/tiny: good" in said
    flip(volume / "tokens/tiny/lengths.bin")
    assert not overview.verify_run(volume.parent, volume.name, "run", said.append)
    assert json.loads(run.record_path.read_text())["tokens"] == "tokens/tiny"
