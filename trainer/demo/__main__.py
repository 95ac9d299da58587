"""Make the demo's dataset and base model on a volume, or find them made.

{volume}/dataset/                 361 files of text, with a hidden `.demo.json`
{volume}/models/demo/gpt-j-tiny/  config, tokenizer, safetensors
"""

import argparse
import sys
from pathlib import Path

from trainer.demo.place import place_dataset, place_model
from trainer.errors import EXIT_DONE, RequestError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.demo",
        description="Make the demo's dataset and base model on a volume, unless they are there.",
    )
    parser.add_argument("--volume", type=Path, required=True, help="folder of the volume")
    parser.add_argument("--seed", type=int, default=42, help="the same seed makes the same demo")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        for made in (place_dataset(args.volume, args.seed), place_model(args.volume, args.seed)):
            print(made, flush=True)
    except RequestError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
