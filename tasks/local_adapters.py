"""Adapters of other runs beside a served one on this machine: find, check, replace them.

A server that runs is told by a file of the volume (trainer/contract/adapters_record.py). The new
version of an X the one before, whose running answers finish as they began. Loads no Prefect.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from infra.local import service as local_service
from infra.local.service import Service
from trainer.contract import adapters_record
from trainer.contract.adapters_record import Wanted
from trainer.contract.errors import DamagedError, RequestError, StepError
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest
from trainer.retraining.series import Series
from trainer.serving.deploy.gate import GateError, check, digest_served, expected_of

Say = Callable[[str], None]
SERVED_SECONDS = 300.0  # until a server has loaded an adapter that it was told of
POLL_SECONDS = 0.2


def adapters_of(volume: Path, names: Iterable[str]) -> dict[str, Wanted]:
    """The newest finished models of runs or series, by the names they are served under.

    Raises:
        RequestError: One has none, or one that was not trained with LoRA.
    """
    found, problems = {}, []
    for name in names:
        champion = Series(volume, name).champion()
        run = champion["run"] if champion else name
        final = RunFolder(volume, run).final
        try:
            digest = read_manifest(final).digest
        except DamagedError as error:
            problems.append(
                f"serving.adapters names what left no finished model (got {name!r}: {error}). "
                "Finetune it first, or leave it out."
            )
            continue
        if not (final / "adapter").is_dir():
            problems.append(
                f"serving.adapters names a run without adapters (got {name!r}). "
                "Train it with lora, or leave it out."
            )
        found[name] = Wanted(model=f"{run}/{final.name}", digest=digest)
    if problems:
        raise RequestError(*problems)
    return found


def refused_adapters(names: Sequence[str], volume: Path, *, is_lora: bool) -> list[str]:
    """A sentence for each reason not to train a run that is to be served with these beside it."""
    problems = []
    if names and not is_lora:
        problems.append(
            f"serving.adapters needs a run with lora (got {', '.join(names)}). Its own adapter is "
            "served beside them, on the base model of all."
        )
    try:
        adapters_of(volume, names)
    except RequestError as error:
        problems += error.problems
    return problems


def problems_of(service: Service, volume: Path, adapters: Mapping[str, str]) -> list[str]:
    """One sentence for each check of the gate that an adapter failed, under the name it has.

    Args:
        service: Whose server is asked.
        volume: The volume's root.
        adapters: Finished models on the volume, by name.

    Its validation loss is compared with the base model's where its run has compared them.
    """
    found = []
    for name, model in adapters.items():
        folder = volume / model
        report = folder.parent / "evaluation.json"
        try:
            expected = expected_of(folder, report=report if report.exists() else None)
            wrong = check(service.url, name, expected, service.api_key_variable)
        except GateError as error:
            wrong = [str(error)]
        found += [f"adapter {name}: {problem}" for problem in wrong]
    return found


def hosts_of(volume: Path, name: str) -> dict[str, Service]:
    """The services that run here with an adapter of that name, by their runs' names."""
    runs = [path.parent.name for path in sorted(volume.glob("*/service.json"))]
    running = {run: local_service.running(volume, run) for run in runs if run != name}
    return {run: s for run, s in running.items() if s and name in s.config.get("adapters", {})}


def replace_everywhere(volume: Path, name: str, say: Say) -> None:
    """Have all services that run with an adapter of that run or series serve its newest.

    Raises:
        StepError: It did not pass somewhere; the one before serves on there.
    """
    hosts, failed = hosts_of(volume, name), []
    newest = adapters_of(volume, [name]) if hosts else {}
    for run, service in hosts.items():
        try:
            if replace(volume, run, service, newest):
                say(f"the service of {run} answers {name} with {newest[name].model} now")
        except StepError as error:
            failed.append(str(error))
    if failed:
        raise StepError("\n".join(failed))


def replace(volume: Path, run: str, service: Service, newer: Mapping[str, Wanted]) -> bool:
    """Have a server that runs serve newer versions of some adapters; whether there were any.

    Raises:
        StepError: One did not pass; all that was served is served on.
    """
    path = local_service.adapters_file(volume, run, service.revision)
    with local_service.locked(volume, run):
        now = adapters_record.read(path)
        changed = {name: wanted for name, wanted in newer.items() if now.get(name) != wanted}
        if not changed:
            return False
        trials = {wanted.trial_name(name): wanted for name, wanted in changed.items()}
        after = now
        try:
            adapters_record.write(path, {**now, **trials})
            problems = _served_problems(service, trials) or problems_of(
                service, volume, {name: wanted.model for name, wanted in trials.items()}
            )
            after = now if problems else {**now, **changed}
        finally:  # a Ctrl-C too: nothing stays that was only tried
            adapters_record.write(path, after)
        if problems := problems or _served_problems(service, changed):
            kept = ", ".join(changed)
            raise StepError(f"{kept} of {run}'s service was not replaced: " + "\n".join(problems))
        local_service.note_adapters(volume, run, service, changed)
    return True


def _served_problems(service: Service, adapters: Mapping[str, Wanted]) -> list[str]:
    """Wait until the server answers with these; a sentence for each that it can't load."""
    return [
        problem
        for name, wanted in adapters.items()
        if (problem := _await_served(service, name, wanted.digest))
    ]


def _await_served(service: Service, name: str, digest: str) -> str:
    deadline = time.monotonic() + SERVED_SECONDS
    while time.monotonic() < deadline:
        try:
            if digest_served(service.url, name, service.api_key_variable) == digest:
                return ""
        except GateError as error:
            return str(error)
        time.sleep(POLL_SECONDS)
    return f"{service.url} did not serve {name} within {SERVED_SECONDS:g} seconds."
