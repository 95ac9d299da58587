"""`finetune plan` refuses whatever the fetch step refuses, in the same words."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.plan_request import plan_request
from tests.fetch.conftest import VOCABULARY, model_files, tokenizer, write
from tests.fetch.test_model_on_volume import (
    cut_short,
    index_names_other_folder,
    not_safetensors,
    one_token_too_many,
    pickled_only,
    shard_missing,
    tensor_missing,
)
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.step_configs import FetchConfig
from trainer.fetch.step import run as fetch

DEEP = "[" * 100_000 + "]" * 100_000
DIMENSIONS = {"n_layer": 1, "n_head": 2, "n_embd": 8}
Spoil = Callable[[Path], None]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    volume = tmp_path / "finetune-data"
    write(volume / "dataset", {"a.txt": b"Once upon a time.\n" * 300})
    write(volume / "models/tiny", model_files())
    edit(**DIMENSIONS)(volume / "models/tiny")
    return tmp_path


def edit(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def put(name: str, content: str | bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def pre_tokenized(pattern: str) -> str:
    fields = tokenizer(VOCABULARY)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    return json.dumps(fields | {"pre_tokenizer": {**split, "invert": False}})


def header(entries: Any) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


def a_folder_of_that_name(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()


MODELS: dict[str, Spoil] = {
    "config: nested": put("config.json", '{"x": ' + DEEP + "}"),
    "config: list": put("config.json", "[1]"),
    "config: cut": put("config.json", '{"model_type": "gp'),
    "config: encoder": edit(model_type="bert"),
    "config: quantized": edit(quantization_config={"quant_method": "gptq"}),
    "config: dtype": edit(dtype="int4"),
    "config: unknown kind": edit(model_type="homemade"),
    "config: own code": edit(model_type="homemade", auto_map={"AutoModelForCausalLM": "m.M"}),
    "config: another vocabulary": edit(vocab_size=10),
    "config: router": edit(output_router_logits=True, router_aux_loss_coef=0.1),
    "config: 2^62 layers": edit(n_layer=2**62),
    "config: 2^62 wide": edit(n_inner=2**62),
    "config: 2^62 heads": edit(n_head=2**62),
    "tokenizer: nested": put("tokenizer.json", DEEP),
    "tokenizer: list": put("tokenizer.json", "[1, 2]"),
    "tokenizer: number": put("tokenizer.json", "3"),
    "tokenizer: empty": put("tokenizer.json", ""),
    "tokenizer: no text": put("tokenizer.json", b"\xff\xfe\0"),
    "tokenizer: without parts": put("tokenizer.json", '{"model": {"vocab": {"a": 0}}}'),
    "tokenizer: cut": put("tokenizer.json", json.dumps(tokenizer(VOCABULARY))[:400]),
    "tokenizer: a folder": a_folder_of_that_name,
    "tokenizer: no pattern": put("tokenizer.json", pre_tokenized("((")),
    "tokenizer: runaway": put("tokenizer.json", pre_tokenized(r"(\w+)+\d\d")),
    "tokenizer: too many": one_token_too_many,
    "weights: pickled": pickled_only,
    "weights: cut": cut_short,
    "weights: others": not_safetensors,
    "weights: a shard": shard_missing,
    "weights: a tensor": tensor_missing,
    "weights: elsewhere": index_names_other_folder,
    "weights: 2^62": put(
        "model.safetensors",
        header({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}),
    ),
    "weights: below 0": put(
        "model.safetensors",
        header({"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}),
    ),
    "weights: nested": put("model.safetensors", header(('{"a": ' + DEEP + "}").encode())),
    "weights: odd header": put("model.safetensors", header([1])),
    "weights: nested index": put("model.safetensors.index.json", DEEP),
    "weights: link": lambda folder: os.symlink("/etc/hostname", folder / "extra.txt"),
}
REQUESTS: dict[str, dict[str, Any]] = {
    "context": {"context": 1000},
    "model": {"model": "models/none"},
    "model: no id": {"model": "models/no/such/folder"},
    "tokenizer": {"tokenizer": "models/no/such/folder"},
    "dataset": {"dataset": "none"},
    "dataset: no such scheme": {"dataset": "foo://x"},
    "prompt_file": {"prompt_file": "none.txt"},
    "run_name": {"run_name": "models"},
    "tensorizer_uri": {"tensorizer_uri": "none.tensors"},
    "prompt_file: leaves": {"prompt_file": "dataset"},
}


def refused_by_run(home: Path, **given: Any) -> set[str]:
    values = {"volume": str(home / "finetune-data"), "check_only": True, **given}
    names = FetchConfig.__dataclass_fields__
    with pytest.raises(RequestError) as refused:
        fetch(FetchConfig(**{name: value for name, value in values.items() if name in names}))
    return set(refused.value.problems)


def refused_by_plan(home: Path, **given: Any) -> set[str]:
    asked = Parameters(**{"batch_size": 1, "gradients": 1, **given})
    try:
        made = plan_request(asked, home, num_contexts=None, on_cluster=False)
    except RequestError as error:
        return set(error.problems)
    return set(made.problems)


@pytest.mark.parametrize("spoil", [pytest.param(spoil, id=name) for name, spoil in MODELS.items()])
def test_of_a_model(home: Path, spoil: Spoil) -> None:
    asked = {"run_name": "run", "model": "models/tiny", "dataset": "dataset", "context": 16}
    assert not refused_by_plan(home, **asked)
    spoil(home / "finetune-data/models/tiny")
    by_run = refused_by_run(home, **asked)
    assert by_run and by_run <= refused_by_plan(home, **asked)


@pytest.mark.parametrize("name", REQUESTS)
def test_of_a_request(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = {"run_name": "run", "model": "models/tiny", "dataset": "dataset", "context": 16}
    asked |= REQUESTS[name]
    if name == "model":  # it may be a model of the hub: of one that is not there, both say so
        assert any("the hub" in problem for problem in refused_by_plan(home, **asked))
        return
    by_run = refused_by_run(home, **asked)
    assert by_run and by_run <= refused_by_plan(home, **asked)


def test_of_a_key_that_is_not_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    asked = {"run_name": "run", "model": "models/tiny", "dataset": "dataset", "context": 16}
    (problem,) = refused_by_plan(home, **asked, serving={"api_key": "NO_SUCH_KEY"})
    assert problem.startswith("serving.api_key names an environment variable that is not set")


def test_of_a_name_that_another_run_has(home: Path) -> None:
    asked = {"run_name": "run", "model": "models/tiny", "dataset": "dataset", "context": 16}
    record = {"format": 1, "created": "now", "request": {"context": 8}}
    write(home / "finetune-data/run", {"run.json": json.dumps(record).encode()})
    (problem,) = refused_by_run(home, **asked, request=Parameters(**asked).request)
    assert "is taken by a run with other parameters" in problem
    assert problem in refused_by_plan(home, **asked)
