"""A revision that is not the trained model never takes over, and nobody notices the attempt."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

from infra.local import service as local_service
from infra.local import service_client
from infra.local.server_process import ServiceError
from infra.local.service import Service
from infra.local.service_client import NoAnswerError
from tests.serving import tiny_models, trained
from trainer.contract.process_time import process_started
from trainer.serving.deploy import gate

LONG = {"max_tokens": 250, "temperature": 0, "logit_bias": {"0": -100}}


class Asker:
    """A client that asks whatever serves the run, over and over; every answer must come."""

    def __init__(self, volume: Path) -> None:
        self.volume = volume
        self.answers: list[str] = []
        self.errors: list[str] = []
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Asker":
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._enough.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._enough.is_set():
            service = local_service.running(self.volume, "town")
            if service is None:
                self.errors.append("nothing serves")
                continue
            try:
                text = service_client.ask(service, "Dust", max_tokens=20, temperature=0)
                self.answers.append(text)
                self._enough.wait(0.05)
            except NoAnswerError as error:
                self.errors.append(str(error))


def start(volume: Path) -> Service:
    expected = gate.expected_of(volume / "town/final")
    return local_service.start(
        volume,
        "town",
        "town/final",
        timeout_seconds=240,
        check=lambda service: gate.check(service.url, service.name, expected),
        figures={"loss": 3.0},
    )


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A volume whose run `town` serves what it was trained to."""
    volume = tmp_path_factory.mktemp("gate")
    trained.save(volume / "town/final")
    start(volume)
    yield volume
    assert local_service.stop(volume, "town")


def another_tokenizer(final: Path) -> None:
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=[tiny_models.END_OF_TEXT], show_progress=False
    )
    bpe.train_from_iterator(["quite another text than the sheriff's"], trainer)
    bpe.save(str(final / "tokenizer.json"))


def weights_of_another_step(final: Path) -> None:
    weights = load_file(final / "model.safetensors")
    step = {name: w + 1e-3 * torch.randn_like(w) for name, w in weights.items()}
    save_file(step, final / "model.safetensors", {"format": "pt"})


def wrong_dtype(final: Path) -> None:
    weights = load_file(final / "model.safetensors")
    half = {name: w.to(torch.bfloat16) for name, w in weights.items()}
    save_file(half, final / "model.safetensors", {"format": "pt"})


def end_of_text_forbidden(final: Path) -> None:
    path = final / "generation_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "eos_token_id": 7}))


def resized_embeddings(final: Path) -> None:
    model = tiny_models.model("gptj")
    torch.manual_seed(3)
    model.resize_token_embeddings(320)
    model.save_pretrained(final)


def truncated_file(final: Path) -> None:
    path = final / "model.safetensors"
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 100)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (another_tokenizer, "tokenizer: expected digest [0-9a-f]{64}, got [0-9a-f]{64}"),
        (weights_of_another_step, r"expected log-probability -?\d+\.\d+, got -?\d+\.\d+"),
        (wrong_dtype, r"expected log-probability -?\d+\.\d+, got -?\d+\.\d+"),
        (end_of_text_forbidden, "expected an answer to stop at token 0, got .*length"),
        (resized_embeddings, r"expected log-probability -?\d+\.\d+, got -?\d+\.\d+"),
        (truncated_file, "before it was ready"),
    ],
)
def test_broken_revision_is_refused_while_the_old_one_answers(
    town: Path, damage: Callable[[Path], None], reason: str
) -> None:
    serving = local_service.running(town, "town")
    final, kept = town / "town/final", town / "town/kept"
    shutil.copytree(final, kept)
    damage(final)
    try:
        with Asker(town) as asker, pytest.raises(ServiceError, match=reason):
            start(town)
    finally:
        shutil.rmtree(final)
        kept.rename(final)
    assert asker.errors == []
    assert len(set(asker.answers)) == 1
    assert local_service.running(town, "town") == serving


def test_good_revision_takes_over_without_a_lost_request(town: Path) -> None:
    before = local_service.running(town, "town")
    assert before is not None
    with Asker(town) as asker:
        slow = service_client.stream(before, "The", **LONG)
        pieces = [next(slow)]
        after = start(town)
        pieces += slow
        enough = len(asker.answers) + 3
        while len(asker.answers) < enough and not asker.errors:
            pass
    assert asker.errors == []
    assert len(set(asker.answers)) == 1
    assert "".join(pieces) == service_client.ask(after, "The", **LONG)
    assert after.pid != before.pid
    wait_for_end(before)
    history = (town / "town/services.jsonl").read_text().splitlines()
    assert [json.loads(line)["revision"] for line in history] == [1, 2]


def wait_for_end(service: Service) -> None:
    while process_started(service.pid) == service.process_started:
        time.sleep(0.05)


def test_a_server_that_was_replaced_finishes_an_answer_however_long(
    town: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_service, "GRACE_SECONDS", 1.0)
    before = local_service.running(town, "town")
    assert before is not None
    slow = service_client.stream(before, "The", **LONG)
    pieces = [next(slow)]
    os.kill(before.pid, signal.SIGSTOP)  # nothing is slower
    try:
        after = start(town)
        time.sleep(2)  # nobody waits for it, nor kills it
    finally:
        os.kill(before.pid, signal.SIGCONT)
    pieces += slow
    assert "".join(pieces) == service_client.ask(after, "The", **LONG)
    wait_for_end(before)


# --- the pure part ----------------------------------------------------------------------

GOLDEN = gate.Golden(ids=(5, 6, 7), log_probs=(-1.0, -2.0), next_id=9, next_log_prob=-0.5)
EXPECTED = gate.Expected(prompts=(GOLDEN,), dtype="float32", end_id=0, tokenizer_digest="aa")
OBSERVED = gate.Observed(
    prompts=(GOLDEN,), dtype="float32", tokenizer_digest="aa", end="stop", end_text=""
)


