"""A dataset is there and has text, or the message says what was found instead."""

import gzip
from collections.abc import Iterator

import boto3
import pyarrow
import pyarrow.parquet
import pytest

from tests.fetch.conftest import Step, write
from tests.object_store import s3_server


def parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "files",
    [
        {"a.md": b"x"},
        {"deep/er/a.jsonl": b"{}"},
        {"a.txt.gz": gzip.compress(b"x")},
        {"A.TXT": b"x"},
        {"part.parquet": parquet()},
        {"empty.txt": b"", ".hidden.txt": b"x", "picture.png": b"x", "a.txt": b"x"},
    ],
)
def test_one_usable_file_is_enough(step: Step, files: dict[str, bytes]) -> None:
    write(step.volume / "mine", files)
    ended = step.run(dataset="mine")
    assert ended.exit_code == 0, ended.errors
    url = step.run(dataset=f"file://{step.volume}/mine")
    assert url.exit_code == 0, url.errors


def test_single_file_is_a_dataset(step: Step) -> None:
    assert step.run(dataset="dataset/a.txt").exit_code == 0
    assert step.run(dataset=f"file://{step.volume}/dataset/a.txt").exit_code == 0


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["dataset has no file to read", ".jsonl"]),
        ({".hidden.txt": b"x", ".git/a.txt": b"x"}, ["dataset has no file to read"]),
        ({"a.pdf": b"x", "b.doc": b"x"}, ["dataset has no file to read", ".txt, .md and .jsonl"]),
        ({"a.txt": b"", "deep/b.md": b""}, ["empty files only", "a.txt, deep/b.md)"]),
        ({f"{n}.md": b"" for n in range(9)}, ["0.md, 1.md, 2.md and 6 more"]),
    ],
)
@pytest.mark.parametrize("by_url", [False, True])
def test_dataset_without_text_is_refused(
    step: Step, files: dict[str, bytes], words: list[str], by_url: bool
) -> None:
    (step.volume / "mine").mkdir()
    write(step.volume / "mine", files)
    message = step.refused(dataset=f"file://{step.volume}/mine" if by_url else "mine")
    assert all(word in message for word in words), message


def test_missing_dataset_is_refused(step: Step) -> None:
    assert "dataset is not there (got 'nothing')" in step.refused(dataset="nothing")
    missing = f"file://{step.volume}/nothing"
    assert f"dataset has no file to read (got '{missing}'" in step.refused(dataset=missing)


def test_unknown_kind_of_url_is_refused(step: Step) -> None:
    assert "dataset can't be read (got 'gopher://a/b'" in step.refused(dataset="gopher://a/b")


def test_dataset_on_object_storage_is_found(step: Step, object_store: str) -> None:
    client = boto3.client("s3", endpoint_url=object_store)
    client.create_bucket(Bucket="texts")
    client.put_object(Bucket="texts", Key="west/deep/a.txt", Body=b"Once.\n")
    step.environment["AWS_ENDPOINT_URL"] = object_store
    ended = step.run(dataset="s3://texts/west")
    assert ended.exit_code == 0, ended.errors
    assert "dataset has no file to read" in step.refused(dataset="s3://texts/east")


@pytest.fixture
def object_store(step: Step, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server on loopback, and credentials for it in the environment; yields its URL."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-this-test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with s3_server() as url:
        yield url
