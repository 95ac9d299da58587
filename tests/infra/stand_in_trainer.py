"""Stands where `python -m trainer STEP CONFIG.json` stands, and does what its config says."""

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
    if config.get("ignores_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(Path(config["volume"]) / "starts", "a") as starts:
        starts.write(f"{os.getpid()}\n")
    for line in config.get("lines", []):
        print(line, flush=True)
    until = Path(config["volume"]) / config.get("until", "starts")
    while not until.exists() and not stopped:
        time.sleep(0.01)
    status, code = ("interrupted", 143) if stopped else ("done", config.get("exit_code", 0))
    print("last line", flush=True)
    if not config.get("leaves_nothing"):
        outcome = {"step": step, "status": status, "result": {"volume": config["volume"]}}
        Path(os.environ["FINETUNE_TERMINATION_PATH"]).write_text(json.dumps(outcome))
    return code


sys.exit(main())
