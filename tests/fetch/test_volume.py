"""The volume itself, and the run's name on it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fetch.conftest import Step, write
from trainer.contract.run_folder import RunFolder

# Mounts of its own, gone with the process: as root, or where user namespaces are allowed.
NAMESPACE = ("unshare", "--map-root-user", "--mount", "sh", "-c")


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    tried = subprocess.run([*NAMESPACE, "mount -t tmpfs none /mnt"], capture_output=True)
    return tried.returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="this kernel lets nobody mount here")


@needs_mount
def test_full_volume_is_refused(step: Step) -> None:
    small = step.volume.parent / "small"
    small.mkdir()
    script = (
        f"mount -t tmpfs -o size=1m none {small} && cp -r {step.volume}/. {small} && "
        f'head -c 2m /dev/zero > {small}/rest 2> {small.parent}/full; exec "$@"'
    )
    step.prefix = (*NAMESPACE, script, "sh")
    message = step.refused(volume=str(small))
    assert f"pvc is full (got {small}: No space left on device)" in message
    assert "`cache/` may be deleted" in message
    assert "No space left" in (small.parent / "full").read_text(), "the test did not fill it"


@needs_mount
def test_read_only_volume_is_refused(step: Step) -> None:
    script = f"mount --bind {step.volume} {step.volume} && mount -o remount,bind,ro {step.volume}"
    step.prefix = (*NAMESPACE, f'{script} && exec "$@"', "sh")
    assert f"pvc is mounted read-only (got {step.volume}" in step.refused()
    assert not (step.volume / "cache").exists()


def test_volume_that_takes_no_more_bytes_is_refused(step: Step) -> None:
    # A limit on file size works everywhere, and is reported on writing as a full disk is.
    step.prefix = ("sh", "-c", 'ulimit -f 16; exec "$@"', "sh")
    assert f"pvc takes no file of that size (got {step.volume}: File too large)" in step.refused()
    assert not list((step.volume / "cache").iterdir())


# The one is refused as it claims the run, the other as it writes the config of its first step.
@pytest.mark.parametrize("command", ["run -p run_name=mine", "tokenize"])
def test_volume_that_takes_no_byte_is_refused_in_one_line(step: Step, command: str) -> None:
    words = f"{command} -p pvc={step.volume.name} --home {step.volume.parent}".split()
    ran = subprocess.run(
        ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, "-m", "flows.cli", *words],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 78, ran.stderr
    assert ran.stderr == (
        f"error: pvc 'volume' can't be written ({step.volume}: File too large). "
        "Free some space there, or make it writable.\n"
    )
    assert not (step.volume / "mine").exists()


def test_volume_may_be_named_by_a_link(step: Step) -> None:
    link = step.volume.with_name("link")
    link.symlink_to(step.volume)
    ended = step.run(volume=str(link), tokenizer="models/tiny")
    assert ended.exit_code == 0, ended.errors
    assert ended.outcome["result"]["tokenizer"] == "models/tiny"


def test_missing_volume_is_refused(step: Step) -> None:
    shutil.rmtree(step.volume)
    assert f"pvc is not there (got {step.volume})" in step.refused()
    assert not step.volume.exists()


@pytest.mark.parametrize("name", ["models", "tokens", "cache", "logs"])
def test_run_is_not_named_like_the_volumes_own_folders(step: Step, name: str) -> None:
    assert f"(got {name!r})" in step.refused(run_name=name)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"run_name": "dataset"}, "holds this run's dataset"),
        ({"run_name": "mine", "dataset": "mine/texts"}, "holds this run's dataset"),
        ({"run_name": "mine", "prompt_file": "mine/p.txt"}, "holds this run's prompt_file"),
        ({"run_name": "mine", "model": "mine/final"}, "holds this run's model"),
        ({"run_name": "diary", "logs": "diary"}, "is the folder of logs"),
        ({"run_name": "mine"}, "holds files that are no run's"),
    ],
)
def test_run_is_not_named_like_a_folder_in_use(
    step: Step, config: dict[str, str], words: str
) -> None:
    write(step.volume / "mine", {"texts/a.txt": b"x", "p.txt": b"x"})
    shutil.copytree(step.volume / "models/tiny", step.volume / "mine/final")
    assert words in step.refused(**config)


def admit(step: Step, request: dict[str, object]) -> Callable[[], str]:
    """Make a run as the finetune step does; returns what its folder holds, as text."""
    run = RunFolder(step.volume, "done")
    run.admit(request, "attempt", {}, [])
    return lambda: run.record_path.read_text()


def test_name_of_a_run_with_other_parameters_is_refused(step: Step) -> None:
    record = admit(step, {"epochs": 1, "learn_rate": 0.1})
    before = record()
    ended = step.run(run_name="done", request={"epochs": 2, "learn_rate": 0.1})
    assert ended.exit_code == 78
    assert "epochs was 1, is 2" in ended.errors
    assert "learn_rate" not in ended.errors
    assert record() == before


def test_run_with_the_same_parameters_goes_on(step: Step) -> None:
    admit(step, {"epochs": 1})
    assert step.run(run_name="done", request={"epochs": 1}).exit_code == 0


def test_no_resume_takes_the_name_from_an_earlier_run(step: Step) -> None:
    admit(step, {"epochs": 1})
    assert step.run(run_name="done", request={"epochs": 2}, no_resume=True).exit_code == 0


def test_run_that_was_put_aside_frees_its_name(step: Step) -> None:
    admit(step, {"epochs": 1})
    staying = {"services.jsonl": b"{}\n", "service.json": b"{}", "served/ab/config.json": b"{}"}
    write(step.volume / "done", staying)  # of its service, which continues
    RunFolder(step.volume, "done").start_over("another attempt")
    for name, content in staying.items():
        assert (step.volume / "done" / name).read_bytes() == content
    assert step.run(run_name="done", request={"epochs": 2}).exit_code == 0


def test_fetch_loads_no_torch_and_no_hub_client_for_a_local_model(step: Step) -> None:
    code = (
        "import sys, trainer.__main__ as m; code = m.main(sys.argv[1:]);"
        "print(*sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)));"
        "sys.exit(code)"
    )
    path = step.folder / "config.json"
    path.write_text(
        f'{{"volume": "{step.volume}", "model": "models/tiny", "dataset": "dataset", "context": 8}}'
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "fetch", str(path)],
        env={**os.environ, "FINETUNE_TERMINATION_PATH": str(path) + ".end"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "", ran.stdout


def test_nothing_is_left_beside_the_probe(step: Step) -> None:
    before = {path: path.read_bytes() for path in step.volume.rglob("*") if path.is_file()}
    assert step.run().exit_code == 0
    after = {path: path.read_bytes() for path in step.volume.rglob("*") if path.is_file()}
    assert after == before
    assert Path(step.volume / "cache").is_dir()


def test_check_alone_says_what_is_wrong_and_touches_nothing(step: Step) -> None:
    assert "dataset is not there" in step.refused(check_only=True, dataset="nothing")
    ended = step.run(check_only=True, model="org/model-of-the-hub")
    assert ended.exit_code == 0, ended.errors
    assert not (step.volume / "cache").exists()
    assert not (step.volume / "models/org").exists()
