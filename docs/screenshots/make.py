"""Make the pictures of the docs: a run and its form in Prefect's UI, its report, the served page.

    apt-get install chromium chromium-driver
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

from infra.local import service as local_service  # noqa: E402
from tests.prefect_processes import prefect_environment, prefect_server  # noqa: E402
from tests.serving.browser import opened  # noqa: E402

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
            report = f"file://{volume}/{RUN}/report.html"
            shoot(report, "report", profile, 1750)
            shoot(report, "report-narrow", profile, 1750, width=420)
            try_it(volume)
            ui = api.removesuffix("/api")
            form = f"{ui}/deployments/deployment/{deployed(environment, api)}/run"
            for _ in range(2):  # the UI fades in, which takes long in a browser that just began
                shoot(form, "form", profile, 1200)
            shoot(form, "form-narrow", profile, 1200, width=500)
            curves = artifact_of(api, f"{RUN}-curves")
            shoot(f"{ui}/runs/flow-run/{curves['flow_run_id']}", "run", profile, 620)
            # Higher, it would show the picture's own address: some lines of base64.
            shoot(f"{ui}/artifacts/artifact/{curves['id']}", "curves", profile, 540)


def try_it(volume: Path) -> None:
    """A picture of the served model's page after one answer."""
    service = local_service.start(volume, RUN, f"{RUN}/final")
    try:
        with opened() as browser:
            browser.size(820, 590)
            browser.open(f"{service.url}/")
            browser.wait("!document.querySelector('#send').disabled")
            browser.run("document.querySelector('#temperature').value = 0.7")
            browser.run("document.querySelector('#longest').value = 60")
            browser.type("#prompt", "The sheriff rode into")
            browser.click("#send")
            browser.wait("document.querySelector('#stop').hidden")
            written(HERE / "try-it.png", browser.picture())
    finally:
        local_service.stop(volume, RUN)


def written(picture: Path, content: bytes) -> None:
    picture.write_bytes(content)
    print(f"{picture.name}: {len(content):,} bytes", flush=True)


def run(environment: dict[str, str], *words: str) -> None:
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, check=True)


def deployed(environment: dict[str, str], api: str) -> str:
    """The id of the deployment `finetune/local`, which is made as the README says."""
    run(environment, "-m", "prefect", "work-pool", "create", "local", "--type", "process")
    run(environment, "-m", "prefect", "--no-prompt", "deploy", "--name", "local")
    with urllib.request.urlopen(f"{api}/deployments/name/finetune/local", timeout=120) as answer:
        return str(json.load(answer)["id"])


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


def shoot(url: str, name: str, profile: str, height: int, width: int = 1100) -> None:
    """A picture of the page, as {name}.png beside this file."""
    picture = HERE / f"{name}.png"
    subprocess.run(
        [
            *CHROMIUM,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            f"--screenshot={picture}",
            url,
        ],
        check=True,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": profile},
        timeout=300,
    )
    print(f"{picture.name}: {picture.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main()
