"""A run that leaves documents out, from its start or from a checkpoint: the same bytes."""

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.forking import Strike, log_of, run_step
from tests.training.test_resume import ENGINE, SAVING, assert_same, comparable, kill_and_go_on
from tests.training.volume import make_config, make_volume, read_lines
from trainer.contract.checkpoints import name_of, read_manifest
from trainer.tokens.store import TokenStore
from trainer.training.plan import TrainingPlan

PATH = "dataset/made-up.txt"


def plan_of(**changes: Any) -> TrainingPlan:
    """The plan of `make_config`: 21 contexts, 4 a step, 2 epochs."""
    known: dict[str, Any] = {"num_contexts": 21, "global_batch": 4, "batch_size": 2, "epochs": 2}
    known |= {"seed": 42, "shuffle": True, "learn_rate": 0.01, "warmup_ratio": 0.1}
    return TrainingPlan(**known | changes)


def skipping(*contexts: int) -> dict[str, Any]:
    """The made-up store has a document for each context."""
    return {"documents": [f"{PATH}#{number + 1}" for number in contexts], "sha256": []}


def finetuned(root: Path, *strikes: Strike, **changes: Any) -> dict[str, Any]:
    config = make_config(make_volume(root, dropout=changes.pop("dropout", 0.2)), **changes)
    kill_and_go_on(config, list(strikes))
    return config


def repeated(whole: dict[str, Any], root: Path, step: int, skip: dict[str, Any]) -> dict[str, Any]:
    """The run `whole` once more from its checkpoint after `step` steps, without the documents."""
    volume = Path(whole["volume"])
    shutil.copytree(volume, root)
    run = root / "run"
    about = read_manifest(run / "checkpoints" / name_of(step)).about
    for place in (run / "checkpoints").iterdir():
        if place.name > name_of(step):
            shutil.rmtree(place)
    shutil.rmtree(run / "final")
    assert about["step"] == step
    config = {**whole, "volume": str(root), "skip": skip}
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    return config


def test_a_context_that_is_left_out_leaves_its_place_empty() -> None:
    whole, plan = plan_of(), plan_of(left_out=((3, 5), (20, 21)))
    for step in range(plan.steps):
        contexts = whole.contexts_of(step)
        assert (plan.contexts_of(step) == contexts).all()
        assert plan.learning_rate(step) == whole.learning_rate(step)
        if set(contexts.tolist()) <= {3, 4, 20}:
            continue  # nothing of it is left
        for rank in (0, 1):
            shares = zip(whole.share(contexts, rank, 2), plan.share(contexts, rank, 2), strict=True)
            for there, kept in shares:
                assert kept.tolist() == [c for c in there if c not in (3, 4, 20)]


def test_a_micro_batch_that_no_process_trains_is_none() -> None:
    step = plan_of().contexts_of(0)
    plan = plan_of(left_out=tuple((c, c + 1) for c in sorted(step[:2].tolist())))
    assert [len(share) for share in plan.share(step, 0, 1)] == [2]
    assert [len(share) for share in plan.share(step, 0, 2)] == [0]
    assert [len(share) for share in plan.share(step, 1, 2)] == [2]
    gone = plan_of(left_out=tuple((c, c + 1) for c in sorted(step.tolist())))
    assert gone.share(step, 0, 1) == []


