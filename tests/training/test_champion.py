"""What the champion step decides: when to train, what is better, and after a kill."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.flows.small_volume import make_volume
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.sealed_folder import seal
from trainer.contract.step_configs import ChampionConfig, TokenizeConfig
from trainer.forgetting.forgotten import remember
from trainer.retraining import step as champion
from trainer.tokens import step as tokenize
from trainer.tokens.store import TokenStore
from trainer.tokens.text.sanitize import sanitize


class Nightly:
    """One series on a volume with the small model."""

    def __init__(self, volume: Path) -> None:
        self.volume = volume
        self.request: dict[str, Any] = {"epochs": 1, "dataset": "dataset"}

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


def forget(nightly: Nightly, path: str, *trained: str) -> str:
    """Put a document on the volume's list, as `finetune forget` does; its digest."""
    text = (nightly.volume / "dataset" / path).read_bytes()
    digest = hashlib.sha256(sanitize(text)).hexdigest()
    row = {"sanitized_sha256": digest, "document": f"{path}#1"}
    models = [{"what": "model", "where": f"{run}/final"} for run in trained]
    body = {"new": "new", "run": "one", "documents": [row], "elsewhere": models}
    remember(nightly.volume, body)
    return digest


def test_what_is_forgotten_is_never_trained_on_again(nightly: Nightly) -> None:
    first, _ = nightly.night(loss=1.0)
    assert nightly.step("look")["decision"] == "unchanged"
    digest = forget(nightly, "part-1/tale-01.txt", first)
    looked = nightly.step("look")
    assert looked["decision"] == "train"
    assert looked["skip"] == {"documents": [], "sha256": [digest]}
    second, verdict = nightly.night(loss=2.0)  # the champion had seen the text: it goes
    assert verdict["decision"] == "promoted" and "goes in any case" in verdict["why"]
    assert nightly.step("look")["decision"] == "unchanged"
    # A copy under another name, with other white space, in new text.
    copy = (nightly.volume / "dataset/part-1/tale-01.txt").read_text().replace("\n", "\r\n")
    (nightly.volume / "dataset/part-1/tale-01.txt").unlink()
    (nightly.volume / "dataset/part-1/tale-21.txt").unlink()
    assert nightly.step("look")["skip"] == {}
    (nightly.volume / "dataset/new-name.txt").write_text(copy)
    assert nightly.step("look")["skip"] == {"documents": [], "sha256": [digest]}
    nightly.request["skip"] = {"documents": ["part-0/*"], "sha256": []}
    assert nightly.step("look")["skip"] == {"documents": ["part-0/*"], "sha256": [digest]}
    assert nightly.champion() == second != first


def test_a_model_that_saw_what_is_forgotten_is_not_trained_on(nightly: Nightly) -> None:
    first, _ = nightly.night(loss=1.0)
    (nightly.volume / "dataset/more.txt").write_text("The ferry is late.\n" * 20)
    assert nightly.step("look", start_from="last")["model"] == f"{first}/final"
    forget(nightly, "part-1/tale-01.txt", first)
    assert nightly.step("look", start_from="last")["model"] == "models/tiny"


def test_a_damaged_list_stops_the_night(nightly: Nightly) -> None:
    forget(nightly, "part-1/tale-01.txt")
    (nightly.volume / "forgotten.json").write_text("{")
    with pytest.raises(DamagedError, match=r"forgotten\.json is damaged"):
        nightly.step("look")
