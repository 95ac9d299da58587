"""Models that serve on a cluster are kept where a run that starts over leaves them."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from flows.cli.runs.overview import verify_run
from infra.serving_place import ServingSpec
from trainer.contract import service_history as history
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest, seal
from trainer.contract.step_configs import DeployConfig
from trainer.serving.deploy import deploy
from trainer.serving.deploy.kept_models import DAY_SECONDS, drop_unneeded, keep


@pytest.fixture
def town(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path, "town")


def trained(run: RunFolder, words: str) -> Path:
    """Put the model aside that is there, and leave another."""
    run.admit({}, "", {}, [])
    run.start_over(words)
    run.admit({}, words, {}, [])
    part = run.root / "part"
    (part / "adapter").mkdir(parents=True)
    for name in ("model.safetensors", "adapter/model.safetensors"):
        (part / name).write_text(f"weights of {words}" * 100)
    seal(part, run.final, {})
    (run.final / "model.tensors").write_text("made after it was sealed")
    return run.final


def golden_answers(final: Path) -> None:
    answers = {"format": 1, "dtype": "float32", "prompts": []}
    (final / "golden.json").write_text(json.dumps(answers))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_kept_model_takes_no_space_and_stays_where_the_run_starts_over(town: RunFolder) -> None:
    final = trained(town, "first")
    place, before = keep(town, final), contents(final)
    assert place == town.root / "served" / read_manifest(final).digest[:16]
    assert all((place / name).samefile(final / name) for name in before)
    trained(town, "second")
    assert contents(place) == before != contents(town.final)
    assert keep(town, place) == place


def test_where_links_are_refused_the_model_is_copied(
    town: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    final = trained(town, "first")
    place = keep(town, final)
    assert contents(place) == contents(final)
    assert not (place / "model.safetensors").samefile(final / "model.safetensors")


def test_a_damaged_kept_model_is_mended_under_the_servers_that_have_it_mounted(
    town: RunFolder,
) -> None:
    final = trained(town, "first")
    place = town.served_model(read_manifest(final).digest)
    place.mkdir(parents=True)  # as the kubelet makes what it is to mount and is not there
    mounted = place.stat().st_ino
    shutil.copytree(final, place, dirs_exist_ok=True)
    whole = place / "adapter/model.safetensors"
    written = whole.stat().st_ino
    (place / "model.safetensors").write_bytes(b"weights")
    (place / "model.tensors").write_text("made before it was sealed")
    assert contents(keep(town, final)) == contents(final)
    assert (place.stat().st_ino, whole.stat().st_ino) == (mounted, written)
    shutil.rmtree(place)
    place.mkdir()
    assert contents(keep(town, final)) == contents(final)


def test_verifying_a_run_reads_what_serves_too(
    town: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    final = trained(town, "first")
    (final / "model.tensors").unlink()
    place = keep(town, final)
    name = place.relative_to(town.root).as_posix()
    said: list[str] = []
    assert verify_run(town.root.parent.parent, town.root.parent.name, "town", said.append)
    assert said == ["final: good", f"{name}: good"]
    (place / "model.safetensors").write_text("w" * (place / "model.safetensors").stat().st_size)
    assert not verify_run(town.root.parent.parent, town.root.parent.name, "town", said.append)
    assert said[2] == "final: good"
    assert said[3].startswith(f"{name}: ") and "model.safetensors was altered" in said[3]


def names(run: RunFolder) -> set[str]:
    return {path.name for path in run.served.iterdir()}


def test_models_go_once_neither_the_one_that_serves_nor_the_one_before(town: RunFolder) -> None:
    digests = []
    for words in ("first", "second", "third"):
        digests.append(read_manifest(keep(town, trained(town, words))).digest)
    first, second, third = (digest[:16] for digest in digests)
    long_ago = time.time() - 2 * DAY_SECONDS

    def serve(event: str, digest: str) -> None:
        history.append(town, event, revision=history.next_revision(town), model_digest=digest)
        for place in town.served.iterdir():
            os.utime(place, (long_ago, long_ago))

    serve("served", digests[0])
    serve("served", digests[1])
    drop_unneeded(town, digests[2])
    assert names(town) == {first, second, third}
    serve("rolled back", digests[0])
    drop_unneeded(town, digests[0])
    assert names(town) == {first, second}
    keep(town, town.final)
    serve("served", digests[2])
    keep(town, history.model_of(town, digests[1]))  # within the day: another may be trying it
    drop_unneeded(town, digests[2])
    assert names(town) == {first, second, third}
    serve("served", digests[2])
    drop_unneeded(town, digests[2])
    assert names(town) == {first, third}
    # Dropped, it is found where the run that started over put it.
    assert history.model_of(town, digests[1]).parent.parent == town.root / "replaced"


def test_a_service_that_an_older_version_made_of_the_same_model_becomes_another(
    town: RunFolder,
) -> None:
    final = trained(town, "first")
    golden_answers(final)
    digest = read_manifest(final).digest
    made = ServingSpec(
        run_name="town",
        volume="data",
        model="town/final",
        model_digest=digest,
        revision=1,
        image="steps",
    )
    recorded = dataclasses.asdict(made)
    history.append(town, "served", revision=1, model_digest=digest, serving=recorded)
    config = DeployConfig(volume=str(town.root.parent), run="town")
    found = deploy.run(config).result
    assert found["serving"] == recorded
    assert found["model"] == f"town/served/{digest[:16]}"
    wanted = dataclasses.replace(made, model=found["model"], revision=found["revision"])
    assert not made.serves_as(wanted)
    # Once another model takes over, a new server of it starts from what was kept.
    golden_answers(trained(town, "second"))
    found = deploy.run(config).result
    assert found["serving"] == {**recorded, "model": f"town/served/{digest[:16]}"}
    kept = town.root.parent / found["serving"]["model"]
    assert "first" in (kept / "model.safetensors").read_text()
