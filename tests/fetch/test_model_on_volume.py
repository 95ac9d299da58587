"""A model's folder on the volume: what is accepted, and what each refusal says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fetch.conftest import POSITIONS, VOCABULARY, Step, model_files, tokenizer, write
from trainer.fetch.weights import INDEX, SINGLE, read_header


def shard(folder: Path) -> None:
    """Turn the model's one weight file into two shards with an index."""
    weights = (folder / SINGLE).read_bytes()
    (folder / SINGLE).unlink()
    names = sorted(f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    for name in names:
        (folder / name).write_bytes(weights)
    tensors = list(read_header(folder / names[0]))
    index = {"weight_map": dict.fromkeys(tensors, names[0]) | {tensors[0]: names[1]}}
    (folder / INDEX).write_text(json.dumps(index))


def test_good_model_is_taken_as_it_is(step: Step) -> None:
    ended = step.run()
    assert ended.exit_code == 0, ended.errors
    assert ended.outcome["reused"] is True
    result = {n: v for n, v in ended.outcome["result"].items() if n != "digests"}
    assert result == {
        "model": "models/tiny",
        "tokenizer": "",
        "model_bytes": len(model_files()[SINGLE]),
        "parameters": VOCABULARY * 8 + VOCABULARY * 500,  # the boolean mask is none
        "context_limit": POSITIONS,
        "downloaded": False,
        "exam": {"not examined": "FINETUNE_EXAMS=off"},
    }
    assert not (step.volume / "run").exists()


def test_sharded_model_is_counted_over_its_shards(step: Step) -> None:
    shard(step.volume / "models/tiny")
    ended = step.run()
    assert ended.exit_code == 0, ended.errors
    assert ended.outcome["result"]["model_bytes"] == 2 * len(model_files()[SINGLE])


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut_short(folder: Path) -> None:
    weights = folder / SINGLE
    weights.write_bytes(weights.read_bytes()[:-1])


def grow(folder: Path) -> None:
    weights = folder / SINGLE
    weights.write_bytes(weights.read_bytes() + b"more")


def not_safetensors(folder: Path) -> None:
    (folder / SINGLE).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")


def pickled_only(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")


def shard_missing(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def tensor_missing(folder: Path) -> None:
    shard(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["transformer.h.9.weight"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def index_names_other_folder(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"w": "../other/model.safetensors"}}))


def one_token_too_many(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(VOCABULARY + 2)))


def slow_tokenizer_too_large(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({f"t{n}": n for n in range(VOCABULARY + 1)}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove("config.json"), ["model tiny has no config.json"]),
        (remove(SINGLE), ["model tiny has no weights", SINGLE]),
        (remove("tokenizer.json"), ["model tiny has no tokenizer", "set tokenizer"]),
        (pickled_only, ["pickled weights only", "pytorch_model.bin", "save_pretrained()"]),
        (cut_short, ["damaged weight file", "model.safetensors is", "its header says"]),
        (grow, ["damaged weight file", "its header says"]),
        (not_safetensors, ["model.safetensors is not a safetensors file"]),
        (shard_missing, ["lacks 1 of its 2 weight files", "model-00002-of-00002.safetensors"]),
        (tensor_missing, ["without 1 tensors", "transformer.h.9.weight"]),
        (index_names_other_folder, ["names files elsewhere", "../other/model.safetensors"]),
        (one_token_too_many, ["more tokens than the model has embeddings", "got 65", "has 64"]),
        (slow_tokenizer_too_large, ["more tokens than the model has embeddings", "got 65"]),
    ],
)
def test_bad_model_folder_is_refused(
    step: Step, spoil: Callable[[Path], None], words: list[str]
) -> None:
    spoil(step.volume / "models/tiny")
    message = step.refused()
    assert all(word in message for word in words), message


def test_a_token_that_was_added_is_taken_as_it_gets_an_embedding(step: Step) -> None:
    added = {"added_tokens_decoder": {str(VOCABULARY): {"content": "<|pad|>"}}}
    (step.volume / "models/tiny/tokenizer_config.json").write_text(json.dumps(added))
    assert step.run().exit_code == 0


def test_weights_may_be_in_a_file_of_tensorizers(
    step: Step, edit_config: Callable[..., None]
) -> None:
    edit_config(n_embd=8, n_layer=1, n_head=2, vocab_size=VOCABULARY)
    (step.volume / "models/tiny" / SINGLE).unlink()
    (step.volume / "tiny.tensors").write_bytes(b"|TZR|" + bytes(100))
    ended = step.run(tensorizer_uri="tiny.tensors")
    assert ended.exit_code == 0, ended.errors
    assert ended.outcome["result"]["model_bytes"] == 105
    (step.volume / "tiny.tensors").write_bytes(b"PK\x03\x04")
    assert "tensorizer_uri is no file of tensorizer's" in step.refused(
        tensorizer_uri="tiny.tensors"
    )
    assert "tensorizer_uri can't be read" in step.refused(tensorizer_uri="none.tensors")


