"""Whole runs by the command line: real steps, a real Prefect server, real signals.

The tests go in the order of the file: later ones look at the run `whole` of the first.
"""

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from infra.local import service as local_service
from infra.local.processes import LocalBackend
from tests.flows.small_volume import PVC, finetune, give_way
from trainer.contract.checkpoints import name_of, newest_good, steps_there
from trainer.contract.run_folder import RunFolder
from trainer.report.journal import HEARTBEAT_SECONDS
from trainer.report.times import ledger
from trainer.tokens.store import TokenStore

# About 200 steps of a tiny model; LONG ones do not end within a test.
LONG = 2000
REQUEST = {
    "model": "models/tiny",
    "context": 64,
    "batch_size": 4,
    "gradients": 1,
    "epochs": 4,
    "save_steps": 20,
    "learn_rate": 1e-3,
    "prompt_tokens": 8,
    "prompt_samples": 1,
}


def arguments(run_name: str, **changed: Any) -> list[str]:
    given = {"run_name": run_name, **REQUEST, **changed}
    return ["run", *(part for name, value in given.items() for part in ("-p", f"{name}={value}"))]


@pytest.fixture
def start(home: Path, environment: dict[str, str]) -> Iterator[Any]:
    """Starts `finetune`; what a test leaves running is ended."""
    names: set[str] = set()
    processes: list[subprocess.Popen[str]] = []

    def starting(run_name: str, **changed: Any) -> subprocess.Popen[str]:
        names.add(run_name)
        processes.append(finetune(home, environment, *arguments(run_name, **changed)))
        return processes[-1]

    yield starting
    for process in processes:
        process.kill()
        process.communicate()
    for name in names:
        LocalBackend(home).stop(PVC, name, grace_seconds=1)
        finetune(home, environment, "stop", name).wait()


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=1000)
    assert process.returncode == code, err
    return out, err


