"""Comparing runs, and new runs out of a recorded one: folders alone, nothing is trained here."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.cli.commands_runs import reproduce
from flows.cli.runs import reproduce as again
from flows.cli.runs.diff import compare, same_model
from flows.cli.runs.overview import list_runs, show_run
from infra.local.processes import LocalBackend
from trainer.contract.errors import RequestError
from trainer.contract.events import format_event
from trainer.contract.outcome import Outcome
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import seal, verify

PVC = "finetune-data"
REQUEST = Parameters(run_name="one", model="models/m", context=64).request


def make_run(home: Path, name: str, losses: list[float], **record: Any) -> RunFolder:
    """A run with a step for each loss, checkpoints after steps 2 and 4, and a final model."""
    run = RunFolder(home / PVC, name)
    run.root.mkdir(parents=True)
    lines = [json.dumps({"step": s, "loss": x}) + "\n" for s, x in enumerate(losses, start=1)]
    run.metrics.write_text("".join(lines))
    known = {"created": "2026-01-01", "request": REQUEST, "tokens": f"tokens/{name}"}
    run.record_path.write_text(json.dumps({**known, "versions": {"torch": "1"}, **record}))
    for step in (2, 4):
        size = len("".join(lines[:step]))
        about = {"step": step, "records": {"metrics.jsonl": size}}
        sealed(run.checkpoints / f"step-{step:08}", f"weights {step}", about)
    sealed(run.final, str(losses), {"step": len(losses)})
    sources = [{"path": "a.txt", "bytes": 3, "sha256": "x"}, {"path": name, "bytes": 1}]
    tokens = home / PVC / "tokens" / name
    tokens.mkdir(parents=True)
    (tokens / "manifest.json").write_text(json.dumps({"sources": sources}))
    return run


def sealed(place: Path, weights: str, about: dict[str, Any]) -> None:
    part = place.with_name(f".{place.name}")
    part.mkdir(parents=True)
    (part / "model.safetensors").write_text(weights)
    seal(part, place, about)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_run(tmp_path, "one", [5.0, 4.0, 3.0, 2.0])
    return tmp_path


def asked(home: Path, **changed: Any) -> Parameters:
    return again.recorded_parameters(RunFolder(home / PVC, "one"), PVC, "new", changed)


def test_a_fork_begins_where_the_checkpoint_was(home: Path) -> None:
    assert again.fork(home, PVC, "one", 2, asked(home, learn_rate="1e-6")) == 2
    new, old = (RunFolder(home / PVC, name) for name in ("new", "one"))
    (checkpoint,) = new.checkpoints.iterdir()
    assert verify(checkpoint) == []
    assert [json.loads(line)["step"] for line in new.metrics.read_text().splitlines()] == [1, 2]
    record = new.record()
    assert record is not None
    assert record["request"] == {**REQUEST, "learn_rate": 1e-6}
    assert record["forked_from"] == {"run": "one", "step": 2}
    # The weights are there once, and stay when the first run lets go of them.
    weights = checkpoint / "model.safetensors"
    assert weights.samefile(old.checkpoints / checkpoint.name / weights.name)
    new.refuse_other_request(asked(home, learn_rate="1e-6").request)


def test_a_fork_has_another_schedule_and_decay_over_the_recorded_ones(home: Path) -> None:
    assignments = {"schedule.kind": "cosine", "optimizer.weight_decay": "0.1"}
    again.refuse_what_cannot_fork(assignments)
    again.fork(home, PVC, "one", 2, asked(home, **assignments))
    record = RunFolder(home / PVC, "new").record() or {}
    assert record["request"]["schedule"] == {"kind": "cosine"}
    optimizer = {**REQUEST["optimizer"], "weight_decay": 0.1}
    assert record["request"] == {**REQUEST, "schedule": {"kind": "cosine"}, "optimizer": optimizer}
    usual = again.recorded_parameters(
        RunFolder(home / PVC, "new"), PVC, "usual", {"schedule": "{}"}
    )
    again.fork(home, PVC, "new", 2, usual)
    assert "schedule" not in (RunFolder(home / PVC, "usual").record() or {})["request"]
    with pytest.raises(RequestError, match=r"optimizer.adam_bits can't be another in a fork"):
        again.refuse_what_cannot_fork({"optimizer.adam_bits": "8"})


def test_a_fork_from_where_max_steps_ends_it_is_refused(home: Path) -> None:
    end = {"step": 5, "num_contexts": 17, "global_batch": 2, "records": {}}
    sealed(home / PVC / "one/checkpoints/step-00000005", "weights 5", end)
    with pytest.raises(RequestError, match=r"nothing is left .*-p schedule.max_steps=10"):
        again.fork(home, PVC, "one", 5, asked(home, **{"schedule.max_steps": "5"}))
    assert again.fork(home, PVC, "one", 5, asked(home, **{"schedule.max_steps": "6"})) == 5


def test_a_fork_goes_on_from_the_newest_checkpoint_by_itself(home: Path) -> None:
    assert again.fork(home, PVC, "one", None, asked(home)) == 4


def test_a_fork_with_nothing_left_to_train_is_refused(home: Path) -> None:
    end = {"step": 9, "num_contexts": 17, "global_batch": 2, "records": {}}
    sealed(home / PVC / "one/checkpoints/step-00000009", "weights 9", end)
    with pytest.raises(RequestError, match=r"nothing is left .*2, 4, 9\), .*-p epochs=2"):
        again.fork(home, PVC, "one", None, asked(home, learn_rate="1e-6"))
    assert not (home / PVC / "new").exists()
    assert again.fork(home, PVC, "one", None, asked(home, epochs="2")) == 9


def test_what_cannot_be_forked_is_refused(home: Path) -> None:
    with pytest.raises(RequestError, match=r"--step is no checkpoint of one \(got 3\).* 2, 4\."):
        again.fork(home, PVC, "one", 3, asked(home))
    (home / PVC / "one/checkpoints/step-00000002/model.safetensors").write_text("weights !")
    with pytest.raises(RequestError, match="damaged checkpoint"):
        again.fork(home, PVC, "one", 2, asked(home))
    assert not (home / PVC / "new").exists()
    with pytest.raises(RequestError, match="context can't be another in a fork"):
        again.refuse_what_cannot_fork({"learn_rate": "1", "context": "32"})
    make_run(home, "new", [1.0, 1.0])
    with pytest.raises(RequestError, match=r"--as is taken \(got 'new'\)"):
        again.fork(home, PVC, "one", 4, asked(home))


def test_a_reproduction_is_the_same_or_says_where_it_is_not(home: Path) -> None:
    one = RunFolder(home / PVC, "one")
    same = make_run(home, "same", [5.0, 4.0, 3.0, 2.0])
    other = make_run(home, "other", [5.0, 4.0, 3.5, 2.0], tokens_digest="y")
    assert again.reproduced(one, same) == (True, "same is one bit for bit")
    assert not same_model(one, other)
    is_same, sentence = again.reproduced(one, other)
    assert not is_same and "losses differ at step 3, tokens_digest is another" in sentence


def test_a_run_without_a_final_model_is_not_made_again(home: Path) -> None:
    shutil.rmtree(home / PVC / "one/final")
    asked = CliRunner().invoke(reproduce, ["one", "--home", str(home)])
    assert isinstance(asked.exception, RequestError)
    assert "RUN has no final model to compare with (got 'one')" in str(asked.exception)
    assert not (home / PVC / "one-again").exists()


def test_a_run_is_not_made_again_as_itself(home: Path) -> None:
    asked = CliRunner().invoke(reproduce, ["one", "--as", "one", "--home", str(home)])
    assert isinstance(asked.exception, RequestError)
    assert str(asked.exception).startswith("--as is RUN itself (got 'one')")


def test_what_stands_in_the_way_of_the_same_bytes_is_named(home: Path) -> None:
    dataset, one = home / PVC / "dataset", RunFolder(home / PVC, "one")
    assert "dataset is not there" in "\n".join(again.what_is_missing(one, home, PVC))
    dataset.mkdir()
    (dataset / "a.txt").write_text("longer")
    (dataset / "more.txt").write_text("more")
    told = "\n".join(again.what_is_missing(one, home, PVC))
    assert "torch is " in told and "was 1" in told
    assert "a.txt had 3 bytes, has 6" in told and "one is gone" in told
    assert "more.txt is new" in told
    assert "the base model is not on the volume" in told
    (dataset / "a.txt").write_text("new")
    told = "\n".join(again.what_is_missing(one, home, PVC))
    assert "a.txt has other content, of the same size" in told
    shutil.rmtree(home / PVC / "tokens/one")
    assert "its tokens were pruned" in "\n".join(again.what_is_missing(one, home, PVC))


def test_as_many_processes_train_again_in_as_large_batches(home: Path) -> None:
    request = {**REQUEST, "batch_size": -1}
    config = {"processes": 2, "nodes": 3}
    run = make_run(home, "wide", [1.0], request=request, config=config, sizing={"batch_size": 7})
    asked = again.recorded_parameters(run, PVC, "new", again.worked_out(run))
    assert (asked.trainer_gpus, asked.batch_size, asked.gradients) == (6, 7, 5)
    sizing = {"batch_size": 7, "gradients": 2}
    run = make_run(home, "short", [1.0], request=request, config=config, sizing=sizing)
    asked = again.recorded_parameters(run, PVC, "new", again.worked_out(run))
    assert (asked.batch_size, asked.gradients) == (7, 2)
    told = "\n".join(again.what_is_missing(run, home, PVC))
    assert "it trained on 3 machines with 2 process(es) each; here all 6 are on one" in told
    # What was asked stays as it was.
    run = make_run(home, "asked", [1.0], request={**request, "batch_size": 4})
    assert again.worked_out(run) == {}


def test_a_schedule_that_its_budget_ended_is_made_again_or_named(home: Path) -> None:
    run = RunFolder(home / PVC, "one")
    figures = {"steps": 4, "steps_planned": 1200}
    run.record_outcome(Outcome(step="finetune", status="done", result=figures))
    told = "\n".join(again.what_is_missing(run, home, PVC))
    assert "its budget ended it after 4 of 1,200 steps" in told
    figures["budget_ends"] = [[2, 5], [3, 4]]
    run.record_outcome(Outcome(step="finetune", status="done", result=figures))
    assert "its budget" not in "\n".join(again.what_is_missing(run, home, PVC))
    asked = again.recorded_parameters(run, PVC, "new", again.worked_out(run))
    assert asked.budget.ends == ((2, 5), (3, 4))


def test_a_fork_is_made_again_from_where_it_was_forked(home: Path) -> None:
    again.fork(home, PVC, "one", 2, asked(home))
    new, one = (RunFolder(home / PVC, name) for name in ("new", "one"))
    assert again.fork_point(one) is None
    assert again.fork_point(new) == ("new", 2)
    shutil.rmtree(new.checkpoints)  # pruned, as it went on
    assert again.fork_point(new) == ("one", 2)
    missing = "it was forked from step 2 of one, and that checkpoint is gone"
    assert missing not in "\n".join(again.what_is_missing(new, home, PVC))
    record = one.record()
    assert record is not None
    one.record_path.write_text(json.dumps({**record, "created": "9999-01-01"}))  # started over
    assert again.fork_point(new) is None
    assert missing in "\n".join(again.what_is_missing(new, home, PVC))


def test_a_fork_that_is_there_is_gone_on_with_only_as_the_same(home: Path) -> None:
    again.fork(home, PVC, "one", 2, asked(home))
    record = RunFolder(home / PVC, "new").record()
    assert record is not None
    again.refuse_other_fork(record, "one", 2, "new")
    again.refuse_other_fork(record, "one", None, "new")
    for run, step in (("one", 4), ("two", 2)):
        with pytest.raises(RequestError, match=r"--as is taken \(got 'new', it began at step 2"):
            again.refuse_other_fork(record, run, step, "new")


def test_a_run_that_was_adopted_has_nothing_to_be_made_again_from(home: Path) -> None:
    run = make_run(home, "old", [1.0], request={"model": "m"}, adopted="tales")
    with pytest.raises(RequestError, match=r"RUN was trained by the reference's .*\(got 'old'\)"):
        again.recorded_parameters(run, PVC, "new", {})


def test_a_trial_which_is_not_served_is_listed_as_evaluated(home: Path) -> None:
    run = RunFolder(home / PVC, "one")
    for step in ("fetch", "tokenize", "finetune"):
        run.record_outcome(Outcome(step=step, status="done"))
    trained = Outcome(step="finetune", status="done", result={"loss": 1.5})
    run.record_outcome(trained)
    (row,) = list_runs(home, PVC)
    assert (row.state, row.loss) == ("stopped before evaluate", None)  # 1.5 is no held-out loss
    assert "training_loss        1.5000\n" in show_run(home, PVC, "one")
    run.record_outcome(Outcome(step="evaluate", status="done", result={"loss": 2.345678}))
    assert [row.state for row in list_runs(home, PVC)] == ["evaluated"]
    assert "finetuned_loss       2.3457\n" in show_run(home, PVC, "one")


def test_a_run_that_was_killed_in_training_says_so_and_where_it_goes_on(home: Path) -> None:
    run = RunFolder(home / PVC, "one")
    for step in ("fetch", "tokenize"):
        run.record_outcome(Outcome(step=step, status="done"))
    assert [row.state for row in list_runs(home, PVC)] == ["stopped in finetune"]
    assert "last checkpoint      4\n" in show_run(home, PVC, "one")


def test_a_run_in_training_shows_how_far_it_is(home: Path, monkeypatch: Any) -> None:
    log = home / PVC / "logs" / "one" / "finetune.log"
    log.parent.mkdir(parents=True)
    told = {"label": "finetune", "unit": "steps", "total": 159, "loss": 1.25}
    lines = [format_event("progress", {**told, "done": n, "remaining_seconds": 90}) for n in (8, 9)]
    log.write_text("\n".join([*lines, "some text", "::finetune prog"]))
    monkeypatch.setattr(LocalBackend, "running_steps", lambda *_: ["finetune"])
    assert "  9/159 steps, loss 1.25, 1:30 min left\n" in show_run(home, PVC, "one")


def test_two_runs_are_compared_by_kind(home: Path) -> None:
    request = {**REQUEST, "epochs": 3}
    code = {"id": "org/m", "commit": "c0ffee", "files": {"modeling.py": "12ab"}}
    changed = {"versions": {"torch": "2"}, "code": code, "config": {"processes": 2}}
    make_run(home, "two", [5.0, 4.5], request=request, **changed)
    text = compare(*(RunFolder(home / PVC, name) for name in ("one", "two")))
    for line in (
        "epochs: 1 | 3",
        "trainer_gpus: 1 | 2",  # no part of the request: a run may continue with others
        "torch: '1' | '2'",
        "commit: None | 'c0ffee'",
        "modeling.py: 'not set' | '12ab'",
        "one: only in the first",
        "two: only in the second",
        "training differs from step 2 on",
    ):
        assert f"  {line}" in text.splitlines()
    same = compare(*(RunFolder(home / PVC, "one"),) * 2)
    assert same.count("the same") == 6
