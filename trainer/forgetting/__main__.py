"""What `finetune forget` and `finetune verify --certificate` run in a process with torch.

    python -m trainer.forgetting plan VOLUME RUN ASKED.json       the plan, on the last line
    python -m trainer.forgetting begin VOLUME RUN BEGIN.json      make the new run's folder
    python -m trainer.forgetting certify VOLUME NEW [--purge]
    python -m trainer.forgetting check VOLUME NEW [--from-start]

Exit codes: 0 done, 1 it does not verify, 78 the request is wrong, 143 interrupted.
"""

import sys
from pathlib import Path
from typing import Any

from trainer.contract.asked_process import exit_code_of, hand_over
from trainer.contract.json_files import readable_object
from trainer.contract.json_text import parse_json
from trainer.contract.run_folder import RunFolder
from trainer.forgetting.begin import begin, plan_forgetting
from trainer.forgetting.certificate import NAME, certify, certify_and_purge, check
from trainer.forgetting.finding import Asked
from trainer.forgetting.forgotten import remember


def _plan(volume: Path, run: RunFolder, file: str) -> int:
    asked = Asked(**parse_json(Path(file).read_text(encoding="utf-8")))
    hand_over(plan_forgetting(volume, run, asked))
    return 0


def _begin(volume: Path, run: RunFolder, file: str) -> int:
    given: dict[str, Any] = parse_json(Path(file).read_text(encoding="utf-8"))
    begin(volume, run, given["name"], given["plan"], given["request"])
    return 0


def _certify(volume: Path, new: RunFolder, purge: str = "") -> int:
    kept = readable_object(new.root / NAME) or {}
    body = kept if kept.get("purged") else certify(volume, new)
    remember(volume, body)
    if purge:
        body = certify_and_purge(volume, new)
    hand_over(body)
    return 0


def _check(volume: Path, new: RunFolder, from_start: str = "") -> int:
    found, left = check(volume, new)
    if from_start and not found:
        from trainer.forgetting.from_start import differences_from_start

        found = differences_from_start(volume, new)
    for difference in found:
        print(difference)
    if left:
        names = ", ".join(left)
        print(f"the text was purged, so these can't be computed again: {names}")
    if not found:
        print(f"{new.root.name}/{NAME} verifies" + (", also from the start" if from_start else ""))
    return int(bool(found))


COMMANDS = {"plan": _plan, "begin": _begin, "certify": _certify, "check": _check}


def act(arguments: list[str]) -> int:
    """Do what is asked, with its errors raised; its exit code."""
    command, volume, name, *more = arguments
    folder = Path(volume).resolve()
    return COMMANDS[command](folder, RunFolder(folder, name), *more)  # type: ignore[operator]


def main(arguments: list[str]) -> int:
    return exit_code_of(act, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