def command(home: Path, environment: dict[str, str], *words: str, code: int = 0) -> str:
    return "".join(ended(finetune(home, environment, *words), code))


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 1000
    while not list(path.parent.glob(path.name)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The line of standard error that has `words`."""
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"it never said {words!r}")


def pid_of(home: Path, run_name: str) -> int:
    return int((home / PVC / ".runs" / run_name / "finetune/pid").read_text())


def metrics(home: Path, run_name: str) -> list[dict[str, Any]]:
    text = (home / PVC / run_name / "metrics.jsonl").read_text()
    whole, _, _ = text.rpartition("\n")  # the last line may be running
    return [line for line in map(json.loads, whole.splitlines()) if "loss" in line]


def lose_time(home: Path, run_name: str, process: subprocess.Popen[str]) -> float:
    """Have training take a heartbeat's time after a checkpoint; the seconds that a kill loses."""
    training, deadline = pid_of(home, run_name), time.monotonic() + 1000
    step = metrics(home, run_name)[-1]["step"]
    while metrics(home, run_name)[-1]["step"] < step + 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(training, signal.SIGSTOP)
    time.sleep(HEARTBEAT_SECONDS + 0.5)
    os.killpg(training, signal.SIGCONT)
    while time.monotonic() < deadline:
        (path,) = (home / PVC / run_name / "times").glob("*-finetune.json")
        written = json.loads(path.read_text())
        lost = sum(written["parts"].values()) - sum(written["saves"][-1]["parts"].values())
        if lost > HEARTBEAT_SECONDS:
            return lost
        time.sleep(0.01)
    raise AssertionError("no heartbeat came")


def test_a_run_makes_a_better_model_that_loads_and_is_free_the_second_time(
    home: Path, environment: dict[str, str], start: Any
) -> None:
    out, err = ended(start("whole"))
    assert "whole is done" in out
    for step in ("fetch", "tokenize", "finetune", "evaluate", "deploy"):
        assert f"{step}: done" in err or f"{step}: cached" in err
    folder = home / PVC / "whole"
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["loss"] < report["base_loss"] - 0.5
    model = AutoModelForCausalLM.from_pretrained(folder / "final")
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    asked = tokenizer("The sheriff", return_tensors="pt")
    assert model.generate(**asked, max_new_tokens=3, do_sample=False).shape[-1] > 3
    assert (folder / "final/README.md").read_text().count("loss")
    steps = [line["step"] for line in metrics(home, "whole")]
    assert steps == list(range(1, len(steps) + 1))
    # No address is shown of a server that was there only to show that it can be.
    assert ", it answered " in err and "http://" not in err

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    out, err = ended(start("whole", trainer_cores=4))
    for step in ("fetch", "tokenize", "finetune", "evaluate", "deploy"):
        assert f"{step}: cached" in err
    assert err.count("without effect here: trainer_cores\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}

    _, err = ended(start("whole", epochs=5), code=78)
    assert "epochs was 4, is 5" in err and "no_resume=true" in err

    assert "whole" in command(home, environment, "runs")
    assert "'models/tiny'" in command(home, environment, "show", "whole")
    assert "final: good" in command(home, environment, "verify", "whole")
    weights = next((folder / "final").glob("*.safetensors"))
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert weights.name in command(home, environment, "verify", "whole", code=1)
    weights.write_bytes(good)


def test_the_model_that_is_served_scores_held_out_text_as_the_evaluation_did(home: Path) -> None:
    """Perplexity by OpenAI's own client, from the log-probabilities of echoed prompts."""
    volume = home / PVC
    report = json.loads((volume / "whole/evaluation.json").read_text())
    request = json.loads((volume / "whole/run.json").read_text())
    store = TokenStore.open(volume / request["tokens"])
    held_out = range(store.manifest.num_train_contexts, store.manifest.num_contexts)
    prompts = [store.contexts[i, : store.lengths[i]].tolist() for i in held_out]
    scores: list[float] = []
    with local_service.serving_for_a_while(volume, "whole/final") as endpoint:
        http = httpx.Client(trust_env=False, timeout=200)
        with openai.OpenAI(
            base_url=f"{endpoint.url}/v1", api_key="none", http_client=http
        ) as client:
            done = client.completions.create(
                model="final", prompt=prompts, max_tokens=0, echo=True, logprobs=0
            )
        for choice in done.choices:
            assert choice.logprobs and choice.logprobs.token_logprobs
            scores += choice.logprobs.token_logprobs[1:]
    assert len(scores) == report["tokens"]
    perplexity = math.exp(-sum(scores) / len(scores))
    assert perplexity == pytest.approx(report["perplexity"], rel=1e-4)


def test_a_checkpoint_is_asked_as_the_service_is_and_leaves_no_server(
    home: Path, environment: dict[str, str]
) -> None:
    step = steps_there(home / PVC / "whole/checkpoints")[-1]
    words = ("ask", "whole", "The sheriff", "--max-tokens", "5")
    told = command(home, environment, *words, "--step", str(step))
    assert told.startswith("The sheriff")
    assert len(told.strip()) > len("The sheriff")
    assert "is not served" in command(home, environment, *words, code=78)
    told = command(home, environment, *words, "--step", "7", code=78)
    assert "--step is no checkpoint of whole (got 7)" in told


def test_killed_in_training_with_kill_9_it_ends_as_if_nothing_had_happened(
    home: Path, start: Any
) -> None:
    first = start("broken")
    began = psutil.Process(first.pid).create_time()
    wait_for(home / PVC / "broken/checkpoints/step-*", first)
    known_lost = lose_time(home, "broken", first)
    os.killpg(pid_of(home, "broken"), signal.SIGKILL)
    first.kill()
    first.wait()
    killed = time.time()
    _, err = ended(start("broken"))
    assert "resumes from step" in err
    report = home / PVC / "broken/report.html"
    (over,) = (home / PVC / "broken/times").glob("*-flow.json")  # written when the run is over
    took = over.stat().st_mtime - began
    parts = ledger(RunFolder(home / PVC, "broken"))
    assert sum(parts.values()) == pytest.approx(took, rel=0.01)
    assert known_lost <= parts["lost work"] < killed - began
    assert all(parts[name] > 0 for name in ("compute", "load", "evaluation", "deploy"))
    page = report.read_text()
    assert "lost work" in page and "polyline" in page
    losses = [line["loss"] for line in metrics(home, "broken")]
    assert losses == [line["loss"] for line in metrics(home, "whole")]
    one, other = (
        load_file(home / PVC / name / "final/model.safetensors") for name in ("whole", "broken")
    )
    assert one.keys() == other.keys()
    assert all((one[name] == other[name]).all() for name in one)


def test_runs_are_compared_forked_and_made_again_by_command(
    home: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    def said(*words: str, code: int = 0) -> str:
        return command(home, environment, *words, code=code)

    assert said("diff", "whole", "broken").count("  the same") == 6
    step = steps_there(home / PVC / "whole/checkpoints")[0]
    forked = said("fork", "whole", "--step", str(step), "-p", "learn_rate=1e-5")
    assert f"whole-fork resumes from step {step} of whole" in forked
    told = said("diff", "whole", "whole-fork")
    assert "learn_rate: 0.001 | 1e-05" in told and "training differs from step" in told
    again = said("reproduce", "whole-fork")
    assert "whole-fork-again is whole-fork bit for bit" in again
    assert "may differ" not in again

    opened, stand_in = tmp_path / "opened", tmp_path / "xdg-open"
    stand_in.write_text(f'#!/bin/sh\necho "$1" > {opened}.part && mv {opened}.part {opened}\n')
    stand_in.chmod(0o755)
    environment = {**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    page = home / PVC / "whole/report.html"
    page.unlink()
    shown = finetune(home, environment, "show", "whole", "--open")
    assert str(page) in ended(shown)[0]
    deadline = time.monotonic() + 1000
    while not opened.exists():
        assert time.monotonic() < deadline, "no browser was asked"
        time.sleep(0.01)
    assert opened.read_text().strip() == str(page)
    assert "polyline" in page.read_text()


def test_no_resume_starts_over_and_keeps_what_was_there(home: Path, start: Any) -> None:
    first = start("whole", epochs=LONG, no_resume="true")
    wait_for(home / PVC / "whole/replaced/*", first)
    (kept,) = (home / PVC / "whole/replaced").iterdir()
    wait_for(kept / "run.json", first)  # which goes last
    wait_for(home / PVC / "whole/metrics.jsonl", first)
    assert json.loads((kept / "run.json").read_text())["request"]["epochs"] == REQUEST["epochs"]
    assert list((kept / "final").glob("*.safetensors"))
    now = json.loads((home / PVC / "whole/run.json").read_text())
    assert now["request"]["epochs"] == LONG


def test_a_run_has_one_orchestrator_outlives_it_and_stops_by_ctrl_c(home: Path, start: Any) -> None:
    first = start("long", epochs=LONG)
    wait_for(home / PVC / "long/metrics.jsonl", first)
    give_way(f"{home}/{PVC}/.runs/long/")
    _, err = ended(start("long", epochs=LONG), code=78)
    assert f"being run by process {first.pid}" in err

    training = pid_of(home, "long")
    first.kill()
    first.wait()
    os.kill(training, 0)
    second = start("long", epochs=LONG)
    line = read_until(second, "already running")
    assert str(training) in line
    second.send_signal(signal.SIGINT)
    _, err = ended(second, code=75)
    assert "Run it again to resume" in err
    steps = [line["step"] for line in metrics(home, "long")]
    assert steps == list(range(1, len(steps) + 1))
    # Nothing of it is lost: what resumes from here is held by the run that is killed.
    newest, _ = newest_good(home / PVC / "long/checkpoints")
    assert newest is not None and newest.name == name_of(steps[-1])


def test_bad_text_is_refused_by_place_and_leaves_no_run(home: Path, start: Any) -> None:
    """What else is bad text, tests/tokens/test_bad_input.py knows."""
    folder = home / PVC / "bad"
    folder.mkdir()
    (folder / "broken.jsonl").write_bytes(b'{"text": "fine"}\n{"text": \n')
    _, err = ended(start("bad-text", dataset="bad"), code=78)
    assert "broken.jsonl:2" in err
    assert not (home / PVC / "bad-text").exists()
