"""Run every benchmark, one after the other, each as a process of its own: `make bench`.

    python -m benchmarks [NAME ...] [--record WHEN-AND-HOW]

Each takes options of its own: `python -m benchmarks.tokens --help`. Figures are ratios within
one run; quote them from a machine that does nothing else. At the end they are compared with those
of ratios.json: one that is worse by a fifth or more fails. `--record` makes these the new ones.
"""

import argparse
import subprocess
import sys

from benchmarks import ratios
from benchmarks.ratios import Ratio

ALL = (
    "tokens --megabytes 200",
    "tokens --megabytes 10 --shape tiny --kind prose --vocabulary 50257 --no-peers",
    "training",
    "training --curves --steps 50 --width 64 --layers 2 --context 64",
    "training_checkpoints --millions 20",
    "training_resume",
    "training_loading",
    "start_up",
    "serving --clients 1 8 32",
)


def run(command: str) -> tuple[int, list[Ratio]]:
    """Run one, showing what it prints; its exit code, and the ratios that it said."""
    words = [sys.executable, "-m", *f"benchmarks.{command}".split()]
    found = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if ratio := ratios.ratio_in(line):
                found.append(ratio)
    return process.returncode, found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="*", help="of benchmarks; none: all of them")
    parser.add_argument("--record", default="", metavar="WHEN-AND-HOW")
    args = parser.parse_args(arguments)
    failed, found = [], list[Ratio]()
    for command in ALL:
        if args.name and command.split()[0] not in args.name:
            continue
        print(f"\n== python -m benchmarks.{command}", flush=True)
        code, said = run(command)
        found += said
        if code:
            failed.append(command)
    before = ratios.read()
    print("\n== ratios against the recorded ones")
    for line in ratios.compared(found, before):
        print(line)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    if args.record:
        ratios.record(found, args.record)
        return bool(failed)
    if lost := ratios.lost(found, before):
        print(f"worse by a fifth or more: {', '.join(lost)}", file=sys.stderr)
    return bool(failed or lost)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
