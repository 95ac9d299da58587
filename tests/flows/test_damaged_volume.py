"""Damaged files that belong to no single run: retraining, the upstream workflow's, the cache."""

import json
from pathlib import Path

import pytest

from flows.cli.argo.claim import reference_runs
from trainer.contract import service_history as history
from trainer.contract.run_folder import RunFolder
from trainer.fetch.hub import _is_complete
from trainer.plan.facts import corrections
from trainer.retraining.step import Series
from trainer.tokens.prune import damaged_records, prune
from trainer.tokens.text.digests import DigestMemory

DEEP = "[" * 100_000
TEXTS = ["", "{", "[1]", "5", '{"what": 1}', DEEP, "\0" * 100, '{"request": [], "created": 5}']
FINGERPRINT = {"data": "d", "model": "m", "parameters": "p"}


def decision(name: str, run: str) -> str:
    made = {"time": "2026-01-01", "decision": name, "fingerprint": FINGERPRINT, "run": run}
    return json.dumps(made) + "\n"


@pytest.mark.parametrize("text", TEXTS)
def test_champion_is_known_from_the_decisions(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "retrain/nightly"
    folder.mkdir(parents=True)
    (folder / "champion.json").write_text(text)
    (folder / "decisions.jsonl").write_text(
        decision("promoted", "one") + decision("promoted", "two") + decision("kept", "three")
    )
    RunFolder(tmp_path, "two").write_record(
        {"request": {}, "created": "2026-01-01", "tokenizer_digest": "t"}
    )
    champion = Series(tmp_path, "nightly").champion()
    assert champion is not None
    assert (champion["run"], champion["tokenizer_digest"]) == ("two", "t")


@pytest.mark.parametrize("text", TEXTS)
def test_damaged_decision_costs_no_other(tmp_path: Path, text: str) -> None:
    path = tmp_path / "retrain/nightly/decisions.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(decision("promoted", "one") + f"{text}\n" + decision("kept", "two"))
    series = Series(tmp_path, "nightly")
    assert [entry["run"] for entry in series.decisions()] == ["one", "two"]
    series.append({"decision": "kept", "fingerprint": FINGERPRINT, "run": "three"})
    assert [entry["run"] for entry in series.decisions()] == ["one", "two", "three"]
    [aside] = path.parent.glob("decisions.jsonl.damaged-*")
    assert f"{text}\n" in aside.read_text()


@pytest.mark.parametrize("text", TEXTS)
def test_damaged_run_keeps_every_store_and_stops_no_plan(tmp_path: Path, text: str) -> None:
    store = tmp_path / "tokens/text-0123"
    store.mkdir(parents=True)
    (store / "manifest.json").write_text("{}")
    assert [item.path for item in prune(tmp_path, used_lately_seconds=-9)] == [store]
    run = RunFolder(tmp_path, "run")
    run.root.mkdir()
    run.record_path.write_text(text)
    run.metrics.write_text('{"step": 1, "loss": 1, "seconds": 2}\n' * 3)
    assert prune(tmp_path, used_lately_seconds=-9) == []
    assert "run/run.json is damaged" in damaged_records(tmp_path)[0]
    assert corrections(tmp_path, 1) == {}


def test_damaged_history_of_services(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "run")
    for digest in ("a", "b"):
        revision = history.next_revision(run)
        history.append(run, "served", revision=revision, model_digest=digest)
    good = run.services.read_text()
    for text in TEXTS[1:]:
        run.services.write_text(good + f"{text}\n")
        assert history.next_revision(run) == 4
        assert history.previous(run)["model_digest"] == "a"
        history.append(run, "served", revision=4, model_digest="c")
        assert text in run.services.read_text()
        assert history.previous(run)["model_digest"] == "b"


def test_upstream_runs_with_odd_names_and_damaged_configs(tmp_path: Path) -> None:
    (tmp_path / "finetunes/results-a/checkpoint-final").mkdir(parents=True)
    (tmp_path / "finetunes/results-a/checkpoint-7").mkdir()
    final = tmp_path / "finetunes/results-b/final"
    final.mkdir(parents=True)
    (final / "config.json").write_text(DEEP)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{")
    runs = {run["name"]: run for run in reference_runs(tmp_path)}
    assert "checkpoint-7" in runs["a"]["state"]
    assert runs["b"]["model"] == ""


@pytest.mark.parametrize("text", [*TEXTS, '{"sources": {"a": 1}, "stores": {}}'])
def test_damaged_memory_of_digests_is_forgotten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "memory.json"
    path.write_text(text)
    memory = DigestMemory(path)
    assert memory.known == {} and not memory.knows(path)


@pytest.mark.parametrize("text", [*TEXTS, '{"files": {"a": 5}}'])
def test_model_with_a_damaged_marker_is_not_complete(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert _is_complete(tmp_path)
    (tmp_path / ".fetched.json").write_text(text)
    assert not _is_complete(tmp_path)
