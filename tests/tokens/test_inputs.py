"""Files of every kind give the same ids, each read as a stream."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tests.tokens.conftest import Volume, texts
from tests.tokens.prose import story
from tests.tokens.test_cache import start
from trainer.contract.errors import RequestError, StepError
from trainer.tokens.encode import pieces
from trainer.tokens.pack import making
from trainer.tokens.text import digests, reading, samples
from trainer.tokens.text.digests import DigestMemory
from trainer.tokens.text.documents import whole_part
from trainer.tokens.text.sources import list_sources, open_source

STORIES = [story(at, 1_500) for at in range(5)] + ["", "last, without a newline"]
LINES = "\n".join(json.dumps({"text": text, "id": 1}) for text in STORIES).encode()
HAN = [chr(code) for code in range(0x4E00, 0x9FA5)]
BIG = story("big", 2_600_000).encode()  # three pieces


def parquet(rows: list[str | None], column: str = "text") -> bytes:
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({column: rows, "other": list(range(len(rows)))})
    pyarrow.parquet.write_table(table, sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", LINES + b"\n\n"),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n")),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.gz", gzip.compress(LINES[:100]) + gzip.compress(LINES[100:])),
        ("a.jsonl.zst", zstandard.compress(LINES)),
        ("a.jsonl.zst", zstandard.compress(LINES[:100]) + zstandard.compress(LINES[100:])),
        ("a.parquet", parquet(STORIES)),
    ],
)
def test_documents_are_the_same_in_every_kind_of_file(volume: Volume, name: str, content: bytes):
    wanted = texts(volume.store({f"{at}.txt": text for at, text in enumerate(STORIES)}))
    store = volume.store({name: content})
    assert texts(store) == wanted
    assert store.manifest.totals["documents"] == len(STORIES) - 1
    assert store.manifest.totals["empty_documents"] == 1
    assert store.document_of(0)[0].number == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.md", BIG),
        ("a.txt.gz", gzip.compress(BIG, 1)),
        ("a.md.zst", zstandard.compress(BIG)),
        ("a.jsonl", json.dumps({"text": BIG.decode()}).encode()),
    ],
)
def test_a_long_document_is_the_same_however_it_is_cut(volume: Volume, name: str, content: bytes):
    options = {"context": 4096, "train_ratio": 0.9}
    wanted = texts(volume.store({"a.txt": BIG}, **options))
    assert texts(volume.store({name: content}, **options)) == wanted


def test_a_block_of_zstandard_may_come_late_and_end_inside_a_character(volume: Volume):
    draw = random.Random(0)  # text that hardly compresses: 16 kB of it are no block yet
    content = ("\ufeff" + "".join(draw.choices(HAN, k=60_000))).encode()
    wanted = texts(volume.store({"a.txt": content}))
    assert texts(volume.store({"a.txt.zst": zstandard.compress(content)})) == wanted


def test_one_file_may_be_the_dataset(volume: Volume):
    volume.write({"one.text": STORIES[0], "other.txt": STORIES[1]})
    store = volume.store(dataset="tales/one.text")
    assert [source["path"] for source in store.manifest.sources] == ["one.text"]


def test_hidden_and_other_files_are_left_out_and_links_that_lead_round_end(volume: Volume):
    folder = volume.write(
        {"b.txt": "b", ".c.txt": "c", ".d/e.txt": "e", "f.py": "f", "a/G.TXT": "g"}
    )
    os.symlink(folder, folder / "a/loop")
    store = volume.store()
    assert [source["path"] for source in store.manifest.sources] == ["a/G.TXT", "b.txt"]


def test_texts_of_one_line_are_joined_in_order_of_appearance(volume: Volume):
    line = '{"text": "one", "x": [{"text": "two"}, 3], "text": ["three", {"y": "no"}]}'
    wanted = volume.store({"a.txt": "one***\ntwo***\nthree"})
    assert texts(volume.store({"a.jsonl": line})) == texts(wanted)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('{"text": "lost", "text": ["c", "d"]}', "text"),
        ('{"größe": "lost", "größe": "c", "x": {"gr\\u00f6\u00dfe": ["d"]}}', "größe"),
        ('{"t\\u0065xt": "lost", "text": "c", "note": "text", "x": [{"text": "d"}]}', "text"),
    ],
)
def test_a_key_that_stands_twice_loses_no_text(volume: Volume, line: str, field: str):
    wanted = volume.store({"a.txt": "lost***\nc***\nd"})
    assert texts(volume.store({"a.jsonl": line}, text_field=field)) == texts(wanted)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_large_row_group_of_parquet_is_not_read_at_once(tmp_path: Path):
    """In a process of its own: its peak is what it reads, not what tests before it held."""
    path = tmp_path / "big.parquet"
    rows = [f"{at} {BIG[:4_096].decode()}" for at in range(24_000)]
    table = pyarrow.table({"text": rows})
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False)
    script = (
        "import sys\n"
        "from pyarrow import parquet\n"
        "from trainer.tokens.text import parts, reading, sources\n"
        "assert parquet\n"
        "(source,) = sources.list_sources(*sys.argv[1:])\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(line.split()[1]) for line in lines if 'VmHWM' in line) >> 10\n"
        "before = peak()\n"
        "(part,) = parts.plan_parts(source, '', 'text', True)\n"
        "size = sum(len(text.text) for text in reading.read_texts(part))\n"
        "print(size, peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "big.parquet"],
        capture_output=True,
        text=True,
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )
    size, grown_mib = map(int, done.stdout.split())
    assert size == sum(map(len, rows))
    assert grown_mib < 80  # of 94 MiB; read at once it takes 108


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_the_text_may_have_another_name(volume: Volume, name: str):
    content = parquet(["told"], "story") if name.endswith("t") else b'{"story": "told"}'
    wanted = texts(volume.store({"a.txt": "told"}))
    assert texts(volume.store({name: content}, text_field="story")) == wanted
    with pytest.raises(RequestError, match="text_field"):
        volume.store({name: content})


def test_half_a_surrogate_pair_becomes_the_replacement_character(volume: Volume):
    wanted = texts(volume.store({"a.txt": "a\ufffdb"}))
    assert texts(volume.store({"a.jsonl": '{"text": "a\\ud83db"}'})) == wanted


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt.gz", gzip.compress(BIG[:9_000])[:-500]),
        ("a.jsonl.gz", b"not gzip at all"),
        ("a.txt.zst", zstandard.compress(BIG[:9_000])[:-50]),
        ("a.txt.zst", b"not zstandard"),
        ("a.parquet", parquet(STORIES)[:-9]),
    ],
)
def test_a_damaged_file_is_refused_by_name(volume: Volume, name: str, content: bytes):
    with pytest.raises(RequestError, match=rf"{name} is damaged"):
        volume.store({name: content})


def test_files_on_any_file_system_by_url(volume: Volume):
    wanted = texts(volume.store({"a.txt": STORIES[0], "b/c.jsonl": LINES}))
    store = volume.store(dataset=f"file://{volume.root}/tales")
    assert texts(store) == wanted
    again = volume.run(dataset=f"file://{volume.root}/tales")
    assert again.reused


@pytest.mark.parametrize("train_ratio", [1.0, 0.8])
@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_a_long_compressed_file_is_read_in_parts(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, name: str, train_ratio: float
):
    lines = [json.dumps({"text": story(seed, 400)}) for seed in range(60)]
    text = "\n".join(lines) if "jsonl" in name else story(1, 30_000)
    given = {"files": {name: gzip.compress(text.encode())}, "train_ratio": train_ratio}
    whole = volume.store(**given)
    expected, ledger = (whole.folder / "tokens.bin").read_bytes(), whole.manifest
    monkeypatch.setattr(pieces, "WHOLE_BYTES", 2_000)
    monkeypatch.setattr(pieces, "PART_IDS", 500)
    made = []
    monkeypatch.setattr(pieces, "_parts_of", lambda r, of=pieces._parts_of: made.append(r) or of(r))
    parts = volume.store(**given, retokenize=True)
    assert made
    assert (parts.folder / "tokens.bin").read_bytes() == expected
    assert parts.manifest == ledger


# --- S3, as a real server on loopback ---------------------------------------------------


def test_a_bucket_gives_what_a_folder_gives(volume: Volume, bucket):
    files: dict[str, bytes | str] = {"a.txt": BIG, "b/c.jsonl.gz": gzip.compress(LINES)}
    files["d.parquet"] = parquet(STORIES)
    wanted = texts(volume.store(files, context=4096))
    for name, content in files.items():
        bucket.put_object(Bucket="corpus", Key=f"v1/{name}", Body=content)
    bucket.put_object(Bucket="corpus", Key="v10/no.txt", Body=b"of another folder")
    options = {"dataset": "s3://corpus/v1", "context": 4096}
    assert texts(volume.store(**options)) == wanted
    assert volume.run(**options).reused
    bucket.put_object(Bucket="corpus", Key="v1/e.txt", Body=b"and one more")
    assert not volume.run(**options).reused
    store = volume.store(dataset="s3://corpus/v10/no.txt")
    assert store.manifest.totals["documents"] == 1


def test_a_remote_file_is_read_once_and_no_copy_stays(volume: Volume, bucket, monkeypatch):
    bucket.put_object(Bucket="corpus", Key="once/a.txt", Body=BIG)
    opened = []

    def counted(location: str, remote: bool):
        opened.extend([location] if remote else [])
        return open_source(location, remote)

    def other_ends_first(*given, **more):
        other = start(volume, dataset="s3://corpus/once", context=64)
        assert other.wait() == 0
        return make_store(*given, **more)

    make_store = making.make_store
    monkeypatch.setattr(making, "make_store", other_ends_first)
    for module in (digests, reading, samples):
        monkeypatch.setattr(module, "open_source", counted)
    volume.run(dataset="s3://corpus/once", context=4096)
    assert opened == ["s3://corpus/once/a.txt"]
    assert not list(volume.root.glob("cache/tokens/copies/*"))


def test_errors_of_a_bucket_name_the_object(volume: Volume, bucket):
    with pytest.raises(RequestError, match="s3://corpus/nothing"):
        volume.run(dataset="s3://corpus/nothing")
    with pytest.raises((RequestError, StepError), match="no-such-bucket"):
        volume.run(dataset="s3://no-such-bucket/x")
    bucket.put_object(Bucket="corpus", Key="gone/a.txt", Body=b"a")
    listed = list_sources(str(volume.root), "s3://corpus/gone")
    bucket.delete_object(Bucket="corpus", Key="gone/a.txt")
    for read in (
        lambda: DigestMemory(volume.root / "memory").of(listed, volume.root / "copies", "text"),
        lambda: list(reading.read_texts(whole_part(listed[0], "", "text"))),
        lambda: samples.read_samples([(listed[0], 0)], True, "text"),
    ):
        with pytest.raises(StepError, match=r"s3://corpus/gone/a\.txt can't be read"):
            read()
