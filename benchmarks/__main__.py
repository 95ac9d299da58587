"""Run every benchmark, one after the other, each as a process of its own: `make bench`.

Each takes options of its own: `python -m benchmarks.tokens --help`. Figures are ratios within
one run; quote them from a machine that does nothing else.
"""

import subprocess
import sys

ALL = {
    "tokens": ["--megabytes", "100"],
    "training": ["--width", "512", "--layers", "6", "--context", "256", "--trainer"],
    "training_checkpoints": ["--millions", "20"],
    "serving": ["--clients", "1", "8", "32"],
}


def main() -> int:
    failed = []
    for name, options in ALL.items():
        print(f"\n== benchmarks.{name} {' '.join(options)}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options]).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
