"""Downloads that are cut off, killed or damaged: resumed, and never taken for whole."""

import signal
import time

import pytest

from tests.fetch.conftest import Step, files, folder, model_files
from tests.hub_double import HubDouble
from trainer.fetch.weights import SINGLE

# huggingface_hub writes pieces of 10 MiB: only a larger file is ever half there.
PIECE_BYTES = 10 * 1024**2


@pytest.fixture
def large(hub: HubDouble) -> bytes:
    """The model's weights, made large enough to arrive in two pieces."""
    weights = model_files(head_width=50_000)[SINGLE]
    assert PIECE_BYTES < len(weights) < 2 * PIECE_BYTES
    hub.models["org/tiny"].files[SINGLE] = weights
    return weights


def kill_half_way(step: Step, hub: HubDouble, large: bytes) -> None:
    """Begin the download, and kill it when the first piece is on the disk."""
    hub.stalls = {SINGLE: len(large) - 100_000}
    process = step.start(model="org/tiny")
    part = folder(step).with_name(".tiny.partial") / f".{SINGLE}.part"
    deadline = time.monotonic() + 240
    while not (part.exists() and part.stat().st_size >= PIECE_BYTES):
        assert time.monotonic() < deadline, "no piece arrived"
        time.sleep(0.05)
    process.kill()
    step.end(process)
    hub.go_on.set()


def test_trouble_of_the_hub_is_waited_for(step: Step, hub: HubDouble) -> None:
    hub.failures = {"/api/models/org/tiny": 2, SINGLE: 1}
    ended = step.run(model="org/tiny")
    assert ended.exit_code == 0, ended.errors
    assert "the hub has trouble" in ended.output


def test_hub_that_does_not_answer_is_no_fault_of_the_request(step: Step, hub: HubDouble) -> None:
    step.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    ended = step.run(model="org/tiny")
    assert ended.exit_code == 1
    assert "the hub at http://127.0.0.1:9 does not answer" in ended.outcome["message"]


def test_stream_that_is_cut_off_is_gone_on_with(step: Step, hub: HubDouble, large: bytes) -> None:
    hub.cuts = {SINGLE: len(large) - 1}
    ended = step.run(model="org/tiny")
    assert ended.exit_code == 0, ended.errors
    assert hub.gets(SINGLE) == ["", f"bytes={PIECE_BYTES}-"]
    assert files(folder(step))[SINGLE] == large


def test_killed_download_is_gone_on_with_and_never_looks_complete(
    step: Step, hub: HubDouble, large: bytes
) -> None:
    kill_half_way(step, hub, large)
    assert not folder(step).exists()
    ended = step.run(model="org/tiny")
    assert ended.exit_code == 0, ended.errors
    assert hub.gets(SINGLE) == ["", f"bytes={PIECE_BYTES}-"]
    assert files(folder(step))[SINGLE] == large


def test_signal_ends_a_download_at_once(step: Step, hub: HubDouble) -> None:
    hub.stalls = {SINGLE: 10_000}
    process = step.start(model="org/tiny")
    assert hub.stalled.wait(240)
    process.send_signal(signal.SIGTERM)
    ended = step.end(process)  # while the hub still holds the stream
    assert ended.exit_code == 143
    assert ended.outcome["status"] == "interrupted"
    assert not folder(step).exists()
    # Not after the library lost patience with the stream and asked again.
    assert hub.gets(SINGLE) == [""]


def test_damaged_file_is_not_kept(step: Step, hub: HubDouble) -> None:
    right = model_files()[SINGLE]
    hub.damaged = {SINGLE: right[:-1] + b"?"}
    ended = step.run(model="org/tiny")
    assert ended.exit_code == 1
    assert "model.safetensors of org/tiny arrived damaged" in ended.outcome["message"]
    assert not folder(step).exists()
    hub.damaged.clear()
    assert step.run(model="org/tiny").exit_code == 0
    assert files(folder(step))[SINGLE] == right


def test_remains_of_another_commit_are_replaced(step: Step, hub: HubDouble, large: bytes) -> None:
    kill_half_way(step, hub, large)
    newer = large[:5_000_000] + bytes(4) + large[5_000_004:]
    hub.models["org/tiny"].files[SINGLE] = newer
    ended = step.run(model="org/tiny")
    assert ended.exit_code == 0, ended.errors
    assert "model.safetensors not as the hub has it: downloaded again" in ended.output
    assert files(folder(step))[SINGLE] == newer


def test_file_that_was_lost_later_is_fetched_again(step: Step, hub: HubDouble) -> None:
    assert step.run(model="org/tiny").exit_code == 0
    (folder(step) / "tokenizer.json").unlink()
    ended = step.run(model="org/tiny")
    assert ended.exit_code == 0, ended.errors
    assert "no longer whole" in ended.output
    assert hub.gets("tokenizer.json") == ["", ""]
    assert hub.gets(SINGLE) == [""], "what was still good came again"
