"""Run the flow in this process, for a person: `finetune run` and `finetune tokenize`."""

import contextlib
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.embedded_server import answers, embedded_server, keep_proxies_off_loopback
from flows.parameters import Parameters, cluster_settings
from flows.plan_request import gather, plan_with
from flows.terminal import PlainWatcher, RichWatcher, watcher_for
from flows.trial_process import end_with_sweep, wait_for_earlier
from infra.backend import StepSpec, work_key
from infra.local_processes import LocalBackend
from infra.place import BACKEND_VARIABLE
from tasks import configs
from tasks.following import claimed, follow_step
from tasks.wording import format_seconds
from trainer.errors import Interrupted, RequestError, StepError
from trainer.volume_paths import path_on_volume

SAMPLE_WIDTH = 160  # characters of a sample in the summary

# Set before Prefect is loaded, and only where the user has not chosen otherwise.
PREFECT_DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # it writes to the database at the same time as us
    # The watcher shows the run, its errors come as one message; the log itself goes to the server.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_CLI_PROMPT": "false",
    "DO_NOT_TRACK": "1",
}


def run_flow(
    parameters: Parameters,
    home: Path,
    *,
    on_cluster: bool,
    as_json: bool = False,
    only_compared: bool = False,
) -> None:
    """Run the flow and print what it made, for people or as JSON.

    Args:
        only_compared: As a trial of a sweep, which started this process: end with it, and start
            no server only to show that the model can be served.
    """
    clock, listing = time.monotonic(), uuid.uuid4().hex
    if only_compared:
        end_with_sweep()
        if not on_cluster:
            wait_for_earlier(LocalBackend(home), parameters.pvc, parameters.run_name)
    if on_cluster:
        cluster_settings(parameters)
    else:
        check_request(parameters, home, listing)
    watcher = watcher_for(sys.stderr)
    try:
        with prefect_api():
            result = _call_flow(parameters, watcher, only_compared, listing)
    finally:
        watcher.close()
    if as_json:
        print(json.dumps(result))
    else:
        print(summary(parameters, home, result, time.monotonic() - clock))


def check_request(parameters: Parameters, home: Path, listing: str = "") -> None:
    """Refuse a wrong request at once, before Prefect is loaded and its server started.

    Args:
        listing: Of the dataset, which the run then shares.
    Raises:
        RequestError: With everything that is wrong.
    """
    if parameters.inference_only:
        return
    path_on_volume(home / parameters.pvc, "logs", parameters.logs)
    backend = LocalBackend(home, parameters.logs)
    config = configs.fetch_config(parameters.model_dump(), parameters.request, listing=listing)
    with claimed(backend, parameters.pvc, parameters.run_name):
        if not backend.running_steps(parameters.pvc, parameters.run_name):
            follow_step(backend, _spec(parameters, "fetch", {**config, "check_only": True}), [])
    facts = gather(parameters, home / parameters.pvc, listing=listing)
    problems = plan_with(facts, parameters, on_cluster=False).problems
    if problems and not facts.admitted:
        raise RequestError(*problems)


def _spec(parameters: Parameters, step: str, config: dict[str, Any]) -> StepSpec:
    key = work_key(config, without=configs.NOT_DEFINING)
    return StepSpec(
        step=step, run_name=config["run_name"], volume=parameters.pvc, config=config, key=key
    )


@contextlib.contextmanager
def prefect_api() -> Iterator[None]:
    """Prefect's settings for a person's run, and a server where none is named."""
    for name, value in PREFECT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    keep_proxies_off_loopback()
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if named := PREFECT_API_URL.value():
        if not answers(named):
            raise StepError(
                f"PREFECT_API_URL does not answer (got {named}). Start that server, correct the "
                "address, or unset it to use an embedded one."
            )
        yield
        return
    print("starting Prefect's embedded server (some seconds)", file=sys.stderr, flush=True)
    with embedded_server() as url, temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            # The last lines of the log are sent from a queue, while there is a server to take them.
            for name in ("prefect", "prefect.flow_runs", "prefect.task_runs"):
                for handler in logging.getLogger(name).handlers:
                    handler.flush()


