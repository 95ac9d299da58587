"""`finetune forget`: show the plan, ask, repeat the run without the documents, certify it."""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flows.cli.runs.in_jobs import Jobs
from flows.cli.runs.reproduce import recorded_parameters, refuse_unfinished, unfinished, worked_out
from flows.cli.runs.verify import in_process
from trainer.contract.errors import RequestError, StepError
from trainer.contract.json_text import parse_json
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import RunFolder
from trainer.contract.validation import load_parameters
from trainer.contract.wording import format_seconds, skipped_words

MODULE = "trainer.forgetting"
STEP = "forget"
SHOWN = 20  # documents


def forget(
    home: Path,
    pvc: str,
    run: RunFolder,
    asked: Mapping[str, list[str]],
    name: str,
    *,
    yes: bool,
    purge: bool,
) -> None:
    """Do all of it; a repetition that was interrupted resumes.

    Raises:
        RequestError: Nothing is named, the name is taken, or nobody said yes.
    """
    volume = home / pvc
    if not any(asked.values()):
        raise RequestError("Nothing is named. Give --document, --sha256 or --containing.")
    new = RunFolder(volume, name)
    if (record := new.record()) is not None:
        refuse_other(record, run.root.name, name)
        planned, request = record["forgets"], _parameters(run, pvc, name, record["request"]["skip"])
    else:
        refuse_unfinished(run)
        planned = _asked_process(["plan", str(volume), run.root.name], asked)
        click.echo(as_table(run.root.name, name, planned, purge=purge))
        _confirm(yes)
        request = _parameters(run, pvc, name, planned["skip"])
        _begin(home, run, request, planned)
    _train(home, request)
    body = _certify(volume, name, purge=purge)
    click.echo(certified(volume, body))


def forget_on_cluster(
    jobs: Jobs, asked: Mapping[str, list[str]], name: str, *, yes: bool, purge: bool
) -> None:
    """As `forget`, where the volume is on a cluster: each part is a Job.

    Raises:
        RequestError: Nothing is named, the name is taken, or nobody said yes.
    """
    from flows.cli.run_here import run_flow

    if not any(asked.values()):
        raise RequestError("Nothing is named. Give --document, --sha256 or --containing.")
    if begun := jobs.recorded(name):
        refuse_other(begun, jobs.run, name)
        request = _parameters_there(jobs, name, begun["request"]["skip"])
    else:
        if not jobs.record["is_finished"]:
            raise RequestError(unfinished(jobs.run))
        planned: dict[str, Any] = parse_json(_part(jobs, "plan", given=asked))
        click.echo(as_table(jobs.run, name, planned, purge=purge))
        _confirm(yes)
        request = _parameters_there(jobs, name, planned["skip"])
        _part(jobs, "begin", given={"name": name, "plan": planned, "request": request.request})
    run_flow(request, Path(), on_cluster=True)
    more = ["--purge"] if purge else []
    body = parse_json(_part(jobs, "certify", more, run=name))
    click.echo(certified(Path("/") / request.pvc, body))


def _parameters_there(jobs: Jobs, name: str, skip: Mapping[str, Any]) -> Parameters:
    """As `_parameters`, of what the run on the cluster recorded."""
    kept = jobs.record.get("config", {}).get("checkpoints", {})
    changed: dict[str, Any] = {"checkpoints": {**kept, "every_minutes": 0.0}, "skip": dict(skip)}
    if ends := jobs.record["budget_ends"]:
        changed["budget"] = {"ends": ends}
    known = jobs.parameters.model_dump(exclude_unset=True)
    return load_parameters(Parameters, {**known, "run_name": name, **changed})


def _part(jobs: Jobs, command: str, words: list[str] | None = None, **more: Any) -> str:
    code, result = jobs.act("forget", words, command=command, **more)
    if code:
        sys.exit(code)
    return result


