"""Files of a dataset by their names: any name, links, other kinds, the card of the data."""

import json
import os
from pathlib import Path

import pytest

from tests.tokens.conftest import Volume, texts
from tests.tokens.test_inputs import parquet
from trainer.contract.errors import RequestError
from trainer.contract.volume import refuse_links_out
from trainer.tokens.text.sources import list_sources, shown

STORY = "The sheriff rode in."


def refused(volume: Volume, **options: object) -> str:
    with pytest.raises(RequestError) as caught:
        volume.run(**options)
    return str(caught.value)


# --- names ------------------------------------------------------------------------------

NAMES = {
    b"caf\xe9.txt": r"caf\xe9.txt",
    b"\xff\xfe.txt": r"\xff\xfe.txt",
    b"a\x1b[31mred.txt": r"a\x1b[31mred.txt",
    b"two\nlines.txt": r"two\nlines.txt",
    "exe\u202etxt.txt".encode(): r"exe\u202etxt.txt",
    "naïve 日本 👩‍👧.txt".encode(): "naïve 日本 👩‍👧.txt",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_any_name_is_read_and_shown_escaped(
    volume: Volume, name: bytes, expected: str, capsys: pytest.CaptureFixture
):
    folder = volume.write({"b.txt": STORY})
    (folder / os.fsdecode(name)).write_bytes(STORY.encode())
    store = volume.store(model="models/llama", boundary_token="")
    assert sorted(row["path"] for row in store.manifest.sources) == sorted(["b.txt", expected])
    assert len([token for ids in texts(store) for token in ids if token == 0]) == 2
    ledger = (store.folder / "manifest.json").read_text(encoding="utf-8")
    assert expected in [source["path"] for source in json.loads(ledger)["sources"]]
    volume.run(model="models/llama", boundary_token="")  # found by what was remembered
    capsys.readouterr().out.encode()  # a terminal takes it


def test_a_message_about_such_a_name_can_be_printed(volume: Volume):
    folder = volume.write({"b.txt": STORY})
    (folder / os.fsdecode(b"\xff\x1b.txt")).write_bytes(b"\xff")
    message = refused(volume)
    assert r"dataset file \xff\x1b.txt is not UTF-8" in message
    message.encode()


def test_files_are_ordered_by_their_own_bytes(volume: Volume):
    folder = volume.write({})
    folder.mkdir()
    names = [b"a\x80.txt", b"aZ.txt", b"a\xff.txt", b"ab/c.txt", "aé.txt".encode(), b"a\x01.txt"]
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(STORY.encode())
    listed = [source.path for source in list_sources(str(volume.root), "tales")]
    assert listed == [shown(os.fsdecode(name)) for name in sorted(names)]


# --- links ------------------------------------------------------------------------------


def test_a_link_out_of_the_volume_is_refused_by_name(volume: Volume, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "key.txt").write_text("secret")
    for name, leads_to in {
        "b.txt": outside / "key.txt",
        "folder": outside,
        "relative.md": Path("../../../outside/key.txt"),
        "sub/gone.txt": Path("/no/such/file.txt"),
    }.items():
        folder = volume.write({"a.txt": STORY, "sub/c.txt": STORY})
        os.symlink(leads_to, folder / name)
        message = refused(volume)
        assert f"dataset file {name} is a link out of the volume (got {str(leads_to)!r})" in message
    folder = volume.write({"a.txt": STORY})
    os.symlink(outside, volume.root / "way")  # a link through another one
    os.symlink(volume.root / "way/key.txt", folder / "b.txt")
    assert "dataset file b.txt is a link out of the volume" in refused(volume)


def test_links_within_the_volume_work(volume: Volume):
    other = volume.root / "other"
    other.mkdir()
    (other / "c.txt").write_text(STORY)
    folder = volume.write({"a.txt": STORY})
    os.symlink(other / "c.txt", folder / "b.txt")
    os.symlink(Path("../other"), folder / "linked")
    listed = [source.path for source in list_sources(str(volume.root), "tales")]
    assert listed == ["a.txt", "b.txt", "linked/c.txt"]


def test_a_model_s_folder_has_no_link_out_of_the_volume(volume: Volume, tmp_path: Path):
    (tmp_path / "secret.json").write_text("{}")
    folder = volume.root / "models/bytes"
    os.symlink(folder / "config.json", folder / "copy.json")
    refuse_links_out(volume.root, "model", folder)
    os.symlink(tmp_path / "secret.json", folder / "generation_config.json")
    with pytest.raises(RequestError, match=r"model has a file .* \(got generation_config.json"):
        refuse_links_out(volume.root, "model", folder)


# --- other kinds ------------------------------------------------------------------------


def test_files_of_other_kinds_are_counted_and_named(volume: Volume, capsys: pytest.CaptureFixture):
    others = {f"src/{number}.py": "pass" for number in range(25)}
    files = {"a.txt": STORY, "README.md": STORY, "b.CSV": "1", "LICENSE": "MIT", ".hidden.py": "1"}
    store = volume.store({**files, **others})
    left_out = store.manifest.left_out
    assert {kind: entry["files"] for kind, entry in left_out.items()} == {
        ".py": 25,
        ".csv": 1,
        "no suffix": 1,
    }
    assert left_out[".csv"]["names"] == ["b.CSV"]
    assert len(left_out[".py"]["names"]) == 20
    told = capsys.readouterr().out
    assert "Left out of the dataset: 25 .py (src/0.py, src/1.py, src/10.py, ...)" in told
    assert "README.md" in [row["path"] for row in store.manifest.sources]
    again = volume.store({"a.txt": STORY, "README.md": STORY})
    assert again.manifest.key == store.manifest.key
    assert "Left out" not in capsys.readouterr().out


def test_a_card_beside_data_in_other_formats_is_no_text(
    volume: Volume, capsys: pytest.CaptureFixture
):
    card = "---\nlicense: mit\n---\n# Card\nAbout the data."
    store = volume.store({"README.md": card, "data/train.parquet": parquet([STORY])})
    assert [row["path"] for row in store.manifest.sources] == ["data/train.parquet"]
    assert "1 card of the data (README.md)" in capsys.readouterr().out
    volume.write({"README.md": card, "train.json": "[]"})
    message = refused(volume)
    assert (
        "dataset has no file to read (got 'tales', with 1 card of the data (README.md)" in message
    )
    assert "1 .json (train.json)" in message
    alone = volume.store({"README.md": card})
    assert [row["path"] for row in alone.manifest.sources] == ["README.md"]
