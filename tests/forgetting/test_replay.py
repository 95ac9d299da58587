"""Steps are replayed to the last bit, with more measured; other numbers are named by step."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.cli.runs.what_if import changes_of
from tests.forgetting.small_run import make_run
from tests.training.forking import log_of, run_forked, run_step
from tests.training.test_left_out import plan_of
from tests.training.test_skipping import poison
from tests.training.volume import make_config, make_volume, read_lines
from trainer.contract.errors import RequestError
from trainer.contract.run_folder import RunFolder
from trainer.forgetting.recorded import job_of
from trainer.replaying import __main__ as command
from trainer.replaying import forks


def replayed(volume: Path, run: str, first: int, last: int) -> tuple[int, str, dict[str, Any]]:
    """Exit code, what was printed, and the numbers."""
    words = [str(volume), run, str(first), str(last)]
    code, said = run_forked(volume, lambda: command.main(words))
    numbers = volume / run / f"replays/steps-{first}-{last}.json"
    return code, said, json.loads(numbers.read_text()) if numbers.exists() else {}


def record_of(volume: Path) -> dict[str, Any]:
    return RunFolder(volume, "one").record() or {}


def content(run: Path) -> dict[str, bytes]:
    files = (p for p in run.rglob("*") if p.is_file() and "replays" not in p.parts)
    return {str(path): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_run(tmp_path_factory.mktemp("trained"))["volume"])


def test_steps_come_out_as_recorded_and_each_context_is_measured(trained: Path) -> None:
    before = content(trained / "one")
    code, said, made = replayed(trained, "one", 11, 14)
    assert code == 0, said
    assert "steps 9 to 14 came out as recorded, to the last bit" in said
    assert content(trained / "one") == before
    assert made["start"] == 8 and made["again"] == made["recorded"]
    plan = job_of(RunFolder(trained, "one")).plan
    assert [line["step"] for line in made["measured"]] == [11, 12, 13, 14]
    for line, recorded in zip(made["measured"], made["recorded"], strict=True):
        contexts = line["contexts"]
        assert [c["context"] for c in contexts] == plan.contexts_of(line["step"] - 1).tolist()
        tokens = sum(c["tokens"] for c in contexts)
        mean = sum(c["loss"] * c["tokens"] for c in contexts) / tokens
        assert mean == pytest.approx(recorded["loss"], rel=1e-5)
        squares = [norms["gradient_norm"] ** 2 for norms in line["layers"].values()]
        assert math.sqrt(sum(squares)) == pytest.approx(min(1.0, recorded["grad_norm"]), rel=1e-3)
        assert all(norms["update_norm"] > 0 for norms in line["layers"].values())
    page = (trained / "one/replays/steps-11-14.html").read_text()
    worst = max(c["loss"] for line in made["measured"] for c in line["contexts"])
    assert f"{worst:.6g}" in page and "the way to" in page
    assert "transformer.h.1" in page and "http" not in page.replace("http://www.w3.org", "")
    assert not list((trained / "cache").glob("verify-resume-*"))


def test_what_if_is_shown_beside_the_original(trained: Path) -> None:
    """The second replay is what a fork with these parameters would be."""
    before = content(trained / "one")
    changed = changes_of("volume", "one", record_of(trained), ["learn_rate=0.03"])
    file = trained / "changed.json"
    file.write_text(json.dumps(changed))
    words = [str(trained), "one", "9", "11", str(file)]

    def work() -> int:
        forks.START = "fork"
        return command.main(words)

    code, said = run_forked(trained, work)
    assert code == 0, said
    assert 'what if {"learn_rate": 0.03}, from step 9 on: loss ' in said
    [numbers] = (trained / "one/replays").glob("steps-9-11-if-*.json")
    made = json.loads(numbers.read_text())
    assert made["again"] == made["recorded"] and not made["diverged"]
    was, now = made["recorded"], made["what_if"]["again"]
    assert [line["learning_rate"] for line in now] == pytest.approx(
        [10 * line["learning_rate"] for line in was]
    )
    assert now[0]["loss"] == was[0]["loss"]  # the same weights, the same contexts
    assert now[1]["loss"] != was[1]["loss"]
    page = numbers.with_suffix(".html").read_text()
    assert "<h2>What if</h2>" in page and f"{now[1]['loss']:.6g}" in page
    assert content(trained / "one") == before
    activations = made["measured"][0]["activations"]
    assert all(ends["least"] < ends["largest"] for ends in activations.values())
    assert set(activations) <= set(made["measured"][0]["layers"]) and activations


def test_what_a_replay_can_not_change_is_refused(trained: Path) -> None:
    for name in ("batch_size=2", "model=other", "optimizer.adam_bits=8"):
        with pytest.raises(RequestError, match="can't be another in a replay"):
            changes_of("volume", "one", record_of(trained), [name])


def test_other_numbers_are_named_by_their_step(trained: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    shutil.copytree(trained, volume)
    lines = read_lines(volume / "one/metrics.jsonl")
    at = next(i for i, line in enumerate(lines) if line["step"] == 10 and "loss" in line)
    lines[at]["loss"] += 1e-9
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (volume / "one/metrics.jsonl").write_text(text)
    code, said, made = replayed(volume, "one", 12, 13)
    assert code == 1, said
    assert f"not the run: step 10: loss is {lines[at]['loss'] - 1e-9!r}"[:40] in said
    assert "step 10: loss is " in made["diverged"][0]
    assert "The replay is not the run" in (volume / "one/replays/steps-12-13.html").read_text()


def test_steps_that_are_not_there_are_refused(trained: Path) -> None:
    for first, last in ((3, 2), (1, 9999)):
        code, said, _ = replayed(trained, "one", first, last)
        assert code == 78
        assert f"--from and --to are no steps of one (got {first} to {last})" in said


KINDS: list[dict[str, Any]] = [
    {"processes": 2, "zero_stage": 3},
    {"batch_size": 4, "optimizer": {"adam_bits": 8, "beta1": 0.8, "weight_decay": 0.1}},
    {"processes": 2, "zero_stage": 1, "lora": {"rank": 2, "dropout": 0.1, "target_modules": []}},
]


@pytest.mark.parametrize("kind", KINDS, ids=["zero 3", "adam in 8 bits", "lora, zero 1"])
def test_each_way_to_train_with_dropout_and_left_out_documents(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    gone = plan_of(global_batch=8).contexts_of(1).tolist()
    skip = {"documents": [f"dataset/made-up.txt#{c + 1}" for c in gone], "sha256": []}
    volume = make_volume(tmp_path / "volume", dropout=0.2)
    config = make_config(volume, skip=skip, save_steps=2, **kind)
    config["request"] = {**config["request"], "skip": skip, "dataset": "dataset"}
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    code, said, made = replayed(volume, "run", 1, 6)
    assert code == 0, said
    assert made["again"] == made["recorded"]
    second = made["measured"][1]
    assert made["recorded"][1]["without_update"] and second["contexts"] == []
    assert all(norms["update_norm"] == 0 for norms in second["layers"].values())
    third = made["measured"][2]["layers"]
    assert sum(norms["update_norm"] for norms in third.values()) > 0


def test_a_run_that_stopped_for_bad_numbers_names_its_replay(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "volume")
    poison(volume, word=95, contexts=[8, 12, 16])  # steps 3 to 5
    config = make_config(volume, no_shuffle=True, epochs=1, save_steps=1)
    assert run_step("finetune", config) == 1
    assert "finetune replay run --from 3 --to 5" in log_of(config)
    code, said, made = replayed(volume, "run", 3, 5)
    assert code == 0, said
    assert "is not finite" in made["stopped"]
    bad = {c["context"] for m in made["measured"] for c in m["contexts"] if c["loss"] is None}
    assert bad == {8, 12, 16}
    assert "not finite" in (volume / "run/replays/steps-3-5.html").read_text()
