"""Make a run of this pipeline from a model that the reference left finished.

Run: `finetune adopt RUN`, or `python -m trainer.adopt.adopt VOLUME RUN NAME`.

    finetunes/results-{RUN}/final/   read only
    {NAME}/final/                    the same weights as safetensors, tokenizer, golden answers

Pickled weights are read as numbers alone (weights_only), so they can run no code.
Exit codes: 0 done, 78 there is no such model or NAME is taken.
"""

import json
import shutil
import sys
from pathlib import Path

from trainer.contract.checkpoints import part_of
from trainer.contract.errors import EXIT_DONE, RequestError
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import seal, verify

RESULTS = "finetunes/results-"
# Beginnings for the golden answers: the text that it was trained on is not known here.
PROMPTS = ("The first thing to know is that", "In the morning they went", "1, 2, 3, 4,")


def adopt(volume: Path, run: str, name: str) -> str:
    """Make `{name}/` from what the reference's run left; return what was done, in words.

    Raises:
        RequestError: There is no finished model of that run, or `name` is taken.
    """
    there = volume / f"{RESULTS}{run}/final"
    folder = RunFolder(volume, name)
    request = {"model": there.relative_to(volume).as_posix()}
    if not (there / "config.json").is_file():
        raise RequestError(
            f"RUN left no finished model (got {run!r}, no {there}/config.json). "
            "`finetune runs` lists what there is."
        )
    record = folder.record()
    if record is not None and record["request"] != request:
        raise RequestError(
            f"{name} is another run on this volume. Adopt {run} by another name: --as NAME."
        )
    if record is not None and not verify(folder.final):
        return f"{name}/final exists already"
    _write_final(there, folder.final)
    folder.admit(request, "", {"adopted": run}, [])
    return f"{name}/final was made from {request['model']}"


def _write_final(there: Path, place: Path) -> None:
    from trainer.models import load_model, load_tokenizer
    from trainer.tokens.model_tokenizer import encode_prompt, save_tokenizer
    from trainer.training.save.final import SHARD_BYTES, end_ids_of, golden_answers

    part = part_of(place)
    for left in (part, place):  # by an attempt that was killed
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir(parents=True)
    model, tokenizer = load_model(there), load_tokenizer(there)
    model.save_pretrained(part, max_shard_size=SHARD_BYTES)
    save_tokenizer(tokenizer, part)
    prompts = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    golden = golden_answers(model, prompts, end_ids_of(model, tokenizer))
    (part / "golden.json").write_text(json.dumps(golden))
    (part / "README.md").write_text(
        f"Finetuned by the reference's workflow: {there.parent.name}.\n"
    )
    seal(part, place, {"kind": "final", "adopted": there.parent.name})


def main(arguments: list[str]) -> int:
    volume, run, name = arguments
    try:
        print(adopt(Path(volume), run, name), flush=True)
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
