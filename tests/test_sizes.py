"""The room that a folder takes, while others are at work in it."""

import os
from pathlib import Path

import pytest

from trainer.contract.files import size_of


def test_all_files_below_count(tmp_path: Path) -> None:
    (tmp_path / "within").mkdir()
    (tmp_path / "one").write_bytes(b"x" * 10)
    (tmp_path / "within/two").write_bytes(b"x" * 5)
    assert size_of(tmp_path) == 15
    assert size_of(tmp_path / "none") == 0


def test_what_goes_while_it_is_looked_at_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "staying").write_bytes(b"x" * 10)
    (tmp_path / "within").mkdir()
    (tmp_path / "within/.going.part").write_bytes(b"x" * 5)
    walk = os.walk

    def going(folder: Path):  # type: ignore[no-untyped-def]
        for found in walk(folder):
            if ".going.part" in found[2]:
                (tmp_path / "within/.going.part").unlink()
            yield found

    monkeypatch.setattr(os, "walk", going)
    assert size_of(tmp_path) == 10
