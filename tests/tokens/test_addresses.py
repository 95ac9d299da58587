"""Datasets by address: what can't be had is one sentence, and no query string is shown or kept."""

import functools
import hashlib
import json
import socket
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.fetch.conftest import Step, step  # noqa: F401
from trainer.contract.addresses import masked, without_query
from trainer.contract.errors import RequestError, StepError
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import RunFolder
from trainer.tokens.step import store_name
from trainer.tokens.text.digests import DigestMemory
from trainer.tokens.text.remote import remote_sources
from trainer.tokens.text.sources import list_sources

SECRET = "c29tZXNlY3JldA"


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(
    "address",
    [
        "foo://x",
        "memory://nothing",
        "zip::none.zip",
        "zip://a::file:///none.zip",
        "tar://a::file:///etc/hostname",
        "data://text/plain,abc",
        "reference://x",
        "github://",
        "generic://x",
        "jlab://x",
        "http://[::1",
        "http://127.0.0.1:99999/x",
        "a::b::c",
        "hf://",
    ],
)
def test_an_address_that_nothing_can_read_is_refused_in_one_sentence(
    tmp_path: Path, address: str
) -> None:
    with pytest.raises(RequestError, match=r"^dataset ") as refused:
        list_sources(str(tmp_path), address)
    assert len(refused.value.problems) == 1 and "\n" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["http", "simplecache::http", "ftp", "webhdfs"])
def test_a_host_that_does_not_answer_is_no_empty_dataset(scheme: str) -> None:
    address = f"{scheme}://127.0.0.1:{unused_port()}/a.txt?token={SECRET}"
    with pytest.raises(StepError, match=r"the host 127\.0\.0\.1 does not answer") as failed:
        list(remote_sources(address))
    assert not isinstance(failed.value, RequestError)
    assert SECRET not in str(failed.value)


def test_the_hub_without_a_network_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from httpx2 import ConnectError
    from huggingface_hub import HfFileSystem

    def fails(*_: object, **__: object) -> None:
        raise ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(HfFileSystem, "isfile", fails)
    with pytest.raises(StepError, match="the store behind hf:// does not answer"):
        list(remote_sources("hf://datasets/org/name"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/a.txt?X-Sig=abc&x=1", "https://h/a.txt?..."),
        ("read 'https://h/a?abc' in vain", "read 'https://h/a?...' in vain"),
        ("url: /a/b?key=1 (failed)", "url: /a/b?... (failed)"),
        ("https://me:word@h/a", "https://...@h/a"),
        ("zip://*.txt::https://h/b.zip?s=1", "zip://*.txt::https://h/b.zip?..."),
        ("s3://bucket/part-?.txt", "s3://bucket/part-?.txt"),
        ("dataset", "dataset"),
    ],
)
def test_addresses_are_shown_without_users_and_query_strings(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_a_query_string_is_in_no_name_and_no_record(tmp_path: Path) -> None:
    address = f"https://example.org/tales.txt?h={SECRET}"
    assert without_query(address) == "https://example.org/tales.txt"
    assert store_name(address) == "https-example.org-tales.txt"
    asked = Parameters(run_name="run", dataset=address)
    assert asked.dataset == address
    run = RunFolder(tmp_path, "run")
    run.admit(asked.request, "", {}, [])
    assert SECRET not in (tmp_path / "run/run.json").read_text()
    run.refuse_other_request(asked.request)
    # An earlier version recorded it.
    record = json.loads((tmp_path / "run/run.json").read_text())
    record["request"]["dataset"] = address
    run.write_record(record)
    run.refuse_other_request(asked.request)


def test_an_error_of_the_fetch_step_shows_no_query_string(step: Step) -> None:  # noqa: F811
    address = f"http://127.0.0.1:{unused_port()}/a.txt?h={SECRET}"
    ended = step.run(dataset=address)
    assert ended.exit_code == 1
    assert "does not answer" in ended.errors
    assert SECRET not in ended.errors + ended.output + json.dumps(ended.outcome)


class _AnyQuery(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_no_memory_of_a_dataset_holds_a_query_string(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The sheriff would not ride after them.\n")
    handler = functools.partial(_AnyQuery, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/a.txt?h="
        sources = [*list_sources("", address + SECRET), *list_sources("", address + "other")]
        memory = DigestMemory(tmp_path / "memory.json")
        found = memory.of(sources, tmp_path / "copies", "text")
        server.shutdown()
    assert found == [hashlib.sha256((tmp_path / "a.txt").read_bytes()).hexdigest()] * 2
    kept = (tmp_path / "memory.json").read_text()
    assert SECRET not in kept and kept.count("/a.txt ") == 2
