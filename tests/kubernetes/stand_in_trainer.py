"""Stands where `python -m trainer STEP CONFIG.json` stands, and does what its config says.

lines       printed at once
until       a file on the volume that lets it end, with which start this is for `{start}` in it;
            without it, it ends at once
exit_codes  one for each start, the last one for all more; each start is one line
            of the file `starts` on the volume
stops_when  a file on the volume that lets it end when it was told to stop
tick        print a numbered line every so many seconds while it waits
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    step, config_path = sys.argv[-2:]
    config = json.loads(Path(config_path).read_text())
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: stopped.append(signum))
    volume = Path(config["volume"])
    starts = volume / config.get("starts", "starts")
    with open(starts, "ab", buffering=0) as file:
        file.write(f"{os.getpid()}\n".encode())
        written = file.tell()  # its own line is the last of these, whatever starts beside it
    number = starts.read_bytes()[:written].count(b"\n")
    for line in config.get("lines", []):
        print(line, flush=True)
    if "long_line" in config:
        print("x" * config["long_line"] + "\nafter", flush=True)
    ticks = 0
    until = volume / config.get("until", ".").format(start=number)
    while not until.exists() and not stopped:
        if "tick" in config:
            print(f"tick {ticks} of start {number}", flush=True)
            ticks += 1
        time.sleep(config.get("tick", 0.01))
    while stopped and "stops_when" in config and not (volume / config["stops_when"]).exists():
        time.sleep(0.01)
    codes = config.get("exit_codes", [0])
    code = 143 if stopped else codes[min(number, len(codes)) - 1]
    status = {0: "done", 143: "interrupted", 78: "refused"}.get(code, "failed")
    print(f"last line of start {number}", flush=True)
    config.pop("lines", None)  # a termination message has 4,096 bytes
    if not config.get("leaves_nothing"):
        outcome = {
            "step": step,
            "status": status,
            "message": f"ended with {code}",
            "result": {"starts": number, "config": config},
        }
        Path(os.environ["FINETUNE_TERMINATION_PATH"]).write_text(json.dumps(outcome))
    return code


sys.exit(main())
