"""The run of `finetune rehearse`: every step on a small copy of the volume, on this CPU."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tasks import configs
from trainer.contract.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    RequestError,
    StepError,
)
from trainer.contract.json_text import parse_json
from trainer.contract.parameters import Parameters
from trainer.contract.volume import is_url
from trainer.exam.kept import OFF, VARIABLE

Say = Callable[[str], Any]
BYTES_A_TOKEN = 4.5  # of prose, about: only how much of the text is trained on depends on it
CONTEXTS = 24  # trained on and held out, about
# What of the request is rehearsed as it is; the rest is made small, or is a cluster's.
KEPT = (
    "run_name pvc random_seed sanitize reorder no_shuffle eot_token pad_token boundary_token "
    "boundary_index context train_ratio top_k top_p temperature repetition_penalty learn_rate "
    "warmup_ratio zero_stage lora optimizer preference trust_remote_code"
).split()
SMALL: dict[str, Any] = {
    "model": "models/small",
    "epochs": 1,
    "batch_size": 1,
    "save_steps": 2,
    "prompt_tokens": 8,
    "prompt_samples": 1,
}


def rehearse_run(parameters: Parameters, home: Path, say: Say) -> None:
    """Run every step on a small copy of the volume, interrupt it once, and continue.

    Raises:
        RequestError: The model can't be made small, or is not on the volume.
        StepError: It failed, or did not continue as it should.
    """
    with _small_volume(parameters, home) as small:
        _run(parameters, small, say)


def rehearse_run_without_volume(parameters: Parameters, home: Path, say: Say) -> None:
    """The same for a run on a cluster, where what it needs can be had without the claim."""
    seen = parameters.model_copy(update={"prompt_file": ""})  # it is on the claim
    if not is_url(parameters.dataset):
        return say("run      left out: the dataset is on the claim alone")
    with contextlib.ExitStack() as kept:
        try:
            small = kept.enter_context(_small_volume(seen, home))
        except RequestError as error:
            return say(f"run      left out: {error}")
        _run(seen, small, say)


@contextlib.contextmanager
def _small_volume(parameters: Parameters, home: Path) -> Iterator[Path]:
    """A small copy of the volume in a home of its own, which nothing is left of."""
    with tempfile.TemporaryDirectory(prefix="finetune-rehearsal-") as folder:
        small = Path(folder) / parameters.pvc
        small.mkdir()
        _shrink(parameters, home, small)
        yield small


def _run(parameters: Parameters, small: Path, say: Say) -> None:
    request = small.parent / "request.yaml"
    request.write_text(yaml.safe_dump(small_request(parameters, small)), encoding="utf-8")
    run = small / parameters.run_name
    say("run      every step in small, on this CPU: about two minutes")
    begun = time.monotonic()
    interrupted = _interrupted_run(request, small.parent, run)
    _run_to_its_end(request, small.parent)
    steps = _steps_of(run)
    if steps != list(range(1, len(steps) + 1)):
        raise StepError(f"the rehearsal's steps are not each there once (got {steps}).")
    how = "interrupted once and resumed" if interrupted else "too short to interrupt"
    took = time.monotonic() - begun
    say(f"run      every step in small, {len(steps)} of training, {how}: {took:.0f} s")


def _shrink(parameters: Parameters, home: Path, small: Path) -> None:
    config = configs.fetch_config(parameters.model_dump(), {})
    text = json.dumps({**config, "volume": str(home / parameters.pvc)})
    command = [sys.executable, "-P", "-m", "trainer.rehearse.small_volume", text, str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == EXIT_REFUSED:
        raise RequestError(*done.stderr.strip().splitlines()[-1:])
    if done.returncode:
        raise StepError(f"no small copy of the volume could be made:\n{done.stderr[-2000:]}")


def small_request(parameters: Parameters, small: Path) -> dict[str, Any]:
    """The parameters of the run on the volume `small`: as they were asked, where a CPU can."""
    values = parameters.model_dump(mode="json")
    files = [path for path in (small / "dataset").rglob("*") if path.is_file()]
    contexts = sum(path.stat().st_size for path in files) / BYTES_A_TOKEN / parameters.context
    share = max(1, min(100, round(100 * CONTEXTS / max(contexts, 1.0))))
    # One file may be of a kind that only its own name tells: the reference's tokens, or any text.
    dataset = str(files[0].relative_to(small)) if len(files) == 1 else "dataset"
    template = "template.jinja" if parameters.data.template else ""
    return {
        **{name: values[name] for name in KEPT},
        **SMALL,
        "dataset": dataset,
        "tokenizer": "models/tokenizer" if parameters.tokenizer else "",
        "prompt_file": "prompts.txt" if parameters.prompt_file else "",
        # Of a mixture the text of the dataset alone.
        "data": {
            **values["data"],
            "template": template,
            "weights": {},
            "replay": "",
            "replay_share": 0.0,
        },
        "sampling": parameters.sampling if dataset.endswith(".tokens") else share,
        # What a CPU has not: fp16, and Liger's kernels.
        "precision": "" if parameters.precision == "fp16" else parameters.precision,
        "kernels": {**values["kernels"], "liger": False},
        # The small run has few steps: a warm-up by its count would be longer than it.
        "schedule": {**values["schedule"], "warmup_steps": 0},
        "gradients": min(parameters.gradients, 2),
        "trainer_gpus": min(parameters.trainer_gpus, 2),
    }


def _environment(home: Path) -> dict[str, str]:
    """Of a Prefect of its own: the user's would keep the runs, and tell people how they ended."""
    others = {name: v for name, v in os.environ.items() if not name.startswith("PREFECT_")}
    others[VARIABLE] = OFF  # of the real model's config it was made, by the request's check
    return others | {"PREFECT_HOME": str(home / "prefect")}


def _command(request: Path, home: Path) -> list[str]:
    run = [sys.executable, "-P", "-m", "flows.cli", "run", "--backend", "local"]
    return [*run, "--params", str(request), "--home", str(home)]


def _interrupted_run(request: Path, home: Path, run: Path) -> bool:
    """Begin the run and interrupt it after its first step; False where it had ended."""
    metrics = run / "metrics.jsonl"
    with open(home / "first.log", "w+b") as log:
        command, environment = _command(request, home), _environment(home)
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            code = process.wait()
        if code not in (EXIT_DONE, EXIT_INTERRUPTED):
            log.seek(0)
            raise StepError(f"the rehearsal failed:\n{log.read().decode(errors='replace')[-3000:]}")
    return code == EXIT_INTERRUPTED


def _run_to_its_end(request: Path, home: Path) -> None:
    command, environment = _command(request, home), _environment(home)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise StepError(f"the rehearsal did not resume:\n{done.stderr[-3000:]}")


def _steps_of(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["step"] for line in map(parse_json, lines) if "loss" in line]
