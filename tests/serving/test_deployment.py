"""The deploy step on this machine, by what a user does: run, ask, chat, roll back, stop."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flows.cli.main import cli
from infra.local import service as local_service
from tasks.local_deployment import FINAL_MANIFEST, deploy_here
from tests.serving import trained
from trainer.contract.errors import RequestError, StepError
from trainer.contract.outcome import Outcome
from trainer.contract.parameters import Parameters
from trainer.contract.process_time import process_started
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest

PVC = "finetune-data"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A volume whose run `town` has left a model of validation loss 3."""
    run = tmp_path / PVC / "town"
    trained.save(run / "final")
    (run / "run.json").write_text(json.dumps({"request": {}, "created": "now"}))
    evaluated(run, loss=3.0)
    yield tmp_path
    local_service.stop(tmp_path / PVC, "town")


def evaluated(run: Path, loss: float) -> None:
    (run / "evaluation.json").write_text(json.dumps({"loss": loss, "base_loss": 4, "samples": []}))


def deploy(home: Path, **given: Any) -> Outcome:
    values = Parameters(**{"run_name": "town", "inference_only": True, **given}).model_dump()
    return deploy_here(values, home / PVC, print)


def finetune(home: Path, *words: str, code: int = 0, typed: str = "") -> str:
    done = CliRunner().invoke(cli, [*words, "--home", str(home)], input=typed)
    if code:
        assert isinstance(done.exception, RequestError)
        return str(done.exception)
    assert done.exception is None, done.output
    return done.stdout


def test_revisions_are_served_refused_and_rolled_back_by_name(home: Path) -> None:
    run = home / PVC / "town"
    assert "is not served" in finetune(home, "ask", "town", "Dust", code=78)
    url = deploy(home, trust_remote_code=True).result["url"]
    shown = finetune(home, "show", "town")
    assert f"serves at {url}\n" in shown
    assert f"served at            {url} (revision 1: town/final)" in shown
    words = ("ask", "town", "Dust", "--max-tokens", "9")
    refused = finetune(home, *words[:-1], "0", code=78)
    assert refused.endswith("answered 400: max_tokens is 0, which needs echo. Ask for more.")
    assert "no earlier revision" in finetune(home, "rollback", "town", code=78)

    # What `no_resume=true` does: the earlier model is put aside, its service continues.
    RunFolder(home / PVC, "town").start_over(attempt="second")
    assert local_service.running(home / PVC, "town") is not None
    trained.save(run / "final", seed=1)
    (run / "run.json").write_text(json.dumps({"request": {}, "created": "now"}))
    evaluated(run, loss=3.2)
    # A model that only shows that it can be served takes nothing over.
    served = (run / "services.jsonl").read_text()
    shows = deploy(home, inference_only=False)
    assert shows.result["answer"] and not shows.result["url"]
    serving = local_service.running(home / PVC, "town")
    assert serving is not None and serving.url == url
    assert (run / "services.jsonl").read_text() == served
    tight, loose = {"max_regression": 0.1}, {"max_regression": 0.5}
    with pytest.raises(StepError, match=r"plus max_regression 0.1, got 3\.2"):
        deploy(home, serving=tight)
    second = deploy(home, serving=loose)
    again = deploy(home, run_inference=True, inference_only=False)
    assert again.reused and again.result["url"] == second.result["url"]

    said = finetune(home, "rollback", "town")
    assert "revision 3 serves town/replaced/" in said
    now = local_service.running(home / PVC, "town")
    assert now is not None and now.url in said
    # It is served as it was, and what would come after it is compared with it as before.
    assert now.config == {
        "trust_remote_code": True,
        "engine": "builtin",
        "engine_args": {},
        "tensorizer_uri": "",
    }
    with pytest.raises(StepError, match=r"plus max_regression 0.1, got 3\.2"):
        deploy(home, serving=tight)
    shown = finetune(home, "show", "town")
    assert f"served at            {now.url} (revision 3: town/replaced/" in shown
    assert second.result["url"] not in shown
    assert finetune(home, *words).startswith("Dust")
    # Without a chat template the model continues with the text of both.
    told = finetune(home, "chat", "town", "--max-tokens", "4", typed="Dust\nThe\n\n")
    assert len(told.splitlines()) >= 2
    assert finetune(home, "stop", "town") == "stopped: service\n"
    assert "http://" not in finetune(home, "show", "town")
    entries = [json.loads(line) for line in (run / "services.jsonl").read_text().splitlines()]
    assert [(e["event"], e["revision"]) for e in entries] == [
        ("served", 1),
        ("served", 2),
        ("rolled back", 3),
        ("stopped", 3),
    ]
    assert entries[0]["model_digest"] == entries[2]["model_digest"] != entries[1]["model_digest"]


def test_no_address_is_told_of_a_service_that_is_gone(home: Path) -> None:
    run = home / PVC / "town"
    manifest = hashlib.sha256((run / "final/manifest.json").read_bytes()).hexdigest()
    dead = "http://127.0.0.1:1"
    left = {"url": dead, "curl": f"curl {dead}", FINAL_MANIFEST: manifest}
    outcome = Outcome(step="deploy", status="done", message=f"serves at {dead}", result=left)
    RunFolder(home / PVC, "town").record_outcome(outcome)
    again = deploy(home, inference_only=False)
    assert again.reused and dead not in str(again)
    assert dead not in finetune(home, "show", "town")


def test_a_model_is_deployed_again_where_another_was_rolled_back_to(home: Path) -> None:
    run, url = home / PVC / "town", "http://127.0.0.1:1"
    manifest = hashlib.sha256((run / "final/manifest.json").read_bytes()).hexdigest()
    result = {"url": url, FINAL_MANIFEST: manifest}
    outcome = Outcome(step="deploy", status="done", result=result)
    RunFolder(home / PVC, "town").record_outcome(outcome)
    text = {field.name: "" for field in dataclasses.fields(local_service.Service)}
    mine = {"pid": os.getpid(), "process_started": process_started(os.getpid())}
    mine["model_digest"] = read_manifest(run / "final").digest
    serving = {**text, **mine, "figures": {}, "config": {}, "revision": 1, "url": url}
    (run / "service.json").write_text(json.dumps(serving))
    try:
        assert deploy(home).reused
        (run / "final/golden.json").unlink()  # so that it is told before a server is started
        (run / "service.json").write_text(json.dumps({**serving, "model_digest": "before"}))
        with pytest.raises(StepError, match=r"no golden\.json"):
            deploy(home)
    finally:
        (run / "service.json").unlink()  # whose process is this one


def test_a_run_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / PVC / "empty").mkdir(parents=True)
    values = Parameters(run_name="empty", inference_only=True).model_dump()
    with pytest.raises(RequestError, match="run_name 'empty' left no finished model"):
        deploy_here(values, tmp_path / PVC, print)
