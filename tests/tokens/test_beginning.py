"""The first of a dataset, which a rehearsal trains on: of each kind of file, the text itself."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from trainer.contract.errors import RequestError
from trainer.contract.step_configs import FetchConfig
from trainer.rehearse.small_text import CONTEXTS, TEXT_BYTES, copy_beginning
from trainer.tokens.text.documents import whole_part
from trainer.tokens.text.reading import read_texts
from trainer.tokens.text.sources import list_sources

LINES = [f"{number} miles to go, said the stranger." for number in range(100_000)]
LONG = "\n".join(LINES).encode()
JSONL = "\n".join(json.dumps({"text": line}) for line in LINES).encode()


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": LINES, "number": range(100_000)}), path)


FILES = {
    "tale.txt": lambda path: path.write_bytes(LONG),
    "tale.txt.gz": lambda path: path.write_bytes(gzip.compress(LONG)),
    "tale.txt.zst": lambda path: path.write_bytes(zstandard.compress(LONG)),
    "tales.jsonl.gz": lambda path: path.write_bytes(gzip.compress(JSONL)),
    "tales.parquet": write_parquet,
}


def copied(volume: Path, dataset: str = "dataset") -> Path:
    small = volume / "small"
    config = FetchConfig(volume=str(volume), run_name="", model="m", dataset=dataset, context=8)
    copy_beginning(config, small)
    return small


@pytest.mark.parametrize("name", FILES)
def test_a_long_file_is_cut_and_stays_of_its_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / "dataset").mkdir()
    FILES[name](tmp_path / "dataset" / name)
    copied(tmp_path)
    (source,) = list_sources(str(tmp_path), "small")
    assert source.path == name
    texts = [text.text for text in read_texts(whole_part(source, "", "text")) if text]
    begun = (b"" if source.kind == "text" else b"\n").join(texts).removesuffix(b"\n")
    assert LONG.startswith(begun)
    # Of JSON and columns a part is no text.
    assert TEXT_BYTES // 2 < len(begun) <= TEXT_BYTES
    assert begun.endswith(b"said the stranger.")


def test_of_the_references_tokens_the_first_contexts_are_taken(tmp_path: Path) -> None:
    ids = np.arange(8 * 100, dtype="<u2")
    ids.tofile(tmp_path / "tales-tiny-8.tokens")
    small = copied(tmp_path, "tales-tiny-8.tokens") / "tales-tiny-8.tokens"
    assert np.fromfile(small, "<u2").tolist() == ids[: CONTEXTS * 8].tolist()


def test_text_without_a_line_end_is_cut_between_characters(tmp_path: Path) -> None:
    (tmp_path / "tale").write_text("é" * TEXT_BYTES + "\n", encoding="utf-8")
    assert (copied(tmp_path, "tale") / "tale").read_text("utf-8") == "é" * (TEXT_BYTES // 2)


def test_a_first_line_that_is_too_long_is_said(tmp_path: Path) -> None:
    (tmp_path / "tales.jsonl").write_text(json.dumps({"text": "a" * TEXT_BYTES}))
    with pytest.raises(RequestError, match="dataset has no text to rehearse with"):
        copied(tmp_path, "tales.jsonl")
