"""How far a download is, said while its files take their names."""

from pathlib import Path

import pytest

from trainer.fetch.hub_client import _report
from trainer.fetch.listing import Listing, RemoteFile


def test_a_part_that_takes_its_name_while_it_is_looked_at_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / ".model.safetensors.part"
    part.write_bytes(b"x" * 100)
    (tmp_path / "config.json").write_bytes(b"{}")
    looks = Path.is_file

    def look(path: Path) -> bool:
        is_file = looks(path)
        if path == part:
            part.rename(tmp_path.parent / "model.safetensors")
        return is_file

    monkeypatch.setattr(Path, "is_file", look)
    _report(tmp_path, Listing("org/tiny", "abc", (RemoteFile("config.json", 2, ""),)))
    assert "download org/tiny" in capsys.readouterr().out
