"""Print a tokenizer's special tokens: `python -m trainer.tokens.chat.special_tokens FOLDER`."""

import json
import sys
from pathlib import Path

from trainer.tokens.model_tokenizer import load_tokenizer


def main(folder: str) -> int:
    sys.modules["torch"] = None  # type: ignore[assignment]  # not needed, and slow to load
    try:
        tokenizer, _ = load_tokenizer(Path(folder))
    except (OSError, ValueError, KeyError, ImportError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    sys.stdout.write(json.dumps(tokenizer.special_tokens_map))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