def test_damaged_json_is_refused_by_its_name(step: Step) -> None:
    (step.volume / "models/tiny/config.json").write_text("{")
    assert "model tiny has a damaged config.json" in step.refused()


def test_an_embedding_of_another_size_than_the_config_says_is_refused(
    step: Step, edit_config: Callable[..., None]
) -> None:
    """transformers could not load it."""
    edit_config(vocab_size=10)
    assert "got 64 x 8 for transformer.wte.weight; the config says 10 tokens" in step.refused()


def test_larger_context_than_the_model_takes_is_refused(step: Step) -> None:
    message = step.refused(context=POSITIONS + 1)
    assert "context is larger than the model takes (got 33)" in message
    assert "Set context=32 or less" in message
    assert step.run(context=POSITIONS).exit_code == 0


def test_model_without_a_limit_takes_any_context(
    step: Step, edit_config: Callable[..., None]
) -> None:
    edit_config(n_positions=None, model_type="bloom")
    assert step.run(context=100_000).exit_code == 0


def test_code_of_the_model_is_not_run_unasked(step: Step, edit_config: Callable[..., None]) -> None:
    edit_config(model_type="homemade", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert "trust_remote_code=true" in step.refused()
    assert step.run(trust_remote_code=True).exit_code == 0


def test_trusted_code_from_another_place_is_refused(
    step: Step, edit_config: Callable[..., None]
) -> None:
    edit_config(model_type="homemade", auto_map={"AutoModelForCausalLM": "a/b--modeling.Model"})
    assert "'a/b--modeling.Model'" in step.refused(trust_remote_code=True)


def test_known_kind_needs_no_code_of_its_own(step: Step, edit_config: Callable[..., None]) -> None:
    edit_config(auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert step.run().exit_code == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "homemade"}, "got model_type 'homemade'"),
        ({"model_type": ""}, "got model_type ''"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "is an encoder-decoder"),
    ],
)
def test_kind_that_can_not_be_trained_is_refused(
    step: Step, edit_config: Callable[..., None], changes: dict[str, object], words: str
) -> None:
    edit_config(**changes)
    assert words in step.refused()


@pytest.mark.parametrize("path", ["../outside", "/etc", "models/../../outside", "link"])
@pytest.mark.parametrize("parameter", ["model", "tokenizer", "dataset"])
def test_path_that_leaves_the_volume_is_refused(step: Step, parameter: str, path: str) -> None:
    write(step.volume.parent / "outside", {"a.txt": b"x", **model_files()})
    (step.volume / "link").symlink_to(step.volume.parent / "outside")
    assert f"{parameter} leads out of the volume (got {path!r})" in step.refused(
        **{parameter: path}
    )


def test_misspelt_model_folder_gets_the_nearest_name(step: Step) -> None:
    message = step.refused(model="models/old/tinny")
    assert "model is neither a folder on the volume nor a Hugging Face id" in message
    assert "Did you mean models/tiny?" in message


def test_tokenizer_of_another_folder_is_checked_in_its_place(step: Step) -> None:
    shutil.copytree(step.volume / "models/tiny", step.volume / "words")
    (step.volume / "models/tiny/tokenizer.json").unlink()
    ended = step.run(tokenizer="words")
    assert ended.exit_code == 0, ended.errors
    assert ended.outcome["result"]["tokenizer"] == "words"
    one_token_too_many(step.volume / "words")
    assert "tokenizer words has more tokens" in step.refused(tokenizer="words")


def test_everything_wrong_is_said_at_once(step: Step) -> None:
    (step.volume / "models/tiny" / SINGLE).unlink()
    message = step.refused(dataset="nothing", prompt_file="no.txt", run_name="models")
    for word in ("dataset is not there", "prompt_file is not there", "run_name", "no weights"):
        assert word in message


def test_a_wrong_context_is_said_with_whatever_else_is_wrong(step: Step) -> None:
    too_large = "context is larger than the model takes (got 33)"
    message = step.refused(dataset="nothing", context=POSITIONS + 1)
    assert "dataset is not there" in message and message.count(too_large) == 1
    (step.volume / "models/tiny" / SINGLE).unlink()
    assert too_large in step.refused(dataset="nothing", context=POSITIONS + 1)
    not_here = step.refused(dataset="nothing", context=POSITIONS + 1, tokenizer="org/tiny")
    assert too_large in not_here


def test_two_sets_of_weights_are_refused(step: Step) -> None:
    folder = step.volume / "models/tiny"
    single = (folder / SINGLE).read_bytes()
    shard(folder)
    (folder / SINGLE).write_bytes(single)
    said = step.refused()
    assert "model tiny has two sets of weights" in said
    assert f"Delete the set that is not the model ({SINGLE}, or {INDEX})" in said
