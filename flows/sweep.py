"""The flow `sweep`: many runs with other values, the best ones trained longest.

Each trial is a run of its own, in a process of its own, with all that a run has: killed
and started again, the sweep finds what is done and continues with what was begun. All
share one store of tokens, as long as no value changes the tokens.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL

from flows.sweep_request import SweepParameters, asked_trials
from flows.trials import Trial, check_losses, going_on, picture, rungs, table
from infra.choose_backend import BACKEND_VARIABLE, home_from_environment
from tasks.cancelling import environment_of_part
from tasks.run_step import current_watcher
from trainer.contract.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    Interrupted,
    RequestError,
)
from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json
from trainer.contract.parameters import takes
from trainer.contract.validation import load_parameters

Say = Callable[[str], Any]
FOLDER = "sweeps"
LOOK_SECONDS = 0.2


@flow(name="sweep", flow_run_name="{run_name}", validate_parameters=False)
@takes(SweepParameters)
def sweep(**given: Any) -> list[dict[str, Any]]:
    """Run many trials with other values of some parameters, and compare their losses."""
    parameters = load_parameters(SweepParameters, given)
    trials = run_sweep(parameters, home_from_environment(), _say)
    rows, name = table(trials), parameters.run_name
    best = rows[0]
    about = f"Best: {best['run']} with loss {best['loss']}"
    create_table_artifact(rows, key=f"{name}-sweep", description=about)
    svg = b64encode(picture(trials).encode()).decode()
    url = f"data:image/svg+xml;base64,{svg}"
    create_image_artifact(url, key=f"{name}-sweep-picture", description=about)
    return rows


def _say(line: str) -> None:
    get_run_logger().info("%s", line)
    if watcher := current_watcher():
        watcher.line("sweep", line)


def run_sweep(parameters: SweepParameters, home: Path, say: Say) -> list[Trial]:
    """Run all rounds; every trial with the loss of its last run.

    Raises:
        RequestError: A trial would be refused; nothing was started.
        Interrupted: A signal came; the same sweep continues.
        StepError: Every trial of a round failed.
    """
    trials, requests = asked_trials(parameters)
    rounds = rungs(parameters.epochs, parameters.halving)
    known = {trial.number: trial for trial in trials}
    for epochs in rounds:
        say(f"{len(trials)} trial(s) of {epochs} epoch(s)")
        asked = [
            replace(t, epochs=epochs, run=_name(parameters, t, epochs, rounds)) for t in trials
        ]
        done = _run_all(parameters, asked, requests, home, say)
        known |= {trial.number: trial for trial in done}
        _record(parameters, home, list(known.values()))
        check_losses(done)
        trials = going_on(done, parameters.halving)
    return list(known.values())


def _name(parameters: SweepParameters, trial: Trial, epochs: int, rounds: Sequence[int]) -> str:
    tail = f"-e{epochs}" if len(rounds) > 1 else ""
    return f"{parameters.run_name}-{trial.number}{tail}"


def _record(parameters: SweepParameters, home: Path, trials: list[Trial]) -> None:
    """Keep table and picture on the volume, where it is a folder here."""
    volume = home / parameters.pvc
    if volume.is_dir():
        folder = volume / FOLDER / parameters.run_name
        write_atomically(folder / "result.json", json.dumps(table(trials), indent=1))
        write_atomically(folder / "result.svg", picture(trials))


# --- processes --------------------------------------------------------------------------


def _run_all(
    parameters: SweepParameters,
    trials: Sequence[Trial],
    requests: Mapping[int, Mapping[str, Any]],
    home: Path,
    say: Say,
) -> list[Trial]:
    """Run the trials, at most `parallel` at a time; each with its loss, None where it failed."""
    waiting, done = list(trials), []
    running: dict[str, tuple[Trial, subprocess.Popen[bytes]]] = {}
    with tempfile.TemporaryDirectory() as folder, _ended_with_us(running):
        while waiting or running:
            while waiting and len(running) < parameters.parallel:
                trial = waiting.pop(0)
                varied = {} if "epochs" in trial.values else {"epochs": trial.epochs}
                request = {**requests[trial.number], **varied, "run_name": trial.run}
                running[trial.run] = (trial, _start(request, home, Path(folder)))
            for run, (trial, process) in list(running.items()):
                if process.poll() is not None:
                    del running[run]
                    done.append(replace(trial, loss=_loss(run, process, Path(folder), say)))
            time.sleep(LOOK_SECONDS)
    return sorted(done, key=lambda trial: trial.number)


def _start(request: Mapping[str, Any], home: Path, folder: Path) -> "subprocess.Popen[bytes]":
    run = request["run_name"]
    path = folder / f"{run}.json"
    path.write_text(json.dumps(request), encoding="utf-8")
    backend = os.environ.get(BACKEND_VARIABLE) or "local"
    command = [sys.executable, "-P", "-m", "flows.cli", "run", "--backend", backend, "--json"]
    environment = {**environment_of_part(), "PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    with open(folder / f"{run}.out", "wb") as out, open(folder / f"{run}.err", "wb") as err:
        return subprocess.Popen(
            [*command, "--only-compared", "--params", str(path), "--home", str(home)],
            stdin=subprocess.PIPE,  # never written to: its end tells the trial of ours
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,  # a signal comes from us, once
        )


def _loss(run: str, process: "subprocess.Popen[bytes]", folder: Path, say: Say) -> float | None:
    said = (folder / f"{run}.err").read_text(encoding="utf-8", errors="replace")
    if process.returncode == EXIT_REFUSED:
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        raise RequestError(*(line.removeprefix("error: ") for line in lines))
    if process.returncode == EXIT_INTERRUPTED:
        raise Interrupted(f"{run} was interrupted. Start the sweep again to resume.")
    if process.returncode != EXIT_DONE:
        say(f"{run} failed, and is left out:\n{said[-2000:]}")
        return None
    loss = parse_json((folder / f"{run}.out").read_text()).get("finetuned_loss")
    say(f"{run}: loss {loss}")
    return loss


@contextlib.contextmanager
def _ended_with_us(
    running: Mapping[str, tuple[Trial, "subprocess.Popen[bytes]"]],
) -> Iterator[None]:
    """Hand on what interrupts us: Ctrl-C stops the trials after saving, SIGTERM leaves steps."""
    try:
        yield
    except BaseException as error:  # whatever ends us: no trial is left that nobody waits for
        interrupted = isinstance(error, KeyboardInterrupt)
        for _, process in running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT if interrupted else signal.SIGTERM)
        for _, process in running.values():
            process.wait()
        raise
