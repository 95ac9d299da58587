"""What the champion step decides: when to train, what is better, and after a kill."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.flows.small_volume import make_volume
from trainer import champion
from trainer.checkpoints.seal import seal
from trainer.config import ChampionConfig, TokenizeConfig
from trainer.errors import RequestError
from trainer.tokens import step as tokenize
from trainer.tokens.store import TokenStore


class Nightly:
    """One series on a volume with the small model."""

    def __init__(self, volume: Path) -> None:
        self.volume = volume
        self.request: dict[str, Any] = {"epochs": 1}

    def tokens(self, **changed: Any) -> str:
        usual = {"dataset": "dataset", "model": "models/tiny", "context": 64, **changed}
        return tokenize.run(TokenizeConfig(volume=str(self.volume), **usual)).result["store"]

    def step(self, action: str, **more: Any) -> dict[str, Any]:
        config = ChampionConfig(
            volume=str(self.volume),
            series="nightly",
            action=action,
            model="models/tiny",
            tokens=more.pop("tokens", None) or self.tokens(),
            request=self.request,
            **more,
        )
        return champion.run(config).result

    def trained(self, run: str, loss: float, base_loss: float = 9.0, **about: Any) -> None:
        """Leave what the finetune and evaluate steps leave."""
        final = self.volume / run / "final"
        part = final.with_name("part")
        shutil.copytree(self.volume / "models/tiny", part)
        seal(part, final, {"kind": "final"})
        digest = TokenStore.open(self.volume / self.tokens()).digest
        report = {"loss": loss, "base_loss": base_loss, "compared": {"tokens": digest, **about}}
        report["compared"].setdefault("model", "models/tiny")
        (self.volume / run / "evaluation.json").write_text(json.dumps(report))

    def decide(self, run: str) -> dict[str, Any]:
        verdict = self.step("judge", candidate=run)
        self.step("record", candidate=run, verdict=verdict)
        return verdict

    def night(self, loss: float) -> tuple[str, dict[str, Any]]:
        run = self.step("look")["run"]
        self.trained(run, loss)
        return run, self.decide(run)

    @property
    def series(self) -> champion.Series:
        return champion.Series(self.volume, "nightly")

    def champion(self) -> str:
        found = self.series.champion()
        return found["run"] if found else ""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    volume = make_volume(tmp_path_factory.mktemp("prepared"))
    Nightly(volume).tokens()
    return volume


@pytest.fixture
def nightly(prepared: Path, tmp_path: Path) -> Nightly:
    return Nightly(shutil.copytree(prepared, tmp_path / "volume"))


def test_it_does_nothing_when_nothing_changed(nightly: Nightly) -> None:
    first, _ = nightly.night(loss=1.0)
    look = nightly.step("look")
    assert (look["decision"], look["champion"]) == ("unchanged", first)
    decisions = [entry["decision"] for entry in nightly.series.decisions()]
    assert decisions == ["promoted", "unchanged"]


@pytest.mark.parametrize("what", ["data", "model", "parameters"])
def test_it_trains_when_something_changed(nightly: Nightly, what: str) -> None:
    first, _ = nightly.night(loss=1.0)
    if what == "data":
        (nightly.volume / "dataset/more.txt").write_text("They buried the gold.\n" * 9)
    elif what == "model":
        path = nightly.volume / "models/tiny/config.json"
        path.write_text(path.read_text() + "\n")
    else:
        nightly.request = {"epochs": 2}
    look = nightly.step("look")
    assert look["decision"] == "train"
    assert look["run"] != first


def test_a_night_that_was_killed_is_gone_on_with(nightly: Nightly) -> None:
    begun = nightly.step("look")["run"]
    (nightly.volume / begun).mkdir()
    assert nightly.step("look")["run"] == begun
    nightly.request = {"epochs": 2}
    assert nightly.step("look")["run"] not in ("", begun)


def test_only_a_better_model_takes_over_and_a_worse_one_is_not_trained_again(
    nightly: Nightly,
) -> None:
    first, _ = nightly.night(loss=1.0)
    nightly.request = {"epochs": 2}
    # The champion's loss is measured: that of a model with random weights.
    second, verdict = nightly.night(loss=8.5)
    assert verdict["decision"] == "kept"
    assert 4.0 < verdict["champion_loss"] < 8.0
    assert nightly.champion() == first
    assert nightly.step("look")["decision"] == "unchanged"
    nightly.request = {"epochs": 3}
    third, verdict = nightly.night(loss=verdict["champion_loss"] - 0.1)
    assert verdict["decision"] == "promoted"
    assert nightly.champion() == third
    history = nightly.series.decisions()
    assert [entry.get("run") for entry in history] == [first, second, None, third]
    assert history[1]["loss"] == 8.5


def test_one_that_is_worse_than_the_base_model_is_not_promoted(nightly: Nightly) -> None:
    _, verdict = nightly.night(loss=9.5)
    assert verdict["decision"] == "kept"
    assert nightly.champion() == ""


def test_from_last_it_trains_the_champion_and_is_compared_with_it(nightly: Nightly) -> None:
    first, _ = nightly.night(loss=1.0)
    look = nightly.step("look", start_from="last")
    assert look["model"] == f"{first}/final"
    nightly.trained(look["run"], loss=0.9, base_loss=1.1, model=look["model"])
    verdict = nightly.step("judge", candidate=look["run"])
    assert (verdict["decision"], verdict["champion_loss"]) == ("promoted", 1.1)


def test_recording_twice_leaves_one_decision(nightly: Nightly) -> None:
    run, verdict = nightly.night(loss=1.0)
    nightly.step("record", candidate=run, verdict=verdict)
    assert len(nightly.series.decisions()) == 1


def test_one_that_was_killed_as_it_was_recorded_replaces_no_champion(nightly: Nightly) -> None:
    run = nightly.step("look")["run"]
    pending = nightly.series.pending_path.read_text()
    nightly.trained(run, loss=1.0)
    nightly.decide(run)
    # Killed after champion.json was written, and before anything else.
    nightly.series.pending_path.write_text(pending)
    nightly.series.decisions_path.unlink()
    look = nightly.step("look")
    assert (look["decision"], look["run"], look["champion"]) == ("train", run, "")
    assert nightly.decide(run)["decision"] == "promoted"
    assert nightly.champion() == run
    assert [entry["run"] for entry in nightly.series.decisions()] == [run]


def test_without_held_out_text_nothing_is_compared(nightly: Nightly) -> None:
    run = nightly.step("look")["run"]
    nightly.trained(run, loss=1.0)
    path = nightly.volume / run / "evaluation.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps({**report, "loss": None, "base_loss": None}))
    with pytest.raises(RequestError, match="train_ratio"):
        nightly.step("judge", candidate=run)
