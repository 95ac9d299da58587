"""`python -m trainer.replaying VOLUME RUN FIRST LAST [CHANGED.json]`: replay steps, write the page.

    {RUN}/replays/steps-FIRST-LAST.html    for people
    {RUN}/replays/steps-FIRST-LAST.json    the same numbers

With fields of the step's config that are to be others, the steps are also trained with them, and
the files are called steps-FIRST-LAST-if-DIGEST.

Exit codes: 0 the same numbers came out, 1 others did, 78 the request is wrong, 143 interrupted.
"""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from trainer.contract.asked_process import exit_code_of
from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json
from trainer.contract.run_folder import RunFolder
from trainer.forgetting.recorded import job_of, store_of
from trainer.models import load_tokenizer
from trainer.replaying.page import page, what_if_in_words, worst_contexts
from trainer.replaying.replay import context_texts, replay


def _replay(
    volume: Path, run: RunFolder, first: int, last: int, changed: dict[str, Any] | None = None
) -> int:
    made = replay(volume, run, first, last, changed or {})
    job = job_of(run)
    tokenizer = load_tokenizer(job.tokenizer_path, job.config.trust_remote_code)
    contexts = sorted({row["context"] for row in worst_contexts(made)})
    texts = context_texts(store_of(run), tokenizer, contexts)
    place = run.root / "replays" / f"steps-{first}-{last}{_suffix(changed)}"
    html, numbers = (place.with_name(f"{place.name}.{kind}") for kind in ("html", "json"))
    write_atomically(html, page(run.root.name, made, texts))
    write_atomically(numbers, json.dumps(dataclasses.asdict(made), indent=1))
    for phrase in made.diverged:
        print(f"not the run: {phrase}")
    if made.stopped:
        print(f"it ended early: {made.stopped}")
    if not made.diverged:
        print(f"steps {made.start + 1} to {last} came out as recorded, to the last bit")
    if made.what_if:
        print(what_if_in_words(made.what_if, made))
    print(html, flush=True)
    return int(bool(made.diverged))


def _suffix(changed: dict[str, Any] | None) -> str:
    """Tells pages of the same steps with other changes apart."""
    if not changed:
        return ""
    text = json.dumps(changed, sort_keys=True)
    return f"-if-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def act(arguments: list[str]) -> int:
    """Do what is asked, with its errors raised; its exit code."""
    volume, name, first, last, *file = arguments
    folder = Path(volume).resolve()
    changed = parse_json(Path(file[0]).read_text(encoding="utf-8")) if file else None
    return _replay(folder, RunFolder(folder, name), int(first), int(last), changed)


def main(arguments: list[str]) -> int:
    return exit_code_of(act, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
