"""An object store is listed once for a run; what changed since is found when it is read."""

from typing import Any

import pytest
import s3fs

from tests.tokens.conftest import Volume, texts
from trainer.contract.errors import StepError
from trainer.tokens.text.kept_listing import list_once

CORPUS = "s3://corpus/v1"


def put(bucket: Any, **files: str) -> None:
    for name, text in files.items():
        bucket.put_object(Bucket="corpus", Key=f"v1/{name}.txt", Body=text.encode())


def listed(volume: Volume, listing: str) -> list[str]:
    return [source.path for source in list_once(str(volume.root), CORPUS, listing)[0]]


def test_another_run_sees_a_new_file_and_the_same_run_goes_on_with_what_it_saw(
    volume: Volume, bucket: Any
) -> None:
    put(bucket, a="one")
    assert listed(volume, "run-1") == ["a.txt"]
    put(bucket, b="two")
    assert listed(volume, "run-1") == ["a.txt"]
    assert listed(volume, "") == listed(volume, "run-2") == ["a.txt", "b.txt"]


def test_a_folder_is_listed_by_each_step(volume: Volume) -> None:
    folder = volume.write({"a.txt": "one"})
    list_once(str(volume.root), "tales", "run")
    (folder / "b.txt").write_text("two")
    assert len(list_once(str(volume.root), "tales", "run")[0]) == 2


def test_a_damaged_listing_costs_a_listing(volume: Volume, bucket: Any) -> None:
    put(bucket, a="one")
    listed(volume, "run")
    (kept,) = volume.root.glob("cache/tokens/listings/*.json")
    for damage in (b"", b"[]", b'{"listing": "run"}', b'{"listing": "run", "sources": [[1]]}'):
        kept.write_bytes(damage)
        assert listed(volume, "run") == ["a.txt"]


@pytest.mark.parametrize("vouched_for", [False, True])
@pytest.mark.parametrize("change", ["changed", "gone"])
def test_what_changed_since_it_was_listed_is_taken_as_it_is_now(
    volume: Volume, bucket: Any, capsys: pytest.CaptureFixture[str], change: str, vouched_for: bool
) -> None:
    put(bucket, a="one, as it was", b="two")
    if vouched_for:  # its digest is known: it is read by who encodes it
        volume.run(dataset=CORPUS, sanitize=False)
    listed(volume, "run")
    if change == "gone":
        bucket.delete_object(Bucket="corpus", Key="v1/a.txt")
    else:
        put(bucket, a="one, as it is")  # of the same size nearly, of another ETag
    made = volume.store(dataset=CORPUS, listing="run")
    assert "s3://corpus/v1/a.txt" in (said := capsys.readouterr().out)
    assert "The dataset is listed again." in said
    now = {"a.txt": "one, as it is"} if change == "changed" else {}
    assert texts(made) == texts(volume.store({**now, "b.txt": "two"}))


def test_a_kept_listing_costs_no_request_for_each_file(
    volume: Volume, bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    put(bucket, a="one", b="two", c="three")
    listed(volume, "run")
    s3fs.S3FileSystem.clear_instance_cache()  # as another process has it
    caplog.clear()
    with caplog.at_level("INFO", logger="werkzeug"):
        volume.run(dataset=CORPUS, listing="run")
    requests = [record.getMessage() for record in caplog.records]
    gets = [line for line in requests if "GET /corpus/v1/" in line]
    assert len(gets) == 3, requests
    assert [line for line in requests if "HEAD" in line or "list-type" in line] == []


def test_a_store_that_refuses_the_reader_is_named(
    volume: Volume, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, a="one")
    listed(volume, "run")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(volume.root))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StepError, match=r"s3://corpus/v1.*Unable to locate credentials"):
        volume.run(dataset=CORPUS, listing="run")


def test_what_goes_on_changing_ends_the_step(
    volume: Volume, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, a="one")
    listed(volume, "run")
    bucket.delete_object(Bucket="corpus", Key="v1/a.txt")
    monkeypatch.setattr("trainer.tokens.step.list_anew", lambda *_: list_once(*_)[0])
    with pytest.raises(StepError, match=r"s3://corpus/v1/a\.txt can't be read"):
        volume.run(dataset=CORPUS, listing="run")


def test_a_store_that_checks_no_etag_is_asked_when_the_file_is_opened(
    volume: Volume, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = volume.write({"a.txt": "one"}, "elsewhere")
    given = {"dataset": f"file://{folder}", "listing": "run"}
    list_once(str(volume.root), given["dataset"], "run")
    (folder / "a.txt").write_text("three")
    made = volume.store(**given)
    assert "a.txt has changed since it was listed." in capsys.readouterr().out
    assert made.manifest.sources[0]["bytes"] == len("three")
