"""Buckets by virtual-hosted addresses: an S3 server that refuses path style, for every reader."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import pytest
import torch
from botocore.config import Config
from tensorizer import TensorSerializer

from tests.object_store import virtual_hosts_only
from trainer import object_store
from trainer.contract.errors import RequestError
from trainer.fetch.tensorized import check_tensorized
from trainer.models.tensorized import load_tensorized
from trainer.tokens.text import remote, sources
from trainer.tokens.text.sources import open_source

HOST = "objects.example"
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "of-a-while"}


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)

    def tie_weights(self) -> None:
        """As models of transformers have it."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """The hosts that requests name; the store has a text and a tensorizer's file."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(fsspec.config, "conf", {})
    for name, value in {**KEYS, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}")
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with virtual_hosts_only(HOST) as (proxy, hosts):
        monkeypatch.setenv("http_proxy", proxy)
        client = boto3.client("s3", config=Config(s3={"addressing_style": "virtual"}))
        client.create_bucket(Bucket="texts")
        client.put_object(Bucket="texts", Key="west/a.txt", Body=b"Once upon a time.")
        serializer = TensorSerializer(str(tmp_path / "m.tensors"))
        serializer.write_module(Model())
        serializer.close()
        client.upload_file(str(tmp_path / "m.tensors"), "texts", "m.tensors")
        hosts.clear()
        yield hosts
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_the_server_refuses_what_boto3_does_by_itself(asked: list[str]) -> None:
    with pytest.raises(Exception, match=r"400|PathStyle"):
        boto3.client("s3").get_object(Bucket="texts", Key="west/a.txt")
    assert asked == [HOST]


def test_a_dataset_is_listed_and_read(asked: list[str]) -> None:
    [found] = remote.remote_sources("s3://texts/west")
    with open_source(found.location, remote=True) as file:
        assert file.read() == b"Once upon a time."
    assert sources.current_stamp(found.location, remote=True) == found.stamp
    assert set(asked) == {f"texts.{HOST}"}


def test_weights_of_a_tensorizer_are_checked_and_streamed(asked: list[str], tmp_path: Path) -> None:
    assert check_tensorized(tmp_path, "s3://texts/m.tensors") == (
        (tmp_path / "m.tensors").stat().st_size
    )
    model = Model()
    before = model.layer.weight.clone()
    torch.nn.init.zeros_(model.layer.weight)
    load_tensorized(model, "s3://texts/m.tensors")
    assert model.layer.weight.shape == before.shape and model.layer.weight.any()
    assert set(asked) == {f"texts.{HOST}"}
    assert "X-Amz-Security-Token=of-a-while" in object_store.presigned("s3://texts/m.tensors")


@pytest.mark.parametrize(
    ("endpoint", "style"),
    [
        ("", ""),
        ("http://cwlota.com", "virtual"),
        ("https://cwobject.com", "virtual"),
        ("https://s3.example.com:9000", "virtual"),
        ("http://127.0.0.1:9000", ""),
        ("http://[::1]:9000", ""),
        ("http://localhost:9000", ""),
        ("http://minio:9000", ""),
        ("http://minio.storage.svc:9000", ""),
        ("http://minio.storage.svc.cluster.local:9000", ""),
    ],
)
@pytest.mark.parametrize("variable", object_store.ENDPOINT_VARIABLES)
def test_the_style_follows_from_the_endpoint_unless_it_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, endpoint: str, style: str, variable: str
) -> None:
    for name in (*object_store.ENDPOINT_VARIABLES, object_store.STYLE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv(variable, endpoint)
    assert object_store.addressing_style() == style
    config.write_text("[default]\ns3 =\n  addressing_style = path\n")
    assert object_store.addressing_style() == ""  # as boto3 reads it there
    monkeypatch.setenv(object_store.STYLE_VARIABLE, "path")
    assert object_store.addressing_style() == "path"
    monkeypatch.setenv(object_store.STYLE_VARIABLE, "hosted")
    with pytest.raises(RequestError, match=r"AWS_S3_ADDRESSING_STYLE .*got 'hosted'"):
        object_store.addressing_style()
