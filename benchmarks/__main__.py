"""Run every benchmark, one after the other, each as a process of its own: `make bench`.

Each takes options of its own: `python -m benchmarks.tokens --help`. Figures are ratios within
one run; quote them from a machine that does nothing else.
"""

import subprocess
import sys

ALL = (
    "tokens --megabytes 200",
    "tokens --megabytes 10 --shape tiny --kind prose --vocabulary 50257 --no-peers",
    "training",
    "training --curves --steps 50 --width 64 --layers 2 --context 64",
    "training_checkpoints --millions 20",
    "training_resume",
    "training_loading",
    "serving --clients 1 8 32",
)


def main() -> int:
    failed = []
    for command in ALL:
        print(f"\n== python -m benchmarks.{command}", flush=True)
        if subprocess.run([sys.executable, "-m", *f"benchmarks.{command}".split()]).returncode:
            failed.append(command)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
