"""The deploy task on this machine: prove that the model answers, leave it served if asked."""

import dataclasses
import hashlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from infra import local_service
from infra.local_processes import LocalBackend
from tasks import artifacts
from tasks.running import Run
from tasks.steps import ended
from trainer.errors import RequestError, StepError
from trainer.outcome import Outcome
from trainer.run_folder import RunFolder
from trainer.serving.gate import GateError, check, expected_of

READY_SECONDS = 600.0


@task(name="deploy", task_run_name="deploy {run.parameters[run_name]}", cache_policy=NO_CACHE)
def deploy(run: Run) -> Outcome:
    """Start the server, ask it a question, and stop it again unless `run_inference`."""
    assert isinstance(run.backend, LocalBackend)
    if run.watcher:
        run.watcher.started("deploy", "the inference server")
    outcome = _deploy(run, run.backend.volume(run.parameters["pvc"]))
    run.outcomes.append(outcome)
    if run.watcher:
        run.watcher.ended("deploy", outcome)
    if outcome.result["url"]:
        artifacts.show_endpoint(run.run_name, outcome.result["url"])
    return ended(outcome)


def _deploy(run: Run, volume: Path) -> Outcome:
    folder = RunFolder(volume, run.run_name)
    manifest = folder.final / "manifest.json"
    if not manifest.exists():
        raise RequestError(
            f"run_name {run.run_name!r} left no finished model (no {folder.final}). "
            "Finetune it first, without inference_only."
        )
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
    # inference_only asks for nothing but a service, so there it stays.
    keep = run.parameters["run_inference"] or run.parameters["inference_only"]
    earlier = folder.outcome("deploy")
    if earlier is not None and earlier.result.get("final_manifest") == digest:
        service = local_service.running(volume, run.run_name)
        if service is not None if keep else True:
            return dataclasses.replace(earlier, reused=True, seconds=0.0)
    outcome = _serve(run, volume, digest, keep)
    folder.record_outcome(outcome)
    return outcome


def _serve(run: Run, volume: Path, digest: str, keep: bool) -> Outcome:
    """Start a server that passes the gate, ask it, and stop it again unless it is to stay.

    `digest` is that of the final model's manifest.
    """
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    folder = RunFolder(volume, run.run_name)
    serving = local_service.running(volume, run.run_name)
    try:
        # A model that only shows that it can be served need not be better than another.
        expected = expected_of(
            folder.final,
            report=folder.report if keep else None,
            serving_loss=serving.figures.get("loss") if serving and keep else None,
        )
        service = local_service.start(
            volume,
            run.run_name,
            f"{run.run_name}/final",
            timeout_seconds=READY_SECONDS,
            logs=run.parameters["logs"],
            check=lambda service: check(service.url, service.name, expected),
            figures={} if expected.loss is None else {"loss": expected.loss},
        )
    except (local_service.ServiceError, GateError) as error:
        raise StepError(f"the deploy step of {run.run_name!r} failed: {error}") from error
    try:
        prompt = _prompt(folder)
        answer = local_service.ask(service, prompt)
        curl = local_service.curl_command(service, prompt)
        for line in (f"asked {prompt!r}, it answered {answer!r}", f"ask it yourself: {curl}"):
            get_run_logger().info("%s", line)
            if run.watcher:
                run.watcher.line("deploy", line)
    finally:
        if not keep:
            local_service.stop(volume, run.run_name)
    return Outcome(
        step="deploy",
        status="done",
        message=f"serves at {service.url}" if keep else "answered; stopped (run_inference=false)",
        started=started,
        seconds=round(time.monotonic() - clock, 3),
        result={
            "url": service.url if keep else "",
            "curl": curl,
            "answer": answer,
            "final_manifest": digest,
        },
    )


def _prompt(folder: RunFolder) -> str:
    """A prompt that fits the text: the evaluation's first, else a word."""
    try:
        samples = json.loads(folder.report.read_text(encoding="utf-8"))["samples"]
    except FileNotFoundError:
        samples = []
    return samples[0]["prompt"] if samples else "The"
