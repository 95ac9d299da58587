"""Make the pictures of the README: a real run in Prefect's UI, and its report, in a real browser.

    apt-get install chromium
    .venv/bin/python docs/screenshots/make.py

Takes about three minutes on a quiet machine: the demo's run, then pictures of its pages.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.prefect_processes import prefect_environment, prefect_server  # noqa: E402

HERE = Path(__file__).parent
RUN = "western-tales"
CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--force-device-scale-factor=1", "--virtual-time-budget=20000"),
]


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="screenshots-") as name,
        tempfile.TemporaryDirectory(prefix="browser-") as profile,
    ):
        home = Path(name)
        with prefect_server(home) as api:
            environment = prefect_environment(home, api) | {"FINETUNE_HOME": name}
            volume = home / "finetune-data"
            run(environment, "-m", "trainer.demo", "--volume", str(volume))
            asked = (f"run_name={RUN}", "run_inference=false")
            request = ["--params", "demo.yaml", *(w for each in asked for w in ("-p", each))]
            run(environment, "-m", "flows.cli", "run", *request)
            shoot(f"file://{volume}/{RUN}/report.html", "report", profile, 1750)
            ui = api.removesuffix("/api")
            curves = artifact_of(api, f"{RUN}-curves")
            shoot(f"{ui}/runs/flow-run/{curves['flow_run_id']}", "run", profile, 620)
            # Higher, it would show the picture's own address: some lines of base64.
            shoot(f"{ui}/artifacts/artifact/{curves['id']}", "curves", profile, 540)


def run(environment: dict[str, str], *words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=True)


def artifact_of(api: str, key: str) -> Any:
    """The artifact of that key. (What `/artifacts/{key}/latest` answers has the key's own id.)"""
    request = urllib.request.Request(
        f"{api}/artifacts/filter",
        json.dumps({"artifacts": {"key": {"any_": [key]}}}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        (artifact,) = json.load(answer)
    return artifact


def shoot(url: str, name: str, profile: str, height: int) -> None:
    """A picture of the page, as {name}.png beside this file."""
    picture = HERE / f"{name}.png"
    subprocess.run(
        [
            *CHROMIUM,
            f"--user-data-dir={profile}",
            f"--window-size=1100,{height}",
            f"--screenshot={picture}",
            url,
        ],
        check=True,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": profile},
        timeout=120,
    )
    print(f"{picture.name}: {picture.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
