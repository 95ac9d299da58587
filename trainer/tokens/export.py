"""Print a model's tokenizer as JSON: `python -m trainer.tokens.export FOLDER`.

The one place of this package that loads transformers, in a process of its own.
"""

import json
import sys


def main(folder: str) -> int:
    # A tokenizer needs no torch, and importing it takes longer than all the rest.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    if not tokenizer.is_fast:
        print(f"{type(tokenizer).__name__} has no fast form", file=sys.stderr)
        return 1
    exported = {
        "tokenizer_json": tokenizer.backend_tokenizer.to_str(),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sys.stdout.write(json.dumps(exported))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
