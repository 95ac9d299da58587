"""`finetune rehearse`: everything that can be known of a request before a GPU is asked for.

request   every range, and what needs the volume: names, text, model, tokenizer
plan      contexts, memory, time and money against their limits
cluster   permissions, a dry run of every object, claim, Secrets, GPU classes
run       every step in small on this CPU, interrupted once and gone on with
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from flows.parameters import Parameters, cluster_settings
from flows.plan_request import plan_request
from flows.render import UNKNOWN_STORE, request_specs
from infra.backend import ContactError, PlaceError
from infra.catalogue import load_gpus
from infra.local_processes import LocalBackend
from infra.manifests import objects
from tasks import configs
from tasks.following import follow_step
from tasks.specs import step_spec
from trainer.config import path_on_volume
from trainer.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_REFUSED, RequestError, StepError

Say = Callable[[str], Any]
BYTES_A_TOKEN = 4.5  # of prose, about: only how much of the text is trained on depends on it
CONTEXTS = 24  # trained on and held out, about
# What of the request is rehearsed as it is; the rest is made small, or is a cluster's.
KEPT = (
    "run_name pvc random_seed sanitize reorder no_shuffle eot_token pad_token boundary_token "
    "boundary_index context train_ratio top_k top_p temperature repetition_penalty learn_rate "
    "warmup_ratio zero_stage lora"
).split()
SMALL: dict[str, Any] = {
    "model": "models/small",
    "dataset": "dataset",
    "epochs": 1,
    "batch_size": 1,
    "save_steps": 2,
    "prompt_tokens": 8,
    "prompt_samples": 1,
}


def problems_of(
    parameters: Parameters,
    home: Path,
    *,
    on_cluster: bool,
    say: Say,
    checks: Sequence[str] = ("request", "plan", "cluster"),
) -> list[str]:
    """Everything that would go wrong, as far as it can be asked without running anything.

    Args:
        checks: Which to make; the cluster is asked only `on_cluster`.
    """
    known = {"request": _request_problems, "plan": _plan_problems, "cluster": _cluster_problems}
    problems: list[str] = []
    for name in checks:
        if name == "cluster" and not on_cluster:
            continue
        try:
            found = known[name](parameters, home, on_cluster, say)
        except RequestError as error:
            found = list(error.problems)
        say(f"{name:<8} {'in order' if not found else f'{len(found)} to mend'}")
        problems += [problem for problem in found if problem not in problems]
    return problems


def _request_problems(parameters: Parameters, home: Path, on_cluster: bool, say: Say) -> list[str]:
    """What the fetch step would refuse; it touches nothing."""
    path_on_volume(home / parameters.pvc, "logs", parameters.logs)
    values = parameters.model_dump()
    config = {**configs.fetch_config(values, parameters.request), "check_only": True}
    follow_step(LocalBackend(home, parameters.logs), step_spec(values, "fetch", config), [])
    return []


def _plan_problems(parameters: Parameters, home: Path, on_cluster: bool, say: Say) -> list[str]:
    made = plan_request(parameters, home, num_contexts=None, on_cluster=on_cluster)
    return list(made.problems)


def _cluster_problems(parameters: Parameters, home: Path, on_cluster: bool, say: Say) -> list[str]:
    # Loads the Kubernetes client, which a rehearsal without a cluster need not have.
    from infra.kubernetes_backend.rehearsal import Wanted, rehearse

    settings = cluster_settings(parameters)
    specs = request_specs(parameters, settings, home / parameters.pvc, UNKNOWN_STORE)
    serves = parameters.run_inference and parameters.serving.gpus > 0
    gpus = {"trainer_gpu": parameters.trainer_gpu}
    gpus |= {"inference_gpu": parameters.inference_gpu} if serves else {}
    account = settings.service_account
    wanted = Wanted(
        objects=[made for spec in specs for made in objects(spec, settings)],
        claims={"pvc": parameters.pvc},
        secrets={
            "cluster.secrets": settings.secrets,
            "cluster.image_pull_secrets": settings.image_pull_secrets,
            "wandb_key": [parameters.wandb_key] if parameters.wandb_key else [],
        },
        service_accounts={"cluster.service_account": account} if account else {},
        gpus=gpus,
        region=parameters.region,
        serves=parameters.run_inference,
    )
    try:
        found = rehearse(wanted, settings)
    except (PlaceError, ContactError) as error:
        return [f"cluster can't be asked: {error}"]
    for note in found.notes:
        say(f"         {note}")
    known = load_gpus()
    return found.problems + [
        f"{name} is no class of the catalogue (got {gpu!r}). Known are {', '.join(known)}."
        for name, gpu in gpus.items()
        if gpu not in known
    ]


# --- the run in small -------------------------------------------------------------------


def rehearse_run(parameters: Parameters, home: Path, say: Say) -> None:
    """Run every step on a small copy of the volume, interrupt it once, and go on.

    Raises:
        RequestError: The model can't be made small, or is not on the volume.
        StepError: It failed, or did not go on as it should.
    """
    folder = home / parameters.pvc / "cache/rehearsals" / parameters.run_name
    shutil.rmtree(folder, ignore_errors=True)
    small = folder / parameters.pvc
    small.mkdir(parents=True)
    try:
        _shrink(parameters, home, small)
        request = folder / "request.yaml"
        request.write_text(yaml.safe_dump(_small_request(parameters, small)), encoding="utf-8")
        run = small / parameters.run_name
        say("run      every step in small, on this CPU: about two minutes")
        begun = time.monotonic()
        interrupted = _interrupted_run(request, folder, run)
        _run_to_its_end(request, folder)
        steps = _steps_of(run)
        if steps != list(range(1, len(steps) + 1)):
            raise StepError(f"the rehearsal's steps are not each there once (got {steps}).")
        how = "interrupted once and gone on with" if interrupted else "too short to interrupt"
        say(
            f"run      every step in small, {len(steps)} of training, {how}: "
            f"{time.monotonic() - begun:.0f} s"
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _shrink(parameters: Parameters, home: Path, small: Path) -> None:
    values = parameters.model_dump()
    config = configs.tokenize_config(values, model=parameters.model, tokenizer=parameters.tokenizer)
    text = json.dumps({**config, "volume": str(home / parameters.pvc)})
    command = [sys.executable, "-m", "trainer.shrinking", text, str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == EXIT_REFUSED:
        raise RequestError(*done.stderr.strip().splitlines()[-1:])
    if done.returncode:
        raise StepError(f"no small copy of the volume could be made:\n{done.stderr[-2000:]}")


def _small_request(parameters: Parameters, small: Path) -> dict[str, Any]:
    values = parameters.model_dump(mode="json")
    text_bytes = sum(path.stat().st_size for path in (small / "dataset").rglob("*.*"))
    contexts = text_bytes / BYTES_A_TOKEN / parameters.context
    return {
        **{name: values[name] for name in KEPT},
        **SMALL,
        "tokenizer": "models/tokenizer" if parameters.tokenizer else "",
        "sampling": max(1, min(100, round(100 * CONTEXTS / max(contexts, 1.0)))),
        "gradients": min(parameters.gradients, 2),
        "trainer_gpus": min(parameters.trainer_gpus, 2),
    }


def _command(request: Path, home: Path) -> list[str]:
    run = [sys.executable, "-m", "flows.cli", "run", "--backend", "local"]
    return [*run, "--params", str(request), "--home", str(home)]


def _interrupted_run(request: Path, home: Path, run: Path) -> bool:
    """Begin the run and interrupt it at its first checkpoint; False where it had ended."""
    with open(home / "first.log", "w+b") as log:
        process = subprocess.Popen(_command(request, home), stdout=log, stderr=log)
        try:
            while process.poll() is None and not list(run.glob("checkpoints/step-*")):
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            code = process.wait()
        if code not in (EXIT_DONE, EXIT_INTERRUPTED):
            log.seek(0)
            raise StepError(f"the rehearsal failed:\n{log.read().decode(errors='replace')[-3000:]}")
    return code == EXIT_INTERRUPTED


def _run_to_its_end(request: Path, home: Path) -> None:
    done = subprocess.run(_command(request, home), capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepError(f"the rehearsal did not go on:\n{done.stderr[-3000:]}")


def _steps_of(run: Path) -> list[int]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [line["step"] for line in map(json.loads, lines) if "loss" in line]
