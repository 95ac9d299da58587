"""`finetune export --to-hub`: what is pushed can be fetched again, byte for byte."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.export.conftest import Export
from tests.fetch.conftest import Step
from tests.hub_double import HubDouble, HubModel
from trainer.contract.sealed_folder import file_record, read_manifest

TOKEN, NAME = "hf_of_this_test", "owner/tales"


@pytest.fixture
def hub(export: Export) -> Iterator[HubDouble]:
    """A hub where the test's token may write, and the command pointed to it."""
    with HubDouble({}, writers=(TOKEN,)) as double:
        export.environment |= {
            "HF_ENDPOINT": double.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",  # the double takes large files by LFS alone
        }
        yield double


def puts(hub: HubDouble) -> list[str]:
    return [path for method, path, _ in hub.requests if method == "PUT"]


def test_what_was_pushed_is_fetched_with_the_same_digests(
    export: Export, hub: HubDouble, tmp_path: Path
) -> None:
    said = export.run("run", "--to-hub", NAME)
    assert f"made the private repository {NAME}" in said.stderr
    assert hub.models[NAME].private
    manifest = read_manifest(export.volume / "run/final")
    expected = {*manifest.files} - {"golden.json"} | {".gitattributes"}
    assert set(hub.models[NAME].files) == expected
    assert "adapter/adapter_model.safetensors" in expected

    (export.volume / "dataset").mkdir()
    (export.volume / "dataset/a.txt").write_text("w1 w2\n")
    (tmp_path / "configs").mkdir()
    step = Step(tmp_path / "configs", export.volume, dict(export.environment))
    ended = step.run(model=NAME, context=16, run_name="next")
    assert ended.exit_code == 0, ended.errors
    fetched = export.volume / "models" / NAME
    names = {path.name for path in fetched.iterdir() if path.name not in ("README.md",)}
    for name in sorted(names - {".fetched.json"}):
        assert file_record(fetched / name) == manifest.files[name], name
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names


def test_the_card_has_evaluation_ledger_and_digests(export: Export, hub: HubDouble) -> None:
    export.run("run", "--to-hub", NAME)
    card = hub.models[NAME].files["README.md"].decode()
    report = json.loads((export.volume / "run/evaluation.json").read_text())
    assert f"| loss | {report['base_loss']:.4f} | {report['loss']:.4f} |" in card
    assert "dataset/made\\-up" in card or "dataset/made-up" in card
    manifest = read_manifest(export.volume / "run/final")
    assert manifest.digest in card and manifest.files["model.safetensors"]["sha256"] in card
    assert "base_model" not in card  # the volume's own model has no place on a hub


def test_the_base_model_of_a_hub_is_named(export: Export, hub: HubDouble) -> None:
    record_path = export.volume / "run/run.json"
    record = json.loads(record_path.read_text())
    record["request"]["model"] = "org/base"
    record_path.write_text(json.dumps(record))
    (export.volume / "models/org/base").mkdir(parents=True)
    (export.volume / "models/org/base/.fetched.json").write_text("{}")
    export.run("run", "--to-hub", NAME)
    assert 'base_model: "org/base"' in hub.models[NAME].files["README.md"].decode()


def test_the_same_content_is_not_uploaded_again(export: Export, hub: HubDouble) -> None:
    export.run("run", "--to-hub", NAME)
    commit, count = hub.models[NAME].commit, len(puts(hub))
    assert count == 2  # the model and the adapter
    again = export.run("run", "--to-hub", NAME)
    assert "has this model already: nothing to upload" in again.stderr
    assert commit in again.stdout
    assert (hub.models[NAME].commit, len(puts(hub))) == (commit, count)


def test_a_push_that_broke_goes_on_without_sending_again(export: Export, hub: HubDouble) -> None:
    hub.failures["/commit/main"] = 1
    broken = export.run("run", "--to-hub", NAME, code=1)
    assert "Run it again: what arrived is not sent again" in broken.stderr
    assert "model.safetensors" not in hub.models[NAME].files
    sent = puts(hub)
    assert len(sent) == 2
    export.run("run", "--to-hub", NAME)
    assert puts(hub) == sent
    assert "model.safetensors" in hub.models[NAME].files


def test_another_model_replaces_it_and_leaves_what_people_added(
    export: Export, hub: HubDouble
) -> None:
    shards = {"model-00001-of-00002.safetensors": b"old", "LICENSE": b"Free.", "README.md": b"hm"}
    hub.models[NAME] = HubModel({**shards}, private=True, token=TOKEN)
    export.run("run", "--to-hub", NAME)
    files = hub.models[NAME].files
    assert "model-00001-of-00002.safetensors" not in files
    assert files["LICENSE"] == b"Free." and b"# run" in files["README.md"]


def test_a_branch_is_made_and_main_stays(export: Export, hub: HubDouble) -> None:
    hub.models[NAME] = HubModel({"LICENSE": b"Free."}, private=True, token=TOKEN)
    said = export.run("run", "--to-hub", NAME, "--revision", "v2")
    assert "made its branch v2" in said.stderr
    assert "model.safetensors" in hub.models[NAME].branches["v2"]
    assert hub.models[NAME].files == {"LICENSE": b"Free."}


def test_who_may_see_it_is_as_asked_or_it_is_refused(export: Export, hub: HubDouble) -> None:
    hub.models[NAME] = HubModel({}, private=False)
    refused = export.run("run", "--to-hub", NAME, code=78)
    assert "is public already, and you asked for a private one" in refused.stderr
    assert not hub.models[NAME].files and not puts(hub)
    export.run("run", "--to-hub", NAME, "--public")
    assert "model.safetensors" in hub.models[NAME].files
    hub.models["owner/other"] = HubModel({}, private=True, token=TOKEN)
    refused = export.run("run", "--to-hub", "owner/other", "--public", code=78)
    assert "is private already" in refused.stderr and "leave --public out" in refused.stderr


def test_what_is_missing_is_refused_by_name(export: Export, hub: HubDouble) -> None:
    assert "--to-hub OWNER/NAME" in export.run("run", code=78).stderr
    refused = export.run("run", "--to-hub", "tales", code=78).stderr
    assert "--to-hub is no repository's name (got 'tales')" in refused
    export.environment["HF_TOKEN"] = "hf_that_only_reads"
    refused = export.run("run", "--to-hub", NAME, code=78).stderr
    assert f"HF_TOKEN may not write to {NAME}" in refused
    del export.environment["HF_TOKEN"]
    assert "HF_TOKEN is not set" in export.run("run", "--to-hub", NAME, code=78).stderr
    assert not hub.models


def test_a_damaged_final_model_is_not_pushed(export: Export, hub: HubDouble) -> None:
    path = export.volume / "run/final/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = export.run("run", "--to-hub", NAME, code=1).stderr
    assert "the final model can't be exported" in said and "altered" in said
    assert not hub.models