def _parameters(run: RunFolder, pvc: str, name: str, skip: Mapping[str, Any]) -> Parameters:
    found = {k: v for k, v in worked_out(run).items() if k == "budget"}
    kept = (run.record() or {}).get("config", {}).get("checkpoints", {})
    found["checkpoints"] = {**kept, "every_minutes": 0.0}
    return recorded_parameters(run, pvc, name, {**found, "skip": dict(skip)})


def refuse_other(record: Mapping[str, Any], run: str, name: str) -> None:
    """Raise RequestError where the run `name` is not this run's repetition."""
    if record.get("forgets", {}).get("run") != run:
        raise RequestError(f"--as is taken (got {name!r}). Take a name that no run has yet.")


def _begin(home: Path, run: RunFolder, request: Parameters, planned: Mapping[str, Any]) -> None:
    from flows.cli.run_here import check_request

    check_request(request, home)
    given = {"name": request.run_name, "plan": planned, "request": request.request}
    _asked_process(["begin", str(home / request.pvc), run.root.name], given, has_result=False)


def _train(home: Path, request: Parameters) -> None:
    from flows.cli.run_here import run_flow

    run_flow(request, home, on_cluster=False)


def _certify(volume: Path, name: str, *, purge: bool) -> dict[str, Any]:
    more = ["--purge"] if purge else []
    code, result = in_process([MODULE, "certify", str(volume), name, *more], STEP)
    if code:
        raise StepError(f"{name} was trained, and could not be certified. Run the command again.")
    return parse_json(result)


def _asked_process(
    words: list[str], given: Mapping[str, Any], *, has_result: bool = True
) -> dict[str, Any]:
    """Hand `given` to the trainer's process as a file; its result."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(given, file)
        file.flush()
        code, result = in_process([MODULE, *words, file.name], STEP)
    if code:
        sys.exit(code)
    return parse_json(result) if has_result else {}


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise RequestError("Nothing was done: this is no terminal to ask on. Add --yes to do it.")
    click.confirm("Do it?", abort=True)


# --- words ------------------------------------------------------------------------------


def as_table(run: str, name: str, planned: Mapping[str, Any], *, purge: bool) -> str:
    """The plan for people."""
    rows = [("document", f"{row['document']}  {row['sha256']}") for row in planned["documents"]]
    if len(rows) > SHOWN:
        rows = [*rows[:SHOWN], ("", f"... and {len(rows) - SHOWN:,} more")]
    rows.append(("left out", skipped_words(planned["left_out"])))
    rows.append(("trained on", _trained(planned)))
    begins = f"{name} begins at step {planned['from_step']:,} of {run}"
    if not planned["from_step"]:
        begins = f"{name} begins at the base model: no earlier checkpoint was kept"
    steps = f"{planned['steps_to_do']:,} of {planned['steps']:,} steps are done again"
    hours = planned["hours"]
    took = "" if hours is None else f", {format_seconds(3600 * hours)}; $0 on this machine"
    rows.append(("repetition", f"{begins}; {steps}{took}"))
    if purge:
        rows.append(("purge", f"at the end text and models of {run} are removed from the volume"))
    width = max(len(what) for what, _ in rows) + 2
    return "\n".join(f"{what:<{width}}{words}" for what, words in rows)


def _trained(planned: Mapping[str, Any]) -> str:
    if planned["first_step"] is None:
        return "by no step: the weights stay as they are"
    return f"by {planned['steps_with_them']:,} steps, first by step {planned['first_step']:,}"


def certified(volume: Path, body: Mapping[str, Any]) -> str:
    """What came of it, for people."""
    losses = body["losses"]
    lines = [f"certificate  {volume / body['new'] / 'certificate.json'}"]
    if losses["new"] is not None:
        before = "removed" if losses["run"] is None else f"{losses['run']:.4f}"
        lines.append(f"held-out loss  {body['run']} {before}, {body['new']} {losses['new']:.4f}")
    lines += [f"still there  {t['where']} ({t['what']})" for t in body["elsewhere"]]
    for place in (body["purged"] or {}).get("removed", ()):
        lines.append(f"removed  {place}")
    return "\n".join(lines)
