"""`python -m benchmarks.gpu PART ...`: see the package."""

import argparse
import sys
from pathlib import Path

import benchmarks.gpu
from benchmarks.gpu import table
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.runner import run_part


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 all is done, 1 something failed or is left: run it again to resume.",
    )
    parser.add_argument("part", nargs="+", choices=[*PARTS, "all", "table"])
    parser.add_argument("--again", action="store_true", help="run what is done already, too")
    parser.add_argument("--small", action="store_true", help="tiny models, in this process")
    parser.add_argument("--results", type=Path, default=Path("gpu-results"), metavar="FOLDER")
    args = parser.parse_args(arguments)
    if args.part == ["table"]:
        table.write(args.results)
        return 0
    chosen = list(PARTS) if "all" in args.part else [p for p in args.part if p in PARTS]
    done = [run_part(p, args.results, small=args.small, again=args.again) for p in chosen]
    return int(not all(done))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
