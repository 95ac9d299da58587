"""What a step ended with: small JSON, on the volume and in the termination message.

Who launched a step reads the termination message, so it needs no access to the
volume; who looks at a run later reads `{run_name}/outcomes/{step}.json`.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json

Status = Literal["done", "refused", "interrupted", "failed"]

# Kubernetes cuts a termination message off at 4,096 bytes.
TERMINATION_MESSAGE_BYTES = 4096
LEAST_MESSAGE_CHARACTERS = 500  # of it are kept as long as anything else can be left out
TERMINATION_PATH_VARIABLE = "FINETUNE_TERMINATION_PATH"
KUBERNETES_TERMINATION_PATH = "/dev/termination-log"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one step ended.

    `reused` says that the result was cached and verified, so nothing was
    made. `result` holds what the next step and the summary need: paths relative
    to the volume, counts, losses.
    """

    step: str
    status: Status
    message: str = ""
    reused: bool = False
    started: str = ""  # UTC, ISO 8601
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "Outcome | None":
        """From what a step of another version left; None where it is no outcome."""
        names = [field.name for field in dataclasses.fields(cls)]
        known = {name: values[name] for name in names if name in values}
        kinds = {"step": str, "status": str, "message": str, "started": str, "result": dict}
        right = all(isinstance(known.get(name, kind()), kind) for name, kind in kinds.items())
        return cls(**known) if right and {"step", "status"} <= known.keys() else None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        """Raises ValueError for anything that `to_json` did not write."""
        try:
            return cls(**parse_json(text))
        except (TypeError, RecursionError, ValueError) as error:
            raise ValueError(f"not an outcome: {text[:200]!r}") from error


def write_termination_message(outcome: Outcome) -> None:
    """Leave the outcome where the backend that started this process looks for it."""
    path = Path(os.environ.get(TERMINATION_PATH_VARIABLE, KUBERNETES_TERMINATION_PATH))
    text = termination_message(outcome)
    if path == Path(KUBERNETES_TERMINATION_PATH):
        if path.exists():  # made by the kubelet; a file bind mount can't be renamed over
            path.write_text(text, encoding="utf-8")
    else:
        write_atomically(path, text)


def termination_message(outcome: Outcome) -> str:
    """The outcome as JSON that Kubernetes does not cut: what is long in it is shortened."""
    message, result = outcome.message, dict(outcome.result)
    while True:
        shown = dataclasses.asdict(dataclasses.replace(outcome, message=message, result=result))
        # Escaped, a letter of most languages would take six bytes; a name of a file may hold
        # bytes that are no text.
        encoded = json.dumps(shown, ensure_ascii=False).encode(errors="replace")
        excess = len(encoded) - TERMINATION_MESSAGE_BYTES
        if excess <= 0:
            return encoded.decode()
        if len(message) > LEAST_MESSAGE_CHARACTERS:
            message = message[: max(LEAST_MESSAGE_CHARACTERS, len(message) - excess)]
        elif result:  # its largest part; what the next step needs is short
            del result[max(result, key=lambda name: len(json.dumps(result[name])))]
        else:
            message = message[: len(message) // 2]