def _call_flow(
    parameters: Parameters,
    watcher: PlainWatcher | RichWatcher,
    only_compared: bool,
    listing: str,
) -> dict[str, Any]:
    from prefect.exceptions import TerminationSignal

    from flows.finetune import finetune
    from tasks.cancelling import ending_as_cancelled, tagged_as_part
    from tasks.running import compared_by_loss, sharing_listing, watch_with

    watch_with(watcher)
    comparing = compared_by_loss() if only_compared else contextlib.nullcontext()
    try:
        with ending_as_cancelled(), tagged_as_part(), comparing, sharing_listing(listing):
            return finetune(**parameters.model_dump())
    except TerminationSignal as signal:
        raise Interrupted(
            "stopped by SIGTERM; a step that is under way goes on. Follow it again by the same "
            f"command, or stop it: {_stop_command(parameters.run_name)}"
        ) from signal


def _stop_command(run_name: str) -> str:
    where = " --backend kubernetes" if os.environ.get(BACKEND_VARIABLE) == "kubernetes" else ""
    return f"finetune stop {run_name}{where}"


def summary(parameters: Parameters, home: Path, result: dict[str, Any], seconds: float) -> str:
    """What was made, where, what it achieved, and how long each step took."""
    run_folder = home / parameters.pvc / parameters.run_name
    steps = ", ".join(f"{name} {format_seconds(took)}" for name, took in result["seconds"].items())
    rows = [("steps", steps)]
    for name in ("loss", "perplexity"):
        before, after = result.get(f"base_{name}"), result.get(f"finetuned_{name}")
        if before is not None and after is not None:
            rows.append((f"held-out {name}", f"{before:.4f} before, {after:.4f} after"))
    rows += [(f"text {when}", text) for when, text in _texts(run_folder / "evaluation.json")]
    rows.append(("model", str(run_folder / "final")))
    if (run_folder / "evaluation.md").exists():
        rows.append(("samples", str(run_folder / "evaluation.md")))
    if result.get("url"):
        rows.append(("served at", f"{result['url']}  ({_stop_command(parameters.run_name)})"))
    width = max(len(name) for name, _ in rows) + 2
    head = f"{parameters.run_name} is done in {format_seconds(seconds)}"
    return "\n".join([head, *(f"{name:<{width}}{text}" for name, text in rows)])


def _texts(report: Path) -> list[tuple[str, str]]:
    """How each model goes on after the first prompt of the evaluation, on one line."""
    if not report.exists():
        return []
    samples = json.loads(report.read_text(encoding="utf-8"))["samples"]
    if not samples:
        return []
    prompt = samples[0]["prompt"]
    texts = (("before", samples[0]["base"][0]), ("after", samples[0]["finetuned"][0]))
    return [(when, " ".join(f"{prompt}|{text}".split())[:SAMPLE_WIDTH]) for when, text in texts]


def run_tokenize(parameters: Parameters, home: Path, **options: Any) -> Path:
    """Run the fetch and tokenize steps without Prefect; return the store's folder.

    Args:
        options: Of TokenizeConfig, which no parameter of the flow sets.
    Raises:
        RequestError, Interrupted, StepError: As of a run.
    """
    backend = LocalBackend(home, parameters.logs)
    values, listing = parameters.model_dump(), uuid.uuid4().hex
    watcher = watcher_for(sys.stderr)

    def follow(step: str, config: dict[str, Any]) -> dict[str, Any]:
        # What it makes belongs to no run.
        spec = _spec(parameters, step, {**config, "run_name": ""})
        return follow_step(backend, spec, [watcher]).result

    try:
        fetched = follow("fetch", configs.fetch_config(values, {}, listing=listing))
        config = configs.tokenize_config(
            values, model=fetched["model"], tokenizer=fetched["tokenizer"], listing=listing
        )
        tokenized = follow("tokenize", {**config, **options})
    finally:
        watcher.close()
    return backend.volume(parameters.pvc) / tokenized["store"]
