"""Where base weights come from, and models that have to learn new tokens."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorizer import TensorSerializer
from transformers import AutoModelForCausalLM

from tests.object_store import s3_server
from tests.training.forking import Strike, ended_with, log_of, run_forked, run_step
from tests.training.volume import VOCABULARY, make_config, make_model, make_volume, read_lines
from trainer.models import load_base, load_model
from trainer.tokens.store import Manifest, file_digest
from trainer.training.verify_resume import main as rehearse

ARCHITECTURES = ["gptj", "neox", "llama"]


def tensorize(model: Any, path: Path) -> Path:
    serializer = TensorSerializer(str(path))
    serializer.write_module(model)
    serializer.close()
    return path


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 server on this machine, as any that AWS_ENDPOINT_URL names."""
    with s3_server() as url:
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="models")
        yield client


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensorized_weights_are_the_models(tmp_path: Path, architecture: str) -> None:
    make_model(architecture).save_pretrained(tmp_path)
    place = tensorize(make_model(architecture), tmp_path / "weights.tensors")
    ours, theirs = load_base(tmp_path, tensorizer=str(place)), load_model(tmp_path)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad, name
    ids = torch.arange(1, 9)[None]
    assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)


def test_a_run_from_tensorized_weights_is_the_run_from_the_models(
    tmp_path: Path, bucket: Any
) -> None:
    volume = make_volume(tmp_path / "volume")
    weights = tensorize(make_model("gptj"), volume / "tiny.tensors")
    bucket.upload_file(str(weights), "models", "tiny.tensors")
    lines = []
    for name, uri in (("file", "tiny.tensors"), ("s3", "s3://models/tiny.tensors"), ("own", "")):
        config = make_config(volume, run_name=name, request={}, tensorizer_uri=uri, epochs=1)
        if name == "own":  # until now there was nothing to load but the files of tensorizer's
            make_model("gptj").save_pretrained(volume / "models" / "tiny")
            (volume / "models" / "tiny" / "modeling_own.py").write_text("pass")
            config["trust_remote_code"] = True
        elif name == "file":
            (volume / "models" / "tiny" / "model.safetensors").unlink()
        assert run_step("finetune", config) == 0, log_of(config)
        found = read_lines(volume / name / "metrics.jsonl")
        lines.append([line.get("loss", line.get("eval_loss")) for line in found])
    assert lines[0] == lines[1] == lines[2]
    digest = hashlib.sha256(b"pass").hexdigest()
    record = json.loads((volume / "own" / "run.json").read_text())
    assert record["code"] == {"id": None, "commit": None, "files": {"modeling_own.py": digest}}
    assert f"`modeling_own.py`, SHA-256 `{digest}`" in (volume / "own/final/README.md").read_text()


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:], 1, "damaged weights"),
        (lambda data: data[: len(data) // 2], 78, "it can't be read"),
        (lambda data: b"PK" + data, 78, "Not a tensorizer file"),
    ],
)
def test_damaged_tensorized_weights_are_refused(
    tmp_path: Path, spoil: Any, code: int, words: str
) -> None:
    volume = make_volume(tmp_path / "volume")
    weights = tensorize(make_model("gptj"), volume / "tiny.tensors")
    weights.write_bytes(spoil(weights.read_bytes()))
    config = make_config(volume, tensorizer_uri="tiny.tensors")
    assert run_step("finetune", config) == code
    assert words in ended_with(config)["message"]


def test_tensorized_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "volume")
    tensorize(make_model("llama"), volume / "tiny.tensors")
    config = make_config(volume, tensorizer_uri="tiny.tensors")
    assert run_step("finetune", config) == 78
    assert "it lacks 24 of the model's weights" in ended_with(config)["message"]


def add_tokens(volume: Path, num_ids: int, first: int = VOCABULARY) -> None:
    """Have the store use ids beyond the model's own vocabulary, and say where they are from."""
    folder = volume / "tokens" / "tiny"
    manifest = json.loads((folder / "manifest.json").read_text())
    ids = np.fromfile(folder / "tokens.bin", dtype=manifest["dtype"])
    ids[1::4] = num_ids - 1
    (folder / "tokens.bin").write_bytes(ids.tobytes())
    new = [first, *range(VOCABULARY + 1, num_ids)]
    del manifest["self_sha256"]
    manifest["added_tokens"] = [{"id": i, "content": f"<{i}>", "special": True} for i in new]
    manifest["vocab_size"] = num_ids
    manifest["digests"]["tokens.bin"]["sha256"] = file_digest(folder / "tokens.bin")
    (folder / "manifest.json").write_text(Manifest(**manifest).to_json())


