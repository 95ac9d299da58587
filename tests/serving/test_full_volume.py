"""The volume fills up during a deployment: one message names it, and what served serves on."""

import contextlib
import dataclasses
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli.runs.overview import stop_run
from infra.backend import PlaceError
from infra.local import service as local_service
from infra.local import service_client
from infra.local.service import Service
from tasks.local_deployment import deploy_here
from tests.serving import trained
from tests.small_disk import small_disk
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import DeployConfig
from trainer.serving.deploy import deploy, gate

FULL = "pvc 'disk' can't be written .*: No space left on device"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB with the model of the run `town`; skips where nobody may mount one."""
    with small_disk(tmp_path / "disk", megabytes=8) as place:
        trained.save(place / "town/final")
        yield place


def fill(disk: Path) -> None:
    with open(disk / "rest", "ab", buffering=0) as rest:
        try:
            while True:
                rest.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


@contextlib.contextmanager
def no_more_bytes() -> Iterator[None]:
    """Any file's write fails here, also where deleting one has just made room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def start(disk: Path, **options: object) -> Service:
    options = {"timeout_seconds": 240, **options}
    return local_service.start(disk, "town", "town/final", **options)  # type: ignore[arg-type]


def test_a_deployment_that_finds_it_full_is_refused_before_a_server_starts(disk: Path) -> None:
    fill(disk)
    for stays in (True, False):
        values = Parameters(run_name="town", inference_only=stays, pvc="disk").model_dump()
        with pytest.raises(RequestError, match=FULL):
            deploy_here(values, disk, print)
    assert not list((disk / "logs/town").iterdir())


def test_a_server_that_can_say_nothing_on_it_is_told_of(disk: Path) -> None:
    python = disk.parent / "python"
    fills = f"cat /dev/zero > {disk}/rest 2> /dev/null"
    python.write_text(f'#!/bin/sh\n{fills}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(PlaceError, match=FULL):
        start(disk, python=str(python))


def test_what_served_serves_on_where_its_successor_cannot_be_recorded(disk: Path) -> None:
    before = start(disk)
    try:
        records = {name: (disk / "town" / name).read_bytes() for name in RECORDS}
        tried: list[Service] = []

        def check(service: Service) -> list[str]:
            tried.append(service)
            fill(disk)
            return []

        with pytest.raises(PlaceError, match=FULL):
            start(disk, check=check)
        assert not Path(f"/proc/{tried[0].pid}").exists()
        assert {name: (disk / "town" / name).read_bytes() for name in RECORDS} == records
        assert local_service.running(disk, "town") == before
        assert service_client.ask(before, "Dust", max_tokens=3)
        with no_more_bytes(), pytest.raises(RequestError, match=r"(?s)stopped: service.*can't be"):
            stop_run(disk.parent, "disk", "town")
        assert stop_run(disk.parent, "disk", "town") == []
    finally:
        local_service.end(before.pid, before.process_started, 0)
    assert {path.name for path in (disk / "town").iterdir()} == {"final", "services.jsonl"}


RECORDS = ("service.json", "services.jsonl")


def test_the_deploy_step_of_a_cluster_records_nothing_or_all(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(disk, "town")
    config = DeployConfig(volume=str(disk), run="town")
    deploy.run(config)
    run.services.write_text('{"event": "served", "revi')  # as a crash leaves it
    expected = gate.expected_of(run.final)
    observed = gate.Observed(
        prompts=expected.prompts,
        dtype="float32",
        tokenizer_digest=expected.tokenizer_digest or "",
        end="stop",
        together=tuple(golden.answer for golden in expected.prompts),
    )
    monkeypatch.setattr(deploy, "observe", lambda *_: observed)
    fill(disk)
    config = DeployConfig(volume=str(disk), run="town", url="http://server")
    with pytest.raises(RequestError, match=r"pvc is full \(got .*: No space left on device"):
        deploy.run(config)
    step = json.dumps({**dataclasses.asdict(config), "run_name": "town", "url": ""})
    (run.root / "run.json").write_text("")
    ended = subprocess.run(
        [sys.executable, "-m", "trainer", "deploy", step],
        env={**os.environ, "FINETUNE_TERMINATION_PATH": str(disk.parent / "outcome.json")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 78
    assert ended.stderr.startswith("pvc is full") and len(ended.stderr.splitlines()) == 1
    assert json.loads((disk.parent / "outcome.json").read_text())["status"] == "refused"
    (disk / "rest").unlink()
    deploy.run(config)
    (line,) = run.services.read_text().splitlines()
    assert json.loads(line)["revision"] == 1