def saying(**changes: object) -> gate.Observed:
    golden = dataclasses.replace(GOLDEN, **changes)
    return dataclasses.replace(OBSERVED, prompts=(golden,))


def test_server_that_says_what_the_trainer_said_has_no_problems() -> None:
    assert gate.problems(EXPECTED, OBSERVED) == []


@pytest.mark.parametrize(
    ("observed", "words"),
    [
        (saying(ids=(5, 6, 8)), "ids"),
        (saying(log_probs=(-1.0, -2.01)), "expected log-probability -2.000000, got -2.010000"),
        (saying(next_log_prob=-0.6), "-0.500000, got -0.600000"),
        (saying(log_probs=(-1.0, float("nan"))), "nan"),
        (dataclasses.replace(OBSERVED, tokenizer_digest="bb"), "tokenizer"),
        (dataclasses.replace(OBSERVED, end="length"), "end-of-text"),
        (dataclasses.replace(OBSERVED, end_text="more"), "end-of-text"),
    ],
)
def test_each_difference_is_named_with_what_was_expected_and_got(
    observed: gate.Observed, words: str
) -> None:
    (problem,) = gate.problems(EXPECTED, observed)
    assert words in problem


ANSWER = gate.Greedy(ids=tuple(range(30, 54)), log_probs=(-0.5,) * 24)
ANSWERED = dataclasses.replace(EXPECTED, prompts=(dataclasses.replace(GOLDEN, answer=ANSWER),))


def answering(alone: gate.Greedy, together: gate.Greedy) -> list[str]:
    golden = dataclasses.replace(GOLDEN, answer=alone)
    observed = dataclasses.replace(OBSERVED, prompts=(golden,), together=(together,))
    return gate.problems(ANSWERED, observed)


def with_token(place: int, token: int, log_prob: float) -> gate.Greedy:
    ids, scores = list(ANSWER.ids), list(ANSWER.log_probs)
    ids[place:], scores[place] = [token] * (24 - place), log_prob
    return gate.Greedy(ids=tuple(ids), log_probs=tuple(scores))


def test_generated_token_that_is_wrong_is_named_alone_and_in_a_batch() -> None:
    assert answering(ANSWER, ANSWER) == []
    wrong = with_token(19, 7, -0.9)
    (alone,) = answering(wrong, ANSWER)
    assert "golden answer 1 alone: expected token 49" in alone
    assert "at place 20, got token 7" in alone
    (together,) = answering(ANSWER, wrong)
    assert "golden answer 1 in a batch" in together
    cut = gate.Greedy(ids=ANSWER.ids[:5], log_probs=ANSWER.log_probs[:5])
    assert len(answering(cut, cut)) == 2


def test_tie_that_rounding_decides_otherwise_is_no_problem() -> None:
    tie = with_token(19, 7, -0.5)
    assert answering(tie, tie) == []


def test_half_precision_may_be_further_apart_but_not_far() -> None:
    near, far = saying(log_probs=(-1.0, -2.1)), saying(log_probs=(-1.0, -2.5))
    for served, recorded in (("bfloat16", "float32"), ("float32", "bfloat16")):
        expected = dataclasses.replace(EXPECTED, dtype=recorded)
        assert gate.problems(expected, dataclasses.replace(near, dtype=served)) == []
        assert len(gate.problems(expected, dataclasses.replace(far, dtype=served))) == 1


@pytest.mark.parametrize(
    ("losses", "count"),
    [
        ({"loss": 2.0, "base_loss": 3.0}, 0),
        ({"loss": 3.1, "base_loss": 3.0}, 1),
        ({"loss": float("nan"), "base_loss": 3.0}, 1),
        ({"loss": 2.1, "serving_loss": 2.0}, 1),
        ({"loss": 2.1, "serving_loss": 2.0, "max_regression": 0.2}, 0),
        ({"loss": 3.1, "base_loss": 3.0, "serving_loss": 2.0}, 2),
        ({"base_loss": 3.0, "serving_loss": 2.0}, 0),
    ],
)
def test_loss_may_not_be_worse_than_the_bases_nor_much_than_what_serves(
    losses: dict[str, float], count: int
) -> None:
    found = gate.problems(dataclasses.replace(EXPECTED, **losses), OBSERVED)
    assert len(found) == count
    assert all("validation loss: expected at most" in problem for problem in found)


def test_expected_is_read_from_what_the_steps_left(tmp_path: Path) -> None:
    final = trained.save(tmp_path / "final")
    report = tmp_path / "evaluation.json"
    report.write_text(json.dumps({"loss": 2.0, "base_loss": 3.0}))
    expected = gate.expected_of(final, report=report, serving_loss=2.5, max_regression=0.1)
    assert [golden.ids for golden in expected.prompts] == list(trained.PROMPTS)
    assert (expected.end_id, expected.loss, expected.base_loss) == (0, 2.0, 3.0)
    assert expected.tokenizer_digest
    (final / "golden.json").unlink()
    with pytest.raises(gate.GateError, match=r"no golden\.json"):
        gate.expected_of(final)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
def test_server_that_ends_as_it_is_asked_is_a_problem_not_a_crash(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer_once() -> None:
            with listening.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(answer)

        served = threading.Thread(target=answer_once)
        served.start()
        (problem,) = gate.check(f"http://127.0.0.1:{listening.getsockname()[1]}", "final", EXPECTED)
        served.join()
    assert "does not answer" in problem


def test_server_that_is_not_there_is_a_problem_not_a_crash() -> None:
    (problem,) = gate.check("http://127.0.0.1:9", "final", EXPECTED)
    assert "does not answer" in problem
