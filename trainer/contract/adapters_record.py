"""Which adapters a running server is to have: a file that a deploy step replaces by one rename.

    .runs/{run_name}/service/adapters-{revision}.json    {"format": 1, "adapters": {name: ...}}

A server that is told this way needs no route by which a client could tell it. Loads no torch.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.contract.errors import DamagedError
from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json

FORMAT = 1
PATTERN = "adapters-*.json"
DIGITS = 12  # of a digest, in the name of an adapter that is only tried


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One adapter that is to be served."""

    model: str  # the folder of its finished model on the volume, with `adapter` in it
    digest: str  # of that folder

    def trial_name(self, name: str) -> str:
        """The name under which it answers while it is checked, before it replaces another."""
        return f"{name}@{self.digest[:DIGITS]}"


def write(path: Path, adapters: Mapping[str, Wanted]) -> None:
    """Tell the server that follows this file."""
    named = {name: asdict(wanted) for name, wanted in adapters.items()}
    write_atomically(path, json.dumps({"format": FORMAT, "adapters": named}, indent=1))


def read(path: Path) -> dict[str, Wanted]:
    """The adapters by name.

    Raises:
        DamagedError: The file is no such record.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']}")
        return {name: Wanted(**wanted) for name, wanted in found["adapters"].items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} is no record of adapters ({error})") from error
