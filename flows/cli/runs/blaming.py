"""`finetune blame`: ask a process of the trainer, and say what it found."""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flows.cli.runs.in_jobs import Jobs
from flows.cli.runs.verify import in_process
from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json

MODULE = "trainer.blaming"
STEP = "blame"
NAMED = 3  # copies of a text that are named


def question_of(
    *, held_out: bool, prompt: str | None, answer: str | None, context: int | None, **more: Any
) -> dict[str, Any]:
    """The question as the trainer takes it.

    Raises:
        RequestError: None of the three kinds is asked, or several are.
    """
    kinds = (held_out, answer is not None, context is not None)
    if sum(kinds) != 1 or (prompt is not None and answer is None):
        raise RequestError(
            "blame asks about one thing. Give --held-out, or --prompt TEXT with --answer TEXT, or "
            "--context N."
        )
    asked = {"held_out": held_out, "prompt": prompt, "answer": answer, "context": context}
    return {**asked, **more}


def blame(
    home: Path,
    pvc: str,
    run: str,
    question: Mapping[str, Any],
    *,
    jobs: Jobs | None = None,
    as_json: bool,
) -> None:
    """Ask, and print the answer.

    Args:
        jobs: Of the cluster that has the volume; None: it is on this machine.
    """
    if jobs is not None:
        _show(*jobs.act("blame", given=question), as_json=as_json)
        return
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(question, file)
        file.flush()
        words = [MODULE, str(home / pvc), run, file.name]
        found = in_process(words, STEP)
    _show(*found, as_json=as_json)


def _show(code: int, result: str, *, as_json: bool) -> None:
    if code:
        sys.exit(code)
    body = parse_json(result)
    click.echo(json.dumps(body, indent=1) if as_json else answer_in_words(body))


def answer_in_words(body: Mapping[str, Any]) -> str:
    """The answer for people."""
    way, verdict = body["question"]["direction"], body["verdict"]
    lines = [f"{body['run']}: loss {body['loss']:.4f}, what made it {way}"]
    for one in body["blamed"]:
        lines.append(f"  blamed   {_named(one['documents'])}{_effect(one['alone'])}")
    for documents in body["narrowed_to"]:
        lines.append(f"  suspect  {_named(documents)}")
    lines.append(_VERDICTS[verdict])
    for documents in body["too_long"]:
        lines.append(
            f"  not tried  {_named(documents)}: without it, and the other suspects, more than a "
            "quarter of the text would be missing"
        )
    if body["together"] and len(body["blamed"]) != 1:
        lines.append(f"  together{_effect(body['together'])}")
    if body["all_suspects"]:
        lines.append(f"  all {len(body['suspects'])} suspects{_effect(body['all_suspects'])}")
    lines += [f"  as many others, at random{_effect(each)}" for each in body["controls"]]
    best = ", ".join(_named(row["documents"]) for row in body["ranked"][way][:3])
    lines.append(f"  ranked first by influence: {best}")
    lines.append(f"  {body['replays']} replays; {body['file']}")
    return "\n".join(lines)


_VERDICTS = {
    "found": "The replays without them prove it.",
    "nothing": "Nothing stands out: leaving out the suspects does no more than other texts do.",
    "narrowed": "It is one or more of these. The budget ended the search: allow more replays.",
    "not measured": "The budget allows too few replays to prove anything.",
}


def _named(documents: list[str]) -> str:
    more = f" and {len(documents) - NAMED} more copies" if len(documents) > NAMED else ""
    return ", ".join(documents[:NAMED]) + more


def _effect(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return ""
    held = measured["held_out"]
    text = f"  raised the loss by {measured['change']:+.4f}"
    if held["interval"]:
        low, high = held["interval"]
        text += f" (held-out {held['change']:+.4f}, 99 % of {low:+.4f} to {high:+.4f})"
    return text
