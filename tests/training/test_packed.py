"""Records that are packed into contexts are trained as one at a time."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.forking import Strike, log_of, run_step
from tests.training.test_resume import ENGINE, SAVING, assert_same, kill_and_go_on
from tests.training.volume import make_config, make_packed_volume, read_lines
from trainer.contract.topics import SkipConfig
from trainer.tokens.left_out import left_out
from trainer.tokens.store import TokenStore
from trainer.training.data.batches import read_batch


def packed_config(root: Path, together: int = 2, **changes: Any) -> dict[str, Any]:
    """Four records a micro-batch, in two or in four contexts."""
    names = ("architecture", "dropout")
    volume = make_packed_volume(
        root, together=together, **{n: changes.pop(n) for n in names if n in changes}
    )
    return make_config(volume, batch_size=4 // together, gradients=1, save_steps=3, **changes)


def losses_of(config: dict[str, Any], name: str = "loss") -> list[float]:
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    lines = read_lines(Path(config["volume"]) / "run/metrics.jsonl")
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("architecture", ["gptj", "neox", "llama"])
def test_losses_are_those_of_one_record_in_each_context(tmp_path: Path, architecture: str) -> None:
    packed, alone = (
        packed_config(
            tmp_path / str(together), together, architecture=architecture, no_shuffle=True
        )
        for together in (2, 1)
    )
    found, expected = losses_of(packed), losses_of(alone)
    assert len(found) == len(expected) == 10 and found[-1] < found[0]
    assert np.abs(np.array(found) - expected).max() < 1e-5
    found, expected = (
        [line["eval_loss"] for line in read_lines(Path(c["volume"]) / "run/metrics.jsonl")
         if "eval_loss" in line]
        for c in (packed, alone)
    )  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-5) and found


def test_killed_and_gone_on_it_is_the_unbroken_run(tmp_path: Path) -> None:
    whole, broken = (packed_config(tmp_path / name, dropout=0.2) for name in ("whole", "broken"))
    assert run_step("finetune", whole) == 0, log_of(whole)[-3000:]
    strikes = [
        Strike(f"{ENGINE}:Engine.loss", 9),
        Strike(f"{SAVING}:seal", 1, after=True),
        Strike(f"{ENGINE}:Engine.step", 1, signum=signal.SIGTERM),
    ]
    kill_and_go_on(broken, strikes)
    assert_same(broken, whole)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    alone = packed_config(tmp_path / "one", epochs=1)
    together = packed_config(tmp_path / "two", epochs=1, processes=2)
    together |= {"batch_size": 1, "zero_stage": 2}
    assert np.abs(np.array(losses_of(together)) - losses_of(alone)).max() < 1e-5


def test_what_is_skipped_is_in_no_step(tmp_path: Path) -> None:
    config = packed_config(tmp_path / "volume", epochs=1)
    store = TokenStore.open(Path(config["volume"]) / "tokens/tiny")
    skip = SkipConfig(documents=["dataset/made-up.txt#3"])
    found = left_out(store, skip)
    assert found is not None and found.contexts.tolist() == [1]
    assert found.figures["tokens"] == store.trained_tokens(np.array([1]))
    assert found.figures["other_documents"] == 1
    config["skip"] = {"documents": list(skip.documents)}
    tokens = sum(losses_of(config, "tokens")[-1:])
    assert tokens == store.trained_tokens(slice(0, 10)) - found.figures["tokens"]


def test_batches_say_where_each_id_stands(tmp_path: Path) -> None:
    store = TokenStore.open(make_packed_volume(tmp_path / "volume") / "tokens/tiny")
    batch = read_batch(store, np.arange(2))
    wide = read_batch(store, np.arange(2), 3)
    for made in (batch, wide):
        assert made.positions is not None and made.trained is not None
        assert made.positions.shape == made.ids.shape
        assert not made.trained[made.positions == 0].any()
    first, second = (int(span.end) for span in store.document_of(0))
    assert batch.positions is not None
    assert batch.positions[0, first - 1 : first + 1].tolist() == [first - 1, 0]
    assert second == int(batch.lengths[0])
    empty = read_batch(store, np.arange(0))
    assert empty.positions is not None and not empty.lengths.any()
