"""`python -m trainer.blaming VOLUME RUN QUESTION.json`: what `finetune blame` runs.

    {RUN}/blame/NAME.json    the answer

Exit codes: 0 answered (also where nothing stands out), 78 the request is wrong, 143 interrupted.
"""

import json
import sys
from pathlib import Path

from trainer.blaming.blame import blame
from trainer.blaming.target import Question
from trainer.contract.asked_process import exit_code_of, hand_over
from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json
from trainer.contract.run_folder import RunFolder


def _blame(volume: Path, run: RunFolder, file: str) -> int:
    question = Question(**parse_json(Path(file).read_text(encoding="utf-8")))
    body = blame(volume, run, question)
    place = run.root / "blame" / f"{question.name}.json"
    place.parent.mkdir(exist_ok=True)
    write_atomically(place, json.dumps(body, indent=1) + "\n")
    hand_over({**body, "file": str(place)})
    return 0


def act(arguments: list[str]) -> int:
    """Do what is asked, with its errors raised; its exit code."""
    volume, name, file = arguments
    folder = Path(volume).resolve()
    return _blame(folder, RunFolder(folder, name), file)


def main(arguments: list[str]) -> int:
    return exit_code_of(act, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
