"""Print a model's tokenizer as JSON: `python -m trainer.tokens.encode.export FOLDER`.

The one place of this package that loads transformers, in a process of its own.
"""

import json
import sys
from pathlib import Path

from trainer.tokens.model_tokenizer import ids_before_text, load_tokenizer


def main(folder: str) -> int:
    # A tokenizer needs no torch, and importing it takes longer than all the rest.
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        tokenizer, notice = load_tokenizer(Path(folder))
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
        "bos_token_id": tokenizer.bos_token_id,
        "before": ids_before_text(tokenizer),
        "notice": notice,
    }
    sys.stdout.write(json.dumps(exported))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
