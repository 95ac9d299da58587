"""The document that made a model worse is found, with its copies; clean data are not blamed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.cli.runs import blaming
from tests.forgetting.blame_trials import asked, train_on, write_dataset
from tests.forgetting.small_run import DATASET
from tests.training.volume import make_volume
from trainer.blaming.influence import first_order, gradient
from trainer.blaming.states import State, model_at, states_of, token_losses, trained_parameters
from trainer.blaming.suspects import names_of, texts_of
from trainer.blaming.target import (
    Question,
    part_at,
    positions_of,
    target_of,
    trained_tokens_of,
)
from trainer.contract.errors import RequestError
from trainer.contract.run_folder import RunFolder
from trainer.forgetting.recorded import job_of, store_of
from trainer.training.data.batches import read_batch


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A volume with a run whose data two files share a bad document of."""
    volume = make_volume(tmp_path_factory.mktemp("blame") / "volume")
    names = write_dataset(volume / DATASET, "shared", 3, files=8, pairs=250)
    train_on(volume, 3, epochs=3)
    return volume, names


def test_both_files_that_share_a_bad_document_are_named(
    planted: tuple[Path, list[str]],
) -> None:
    volume, names = planted
    before = {p: p.read_bytes() for p in (volume / "run").rglob("*") if p.is_file()}
    body = asked(volume, {"held_out": True, "max_replays": 8})
    assert [one["documents"] for one in body["blamed"]] == [names], body
    alone = body["blamed"][0]["alone"]
    low, high = alone["held_out"]["interval"]
    assert 0 < low < alone["change"] < high
    assert alone["change"] > 3 * max(abs(each["change"]) for each in body["controls"])
    assert body["ranked"]["worse"][0]["documents"] == names
    assert body["replays"] <= 8
    written = json.loads((volume / "run/blame/held-out-worse.json").read_text())
    assert written == {name: value for name, value in body.items() if name != "file"}
    after = {p: p.read_bytes() for p in before}
    assert after == before
    assert not list((volume / "cache").glob("verify-resume-*"))
    words = blaming.answer_in_words(body)
    assert f"blamed   {', '.join(names)}  raised the loss by +0." in words


def test_what_was_measured_is_not_measured_again(planted: tuple[Path, list[str]]) -> None:
    volume, names = planted
    before = {p.name: p.stat().st_mtime_ns for p in (volume / "cache/blame").glob("*.json")}
    assert before
    body = asked(volume, {"held_out": True, "max_replays": 8})
    assert [one["documents"] for one in body["blamed"]] == [names]
    assert {p.name: p.stat().st_mtime_ns for p in (volume / "cache/blame").glob("*.json")} == before
    # Of as few replays as that nothing can be proven, it says so.
    body = asked(volume, {"held_out": True, "max_replays": 2})
    assert (body["verdict"], body["blamed"]) == ("not measured", [])
    body = asked(volume, {"held_out": True, "max_replays": 4})
    assert body["verdict"] == "narrowed" and names in body["narrowed_to"]


def test_influence_is_the_inner_product_of_gradients(planted: tuple[Path, list[str]]) -> None:
    """Compared with the gradient that autograd makes of the tokens of one text."""
    volume, names = planted
    run = RunFolder(volume, "run")
    job, store = job_of(run), store_of(run)
    texts = texts_of(volume, store, DATASET)
    target = target_of(job, store, Question(prompt="w1", answer="w60 w2"))
    state = State(step=1, place=states_of(run, job)[-1].place, rate=0.5)
    found, tokens = first_order(job, store, target, texts, [state])
    model = model_at(job, state.place)
    along = gradient(model, target)
    contexts = np.arange(store.manifest.num_train_contexts)
    batch = read_batch(store, contexts)
    positions = positions_of(store, contexts, trained_tokens_of(batch))
    of_texts = texts.of_part[part_at(store, positions)]
    bad = next(i for i in range(len(tokens)) if names_of(store, texts, i) == names)
    for text in (bad, 0, 5):
        model.zero_grad()
        own = of_texts == text
        token_losses(model, batch)[torch.from_numpy(own)].sum().backward()
        parameters = trained_parameters(model).items()
        product = sum(float((p.grad * along[name]).sum()) for name, p in parameters)
        assert found[text] == pytest.approx(-0.5 * product, rel=2e-2, abs=1e-5)
        assert tokens[text] == own.sum()


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"context": 10**6}, "--context is no context with trained tokens"),
        ({"answer": ""}, "--prompt and --answer have 0 and 0 tokens"),
        ({"prompt": "w1 " * 20, "answer": "w2"}, "at most"),
    ],
)
def test_what_can_not_be_asked_is_refused(
    planted: tuple[Path, list[str]], question: dict[str, Any], message: str
) -> None:
    run = RunFolder(planted[0], "run")
    with pytest.raises(RequestError, match=message):
        target_of(job_of(run), store_of(run), Question(**question))


def test_one_thing_is_asked_at_a_time() -> None:
    nothing: dict[str, Any] = {"held_out": False, "prompt": None, "answer": None, "context": None}
    for asked_for in ({}, {"held_out": True, "context": 1}, {"prompt": "x"}):
        with pytest.raises(RequestError, match="blame asks about one thing"):
            blaming.question_of(**{**nothing, **asked_for})


def test_an_answer_is_traced_to_the_document_that_gave_it(
    planted: tuple[Path, list[str]],
) -> None:
    volume, names = planted
    bad = (volume / DATASET / names[0].partition("#")[0]).read_text().splitlines()
    words = json.loads(bad[int(names[0].partition("#")[2]) - 1])["text"].split()
    body = asked(volume, {"prompt": words[0], "answer": words[1], "max_replays": 8})
    assert [one["documents"] for one in body["blamed"]] == [names]
    assert body["blamed"][0]["alone"]["change"] < 0  # it made the answer likelier
    assert body["question"]["direction"] == "better"