def test_a_step_with_nothing_left_changes_nothing_and_is_recorded(tmp_path: Path) -> None:
    gone = plan_of().contexts_of(2).tolist()
    config = finetuned(tmp_path / "run", skip=skipping(*gone), save_steps=1, epochs=1)
    lines = read_lines(tmp_path / "run/run/metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert [line.get("left_out", 0) for line in steps] == [0, 0, 4, 0, 0, 0]
    third = steps[2]
    assert third["without_update"] and third["loss"] is None and third["grad_norm"] is None
    assert third["learning_rate"] == plan_of(epochs=1).learning_rate(2)
    assert third["tokens"] == steps[1]["tokens"] < steps[3]["tokens"]
    evals = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert evals[1] == evals[2] != evals[3]
    assert "left out of training: 4 contexts with" in log_of(config)
    about = read_manifest(tmp_path / "run/run/final").about
    assert about["figures"]["tokens"] == steps[-1]["tokens"]


def test_the_loss_is_the_mean_over_the_tokens_that_remain(tmp_path: Path) -> None:
    first = plan_of().contexts_of(0)
    config = finetuned(tmp_path / "a", skip=skipping(int(first[1])), epochs=1, dropout=0.0)
    store = TokenStore.open(Path(config["volume"]) / "tokens/tiny")
    tokens = read_lines(tmp_path / "a/run/metrics.jsonl")[0]["tokens"]
    assert tokens == store.trained_tokens(first[[0, 2, 3]])
    # The same step on the three contexts alone, in one micro-batch, has the same loss.
    alone = make_volume(tmp_path / "b", dropout=0.0)
    from tests.training.volume import write_store

    ids, lengths = np.array(store.contexts), np.array(store.lengths)
    shutil.rmtree(alone / "tokens")
    kept = first[[0, 2, 3]]
    write_store(alone / "tokens/tiny", ids[kept], lengths[kept], 3)
    changes: dict[str, Any] = {"no_shuffle": True, "batch_size": 3, "gradients": 1, "epochs": 1}
    other = make_config(alone, **changes)
    assert run_step("finetune", other) == 0, log_of(other)
    losses = [read_lines(tmp_path / x / "run/metrics.jsonl")[0]["loss"] for x in "ab"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


LORA = {"rank": 2, "dropout": 0.1, "target_modules": []}
SAVING_OFTEN = {"checkpoints": {"keep_last": 9}, "save_steps": 2}
KINDS: list[dict[str, Any]] = [
    {},
    {"lora": LORA, "gradients": 1},
    {"processes": 2, "zero_stage": 2},
    {"processes": 2, "zero_stage": 3, "epochs": 3, "gradients": 1},
]


@pytest.mark.parametrize("kind", KINDS, ids=["one process", "lora", "two, zero 2", "two, zero 3"])
def test_from_its_start_and_from_a_checkpoint_it_is_the_same_run(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    kind = SAVING_OFTEN | kind
    whole = finetuned(tmp_path / "whole", **kind)
    about = read_manifest(Path(whole["volume"]) / "run/final").about
    plan = plan_of(
        global_batch=2 * whole["gradients"] * whole.get("processes", 1), epochs=whole["epochs"]
    )
    assert about["step"] == plan.steps
    start = whole["save_steps"]
    before = {int(c) for step in range(start) for c in plan.contexts_of(step)}
    later = [c for c in range(21) if c not in before]
    skip = skipping(later[0], later[-1], 22)  # 22 is held out
    again = repeated(whole, tmp_path / "again", start, skip)
    scratch = finetuned(
        tmp_path / "scratch",
        Strike(f"{ENGINE}:Engine.step", start + 1, after=True),
        Strike(f"{SAVING}:seal", 1, after=True),
        Strike(f"{ENGINE}:Engine.loss", 2, signum=signal.SIGTERM),
        **{**kind, "skip": skip},
    )
    assert_same(again, scratch)
    runs = [comparable(Path(config["volume"]) / "run") for config in (whole, scratch)]
    assert runs[0]["weights"] != runs[1]["weights"]


def test_without_held_out_text_of_it_only_training_changes(tmp_path: Path) -> None:
    whole = finetuned(tmp_path / "whole", epochs=1)
    only_held_out = finetuned(tmp_path / "held", epochs=1, skip=skipping(22))
    runs = [comparable(Path(config["volume"]) / "run") for config in (whole, only_held_out)]
    assert runs[0] == runs[1]
    assert "1 held-out contexts hold the documents and stay in validation" in log_of(only_held_out)


def test_what_names_nothing_or_everything_is_refused(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    config = make_config(volume, skip={"documents": ["dataset/other.txt", f"{PATH}#99"]})
    assert run_step("finetune", config) == 78
    log = log_of(config)
    assert "skip.documents names no document (got 'dataset/other.txt')" in log
    assert f"skip.documents names no document (got '{PATH}#99')" in log
    config = make_config(volume, skip={"documents": ["dataset/*"]})
    assert run_step("finetune", config) == 78
    assert "skip leaves nothing to train on" in log_of(config)
    assert not (volume / "run").exists()


def test_a_run_does_not_resume_with_other_documents_left_out(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    config = make_config(volume, epochs=1)
    assert run_step("finetune", config) == 0
    other = {**config["request"], "epochs": 1, "skip": skipping(3)}
    assert run_step("finetune", {**config, "request": other, "skip": skipping(3)}) == 78
    assert "skip was {}, is {'documents': [" in log_of(config)
