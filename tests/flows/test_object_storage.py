"""A run on text in an object store, by the command line."""

import time
from pathlib import Path

import boto3
import pytest

from infra.local.processes import LocalBackend
from tests.flows.small_volume import PVC, finetune
from tests.object_store import s3_server
from trainer.contract.run_folder import RunFolder


def test_a_run_lists_a_bucket_once(
    home: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "x"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    with s3_server() as url, caplog.at_level("INFO", logger="werkzeug"):
        client = boto3.client("s3", endpoint_url=url)
        where = {"CreateBucketConfiguration": {"LocationConstraint": "x"}}
        client.create_bucket(Bucket="texts", **where)
        for path in (home / PVC / "dataset").rglob("*.txt"):
            client.upload_file(str(path), "texts", f"west/{path.name}")
        caplog.clear()
        given = {
            "run_name": "west",
            "dataset": "s3://texts/west",
            "model": "models/tiny",
            "context": 64,
            "batch_size": 4,
            "gradients": 1,
            "prompt_tokens": 4,
            "prompt_samples": 1,
        }
        words = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
        run = finetune(home, environment | keys | {"AWS_ENDPOINT_URL": url}, "run", *words)
        record = RunFolder(home / PVC, "west").record_path
        while not record.exists():  # the steps after training begins read the store of tokens
            assert run.poll() is None, run.communicate()
            time.sleep(0.1)
        run.kill()
        run.communicate()
        LocalBackend(home).stop(PVC, "west", grace_seconds=1)
    requests = [record.getMessage() for record in caplog.records]
    listings = [line for line in requests if "list-type=2" in line and "max-keys=1" not in line]
    assert len(listings) == 1, listings
