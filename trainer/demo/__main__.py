"""Make the demo's dataset and base model on a volume, or find them made.

{volume}/dataset/                 361 files of text, with a hidden `.demo.json`
{volume}/models/demo/gpt-j-tiny/  config, tokenizer, safetensors
"""

import argparse
import fcntl
import os
import sys
from pathlib import Path

from trainer.contract.errors import EXIT_DONE, RequestError
from trainer.demo.place import place_dataset, place_model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.demo",
        description="Make the demo's dataset and base model on a volume, unless they are there.",
    )
    parser.add_argument("--volume", type=Path, required=True, help="folder of the volume")
    parser.add_argument("--alone", type=int, metavar="FD", help="only be the one demo, see below")
    parser.add_argument("--seed", type=int, default=42, help="the same seed makes the same demo")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    if args.alone is not None:
        return be_alone(args.alone, args.volume)
    try:
        for made in (place_dataset(args.volume, args.seed), place_model(args.volume, args.seed)):
            print(made, flush=True)
    except RequestError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_DONE


def be_alone(descriptor: int, volume: Path) -> int:
    """Lock the file that the caller has open, for as long as the caller has it open.

    A second `make demo` ends here: later it could only clean up what the first one started.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        words = "wait for it, or end it by Ctrl-C there"
        print(f"a demo is running already on {volume}: {words}", file=sys.stderr)
        return RequestError.exit_code
    return EXIT_DONE


if __name__ == "__main__":
    # The model is made on the CPU; DeepSpeed, which transformers loads, need not look for a GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    sys.exit(main())
