"""`python -m trainer.exam FOLDER RESULT.json ASKED.json-text`, or `--all [PAGE [RESULTS]]`.

The first examines the model whose config.json is in FOLDER; the fetch step starts it. The second
examines every causal language model of transformers and writes docs/models.md.
"""

import dataclasses
import json
import sys
from pathlib import Path

from trainer.contract.json_text import parse_json


def main(arguments: list[str]) -> int:
    from transformers.utils import logging

    logging.set_verbosity(logging.CRITICAL)
    if arguments[:1] == ["--all"]:
        return _all(*map(Path, arguments[1:]))
    folder, result, asked = arguments
    return _one(Path(folder), Path(result), parse_json(asked))


def _one(folder: Path, result: Path, asked: dict[str, object]) -> int:
    from trainer.contract.errors import RequestError
    from trainer.contract.topics import LoraConfig
    from trainer.exam.examine import Examined, examine
    from trainer.exam.kept import Asked
    from trainer.models.loading import load_config

    wanted = Asked(**asked)  # type: ignore[arg-type]
    try:
        config = load_config(folder, wanted.trust_remote_code)
    except RequestError as error:
        found = Examined("", not_examined=str(error))
    else:
        found = examine(
            config,
            zero_stage=wanted.zero_stage,
            lora=LoraConfig(**wanted.lora) if wanted.lora else None,
            trust_remote_code=wanted.trust_remote_code,
        )
    result.write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
    return 0


def _all(
    markdown: Path = Path("docs/models.md"), results: Path = Path("exam-results.jsonl")
) -> int:
    from trainer.exam.every_model import as_markdown, examine_all, model_types

    found = []
    for examined in examine_all(model_types(), results):
        failed = ", ".join(name for name, wrong in examined.checks.items() if wrong)
        print(examined.model_type, examined.not_examined or failed or "passes", flush=True)
        found.append(examined)
    markdown.write_text(as_markdown(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
