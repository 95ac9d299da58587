"""What another try does not mend is not tried again, and the reason names the image."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import trainer.__main__ as steps
from infra.kubernetes_backend import diagnosis
from infra.kubernetes_backend.jobs import KubernetesBackend
from tests.kubernetes.conftest import follow, spec, starts
from tests.kubernetes_double.cluster import Cluster
from trainer.contract.errors import EXIT_INCOMPLETE
from trainer.contract.outcome import TERMINATION_PATH_VARIABLE
from trainer.steps import STEP_MODULES

ROOT = Path(__file__).parents[2]
IMAGE = "finetune-steps:0.2.0"


def test_a_package_that_the_image_lacks_fails_the_job_with_its_first_pod(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    end, _ = follow(backend, spec(exit_codes=[EXIT_INCOMPLETE]))
    assert end.exit_code == EXIT_INCOMPLETE and starts(volume) == 1
    assert end.outcome is not None
    assert f"Image: {IMAGE}. It is not tried again" in end.outcome["message"]


@pytest.mark.parametrize("leaves_nothing", [True, False])
def test_three_ends_in_the_same_way_within_seconds_fail_the_job(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, leaves_nothing: bool
) -> None:
    given = {"leaves_nothing": True} if leaves_nothing else {}
    end, lines = follow(backend, spec(exit_codes=[9], **given))
    assert (end.exit_code, starts(volume)) == (9, diagnosis.SAME_ENDS)
    said = end.reason if end.outcome is None else end.outcome["message"]
    assert f"Image: {IMAGE}. It is not tried again: 3 pods in a row" in said
    assert any("not tried again" in line for line in lines)


def test_ends_of_different_kinds_are_tried_on(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    end, _ = follow(backend, spec(exit_codes=[9, 8, 9, 8, 0]))
    assert (end.exit_code, starts(volume)) == (0, 5)


def ended(code: int, reason: str = "Error", *, seconds: int = 5, **status: object) -> dict:
    moment = "2026-11-30T10:00:{:02}Z"
    times = {"startedAt": moment.format(0), "finishedAt": moment.format(seconds)}
    terminated = {"exitCode": code, "reason": reason, **times}
    statuses = [{"state": {"terminated": terminated}}]
    return {
        "metadata": {"labels": {}},
        "spec": {"containers": [{}]},
        "status": {"phase": "Failed", "containerStatuses": statuses, **status},
    }


def never_started() -> dict:
    """As a kubelet says it of a command that is not in the image."""
    pod = ended(128, "StartError")
    (status,) = pod["status"]["containerStatuses"]
    status["state"]["terminated"]["startedAt"] = "1970-01-01T00:00:00Z"
    return pod


def of_node(index: str, pod: dict) -> dict:
    return {**pod, "metadata": {"labels": {diagnosis.INDEX_LABEL: index}}}


EVICTED = {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}


@pytest.mark.parametrize(
    ("pods", "hopeless"),
    [
        ([ended(1)] * 3, True),
        ([ended(137, "OOMKilled")] * 3, True),
        ([ended(2), ended(1), ended(1), ended(1)], True),
        ([ended(1)] * 2, False),
        ([ended(1), ended(2), ended(1)], False),
        ([ended(1, seconds=40)] * 3, False),
        ([never_started()] * 3, True),
        ([of_node("0", ended(75)), of_node("1", ended(3))] * 3, True),
        ([of_node("0", ended(1)), of_node("1", ended(1)), of_node("2", ended(1))], False),
        ([ended(137)] * 3, False),
        ([ended(143)] * 3, False),
        ([ended(1, **EVICTED)] * 3, False),
    ],
)
def test_what_makes_another_try_hopeless(pods: list[dict], hopeless: bool) -> None:
    assert bool(diagnosis.why_hopeless(pods)) == hopeless


# --- the step itself --------------------------------------------------------------------


def test_a_step_that_needs_a_missing_package_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "left"
    monkeypatch.setenv(TERMINATION_PATH_VARIABLE, str(left))
    monkeypatch.setitem(STEP_MODULES, "evaluate", "package_that_nobody_has")
    config = {"volume": str(tmp_path), "run_name": "", "model": "m", "tokens": "t"}
    assert steps.main(["evaluate", json.dumps(config)]) == EXIT_INCOMPLETE
    assert "package_that_nobody_has" in json.loads(left.read_text())["message"]


def test_a_package_that_is_missing_before_a_step_begins_ends_it_likewise(tmp_path: Path) -> None:
    (tmp_path / "xxhash.py").write_text("raise ModuleNotFoundError(\"No module named 'xxhash'\")")
    left = tmp_path / "left"
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "fetch", "none.json"],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", TERMINATION_PATH_VARIABLE: str(left)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == EXIT_INCOMPLETE, done.stderr
    assert "No module named 'xxhash'" in json.loads(left.read_text())["message"]
