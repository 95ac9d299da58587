"""Run a part's cases in turn, each in a process of its own, and keep what each found."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu import results
from benchmarks.gpu.parts import PARTS

PART_SECONDS = 520.0  # below nine minutes, with what starts and ends around it
LEAST_SECONDS = 45.0  # less is left: the next command continues
_MARK = "CASE-RESULT "


def run_part(part: str, folder: Path, *, small: bool = False, again: bool = False) -> bool:
    """Run the cases that are not done; whether all are.

    Args:
        folder: Of results: PART.json is there, or will be.
        small: Tiny models, in this process.
        again: Forget what is there.
    """
    names = list(PARTS[part].cases)
    result = results.PartResult(part, small) if again else results.read(folder, part, small)
    began = time.monotonic()
    for name in names:
        if "failed" not in result.cases.get(name, {"failed": ""}):
            continue
        left = PART_SECONDS - (time.monotonic() - began)
        if left < LEAST_SECONDS:
            print(f"{part}: its time is over; the same command continues", flush=True)
            return False
        if small:
            result.machine, result.cases[name] = results.machine(), run_case(part, name, small)
        else:
            machine, result.cases[name] = _in_process(part, name, left)
            result.machine = machine or result.machine  # one that died said nothing of it
        results.write(folder, result)
        print(f"{part}: {name}: {json.dumps(result.cases[name])}", flush=True)
    return result.is_done(names)


def run_case(part: str, name: str, small: bool) -> dict[str, Any]:
    """What one case found, or why it was not run, or how it failed."""
    from benchmarks.gpu.scale import FULL, SMALL, NotRun

    began = time.perf_counter()
    try:
        found = PARTS[part].cases[name].run(SMALL if small else FULL)
    except NotRun as reason:
        return {"not_run": str(reason)}
    # Whatever it is, the other cases are still to be run, and this one's name to be kept.
    except Exception as error:
        if small:
            raise
        return {"failed": f"{type(error).__name__}: {error}"[:2000]}
    return {"found": found, "took_seconds": round(time.perf_counter() - began, 2)}


def _in_process(part: str, name: str, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """The machine and the result of a case in a new process, which frees all memory at its end."""
    command = [sys.executable, "-m", "benchmarks.gpu.runner", part, name]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {}, {"failed": f"not done after {seconds:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            said = json.loads(line.removeprefix(_MARK))
            return said["machine"], said["case"]
    return {}, {"failed": f"its process ended with {done.returncode}: {done.stdout[-1500:]}"}


def main(part: str, name: str, small: str = "") -> None:
    case = run_case(part, name, bool(small))
    print(_MARK + json.dumps({"machine": results.machine(), "case": case}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
