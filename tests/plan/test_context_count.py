"""Counting contexts: exact where the store is, close where it is not, and without a trace."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from trainer.contract.errors import RequestError
from trainer.contract.step_configs import TokenizeConfig
from trainer.contract.topics import DataConfig
from trainer.demo.tales import dataset_files
from trainer.plan.context_count import count_contexts

END_OF_TEXT = "<|endoftext|>"


@pytest.fixture(scope="module")
def tales() -> dict[str, str]:
    """Every other file: still more than an estimate reads."""
    return dict(list(dataset_files(7))[::2])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tales: dict[str, str]) -> Path:
    """A folder with a config and a byte-level tokenizer trained on some tales."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(tales.values())[:50], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "gptj", "vocab_size": 700}))
    return folder


@pytest.fixture
def volume(tmp_path: Path, model: Path) -> Path:
    shutil.copytree(model, tmp_path / "volume/models/m")
    return tmp_path / "volume"


def config(volume: Path, **options: Any) -> TokenizeConfig:
    given = {"dataset": "dataset", "model": "models/m", "context": 128} | options
    return TokenizeConfig(volume=str(volume), **given)


def write(volume: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = volume / "dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def made_by_the_step(volume: Path, tmp_path: Path, **options: Any) -> int:
    """How many contexts the tokenize step makes, as the process that it is."""
    path, outcome = tmp_path / "config.json", tmp_path / "outcome.json"
    request = {"volume": str(volume), "dataset": "dataset", "model": "models/m", "context": 128}
    path.write_text(json.dumps(request | options))
    ran = subprocess.run(
        [sys.executable, "-m", "trainer", "tokenize", str(path)],
        capture_output=True,
        text=True,
        env={"FINETUNE_TERMINATION_PATH": str(outcome), "PATH": "/usr/bin:/bin"},
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(outcome.read_text())["result"]["num_contexts"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"context": 512, "sampling": 50},
        {"boundary_token": "", "sanitize": False},
        {"boundary_index": 0},
    ],
)
def test_estimate_is_close_and_the_store_then_exact(
    volume: Path, tmp_path: Path, tales: dict[str, str], options: dict[str, Any]
) -> None:
    write(volume, tales)
    before = set(volume.rglob("*"))
    estimate = count_contexts(config(volume, **options))
    assert set(volume.rglob("*")) == before, "a plan leaves no trace"
    assert estimate.estimated
    assert estimate.num_train_contexts is None

    made = made_by_the_step(volume, tmp_path, **options)
    assert estimate.num_contexts == pytest.approx(made, rel=0.05)
    exact = count_contexts(config(volume, **options))
    assert (exact.estimated, exact.num_contexts) == (False, made)
    assert exact.num_train_contexts is not None
    assert 0 < exact.num_train_contexts < made


def test_store_of_other_text_options_or_tokenizer_does_not_count(
    volume: Path, tmp_path: Path, tales: dict[str, str]
) -> None:
    write(volume, dict(list(tales.items())[:20]))
    made_by_the_step(volume, tmp_path)
    assert not count_contexts(config(volume)).estimated
    assert count_contexts(config(volume, context=64)).estimated
    write(volume, {"more.txt": "One more tale.\n"})
    assert count_contexts(config(volume)).estimated
    (volume / "dataset/more.txt").unlink()
    (manifest,) = volume.glob("tokens/*/manifest.json")
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"format": ', '"format": 1'))  # older, or damaged
    assert count_contexts(config(volume)).estimated
    made_by_the_step(volume, tmp_path)  # which mends it
    assert manifest.read_text() == whole
    tokenizer = volume / "models/m/tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert count_contexts(config(volume)).estimated


def test_other_kinds_of_files_are_estimated_as_the_step_reads_them(
    volume: Path, tmp_path: Path, tales: dict[str, str]
) -> None:
    texts = [text for name, text in tales.items() if name.endswith(".txt")]
    folder = volume / "dataset"
    folder.mkdir()
    lines = "".join(json.dumps({"id": "x" * 80, "text": text}) + "\n" for text in texts[:10])
    (folder / "a.jsonl").write_text(lines)
    (folder / "b.txt.gz").write_bytes(gzip.compress("".join(texts[20:40]).encode()))
    # Row groups that an estimate reads whole.
    pq.write_table(pa.table({"text": texts[120:150]}), folder / "c.parquet", row_group_size=2)
    estimate = count_contexts(config(volume))
    made = made_by_the_step(volume, tmp_path)
    assert estimate.num_contexts == pytest.approx(made, rel=0.25)


def test_model_that_is_not_there_yet_is_reckoned_with_four_bytes_a_token(
    volume: Path, tales: dict[str, str]
) -> None:
    write(volume, tales)
    count = count_contexts(config(volume, model="org/on-the-hub"))
    size = sum(len(text.encode()) for text in tales.values())
    assert count.estimated
    assert count.num_contexts == pytest.approx(size / 4 / 128, rel=0.01)


def test_missing_dataset_is_refused(volume: Path) -> None:
    with pytest.raises(RequestError, match="dataset is not there"):
        count_contexts(config(volume))


def packing(**more: str) -> dict[str, Any]:
    return {"packing": "documents", **more}


def test_packed_documents_are_estimated_and_then_exact(
    volume: Path, tmp_path: Path, tales: dict[str, str]
) -> None:
    write(volume, tales)
    asked = config(volume, context=1024, data=DataConfig(**packing(too_long="cut")))
    estimate = count_contexts(asked)
    assert estimate.estimated and estimate.padding_share is not None
    made = made_by_the_step(volume, tmp_path, context=1024, data=packing(too_long="cut"))
    assert abs(estimate.num_contexts - made) < 0.15 * made
    exact = count_contexts(asked)
    assert exact.num_contexts == made and not exact.estimated
    assert exact.padding_share is not None
    assert abs(exact.padding_share - estimate.padding_share) < 0.1
    assert exact.left_out_share is not None and estimate.left_out_share is not None
    assert 0 < exact.left_out_share == pytest.approx(estimate.left_out_share, abs=0.1)
    assert exact.trained_tokens is not None and estimate.trained_tokens is not None
    assert abs(exact.trained_tokens - estimate.trained_tokens) < 0.15 * exact.trained_tokens
    with pytest.raises(RequestError, match=r"dataset has documents that are longer than a context"):
        count_contexts(config(volume, context=64, data=DataConfig(**packing())))