def test_added_tokens_get_embeddings_that_are_trained(tmp_path: Path) -> None:
    num_ids = 70_000  # the store's ids need 32 bits
    runs = []
    for name, strike in (("whole", None), ("broken", Strike("trainer.training.loop:Loop._save"))):
        volume = make_volume(tmp_path / name, wide=True, contexts=8)
        add_tokens(volume, num_ids)
        config = make_config(volume, epochs=3)
        if strike:
            assert run_step("finetune", config, strike) == -9
        assert run_step("finetune", config) == 0, log_of(config)
        runs.append(volume / "run")
    assert f"{num_ids - VOCABULARY} added tokens are new to the model" in log_of(config)
    weights = [load_file(run / "final" / "model.safetensors") for run in runs]
    assert all(torch.equal(weights[1][name], w) for name, w in weights[0].items())
    model = AutoModelForCausalLM.from_pretrained(runs[0] / "final")
    assert model.config.vocab_size == num_ids
    began = load_base(tmp_path / "whole/models/tiny", num_ids=num_ids, seed=42)
    rows = [m.get_input_embeddings().weight[num_ids - 1] for m in (began, model)]
    assert not torch.equal(*rows)
    losses = [x["eval_loss"] for x in read_lines(runs[0] / "metrics.jsonl") if "eval_loss" in x]
    assert losses[-1] < losses[0]
    whole = tmp_path / "whole"
    code, said = run_forked(whole, lambda: rehearse([str(whole), "run"]))
    assert code == 0 and "resumes exactly: from step 4 to step 6" in said, said


def test_first_process_hands_weights_on_that_are_not_read_in_parts(tmp_path: Path) -> None:
    volume, num_ids = make_volume(tmp_path / "volume", contexts=8), VOCABULARY + 3
    add_tokens(volume, num_ids)
    first = []
    for processes, stage, adapters in ((1, 0, False), (2, 3, False), (2, 1, False), (2, 3, True)):
        name = f"{processes}-{stage}-{adapters}".lower()
        config = make_config(volume, run_name=name, request={}, epochs=1, save_steps=0)
        config |= {"processes": processes, "zero_stage": stage, "batch_size": 2 // processes}
        if adapters:
            config["lora"] = {"rank": 2, "target_modules": []}
        assert run_step("finetune", config) == 0, log_of(config)
        first.append(read_lines(volume / name / "metrics.jsonl")[0]["loss"])
    assert first[1:] == pytest.approx([first[0]] * 3, abs=1e-5)


def test_ids_that_no_added_token_explains_are_refused(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "volume", wide=True)
    add_tokens(volume, VOCABULARY + 2, first=5)
    config = make_config(volume)
    assert run_step("finetune", config) == 78
    assert "more than the model has embeddings" in ended_with(config)["message"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_new_embeddings_begin_at_the_mean_and_never_likeliest(
    tmp_path: Path, architecture: str
) -> None:
    make_model(architecture).save_pretrained(tmp_path)
    base = load_model(tmp_path)
    grown, again = (load_base(tmp_path, num_ids=VOCABULARY + 5, seed=1) for _ in range(2))
    old, new = (m.get_input_embeddings().weight for m in (base, grown))
    assert torch.equal(new[:VOCABULARY], old)
    assert torch.equal(new, again.get_input_embeddings().weight)
    torch.testing.assert_close(
        new[VOCABULARY:].mean(0), old.mean(0), atol=0.02 * float(old.detach().std()), rtol=0
    )
    assert len({tuple(row.tolist()) for row in new[VOCABULARY:]}) == 5
    ids = torch.arange(1, 9)[None]
    logits = grown(input_ids=ids).logits
    assert torch.allclose(logits[..., :VOCABULARY], base(input_ids=ids).logits)
    assert (logits.argmax(-1) < VOCABULARY).all()
    assert load_base(tmp_path, num_ids=VOCABULARY - 5).config.vocab_size == VOCABULARY


def test_weights_beside_the_model_do_not_count(tmp_path: Path) -> None:
    folder = make_volume(tmp_path, "llama") / "models" / "tiny"
    weights = load_file(folder / "model.safetensors")
    wrong = {name: tensor * 0.5 for name, tensor in weights.items()}
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = [names[::2], names[1::2]]
    files = [f"model-{n}-of-00002.safetensors" for n in ("00001", "00002")]
    for file, shard in zip(files, shards, strict=True):
        save_file({n: weights[n] for n in shard}, folder / file, {"format": "pt"})
    index = {n: file for file, shard in zip(files, shards, strict=True) for n in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for stale in ("model-00001-of-00003.safetensors", "ema.safetensors", "zz.safetensors"):
        save_file(wrong, folder / stale, {"format": "pt"})
    config = make_config(tmp_path, learn_rate=0, epochs=1)
    assert run_step("finetune", config) == 0, log_of(config)
    found = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_an_untied_pair_stays_untied_though_the_config_ties_it(tmp_path: Path) -> None:
    folder = make_volume(tmp_path, "llama") / "models" / "tiny"
    weights = load_file(folder / "model.safetensors")
    head = torch.randn(weights["model.embed_tokens.weight"].shape)
    save_file(weights | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True
    config = make_config(tmp_path, learn_rate=0, epochs=1)
    assert run_step("finetune", config) == 0, log_of(config)
    assert "ties lm_head.weight to model.embed_tokens.weight" in log_of(config)
    final = tmp_path / "run" / "final"
    assert torch.equal(load_file(final / "model.safetensors")["lm_head.weight"], head)
    assert json.loads((final / "config.json").read_text())["tie_word_embeddings"] is False
    base = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(1, 9)[None]
    ours = AutoModelForCausalLM.from_pretrained(final)(input_ids=ids).logits
    assert torch.equal(ours, base(input_ids=ids).logits)
