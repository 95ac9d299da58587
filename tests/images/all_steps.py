"""Every step of a run in the steps' image, one container each, on a small model and text."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.cli.prefect_server import free_port
from tasks import configs
from tests.flows.small_volume import PVC, make_volume
from tests.images.sandbox import Mount
from tests.kubernetes.pipeline import REQUEST
from trainer.contract.outcome import TERMINATION_PATH_VARIABLE
from trainer.contract.parameters import Parameters

READY_SECONDS = 300


class _Containers:
    """Starts the trainer in containers that share a volume."""

    def __init__(self, start: Any, folder: Path) -> None:
        self._start, self._folder = start, folder
        self.volume = make_volume(folder)
        for path in (self.volume, *self.volume.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o777)

    def popen(self, step: str, config: dict[str, Any]) -> "subprocess.Popen[str]":
        variables = [f"{TERMINATION_PATH_VARIABLE}=/{PVC}/{step}.outcome"]
        variables += ["DS_ACCELERATOR=cpu", "OMP_NUM_THREADS=1"]
        words = ["env", *variables, "python", "-m", "trainer", step, json.dumps(config)]
        mounts = {f"/{PVC}": Mount(source=self.volume), "/tmp": Mount(source=self._folder / "tmp")}
        command, environment = self._start("steps", words, mounts)
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, step: str, config: dict[str, Any]) -> dict[str, Any]:
        """The result of the step; raises RuntimeError with its output if it does not end well."""
        process = self.popen(step, config)
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the {step} step ended with {process.returncode}:\n{output}")
        outcome = json.loads((self.volume / f"{step}.outcome").read_text())
        assert outcome["status"] == "done", outcome
        return outcome["result"]


def run_all_steps(start: Any, folder: Path) -> Iterator[str]:
    """Run them; a line for each, as it is done.

    Raises:
        RuntimeError: One did not end well; with its output.
    """
    containers = _Containers(start, folder)
    values = Parameters(**(REQUEST.model_dump(exclude_unset=True) | {"epochs": 1})).model_dump()
    request = REQUEST.request
    began = time.monotonic()

    def did(step: str) -> str:
        nonlocal began
        took, began = time.monotonic() - began, time.monotonic()
        return f"{step}: done in {took:.1f} s"

    containers.run("plan", {**configs.fetch_config(values, request), "check_only": True})
    yield did("plan")
    fetched = containers.run("fetch", configs.fetch_config(values, request))
    yield did("fetch")
    folders = {"model": fetched["model"], "tokenizer": fetched["tokenizer"]}
    tokens = containers.run("tokenize", configs.tokenize_config(values, **folders))["store"]
    yield did("tokenize")
    asked = {"attempt": "check", "earlier_outcomes": []}
    config = configs.finetune_config(values, request, **folders, tokens=tokens, **asked)
    containers.run("finetune", config)
    yield did("finetune")
    known = {"model": fetched["model"], "tokens": tokens}
    containers.run("evaluate", configs.evaluate_config(values, **known))
    yield did("evaluate")
    look = configs.champion_config(values, request, series="series", action="look", **known)
    containers.run("champion", look)
    yield did("champion")
    found = containers.run("deploy", configs.deploy_config(values, run_name="", run="run"))
    with _served(containers, found["model"]) as url:
        check = configs.deploy_config(values, run_name="run", run="run", url=url, serving={})
        containers.run("deploy", check)
        yield did("serve and deploy")


@contextlib.contextmanager
def _served(containers: _Containers, model: str) -> Iterator[str]:
    """The address of a server of the model, which is stopped in the end."""
    ready = containers.volume / "ready"
    config = {"volume": f"/{PVC}", "model": model, "port": free_port()}
    process = containers.popen("serve", {**config, "ready_file": f"/{PVC}/ready"})
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not get ready:\n{process.communicate()[0]}")
            time.sleep(0.2)
        yield json.loads(ready.read_text())["url"]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, 15)
        process.communicate()
