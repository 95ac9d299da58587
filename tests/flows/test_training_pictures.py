"""What the UI shows while training goes, by a real server."""

import base64
import itertools
import json
import logging
from typing import Any

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.artifacts import _only_shown
from tasks.run_step import PrefectWatcher
from tasks.training_pictures import MOST_LINES, MOST_SAMPLES, RENEW_SECONDS, TrainingPictures
from tests.report.test_page import curve, polylines
from trainer.contract.events import Event
from trainer.contract.outcome import Outcome


def data_of(api_url: str, key: str) -> list[Any]:
    """The data of every artifact of that key."""
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        return [artifact.data for artifact in client.read_artifacts(artifact_filter=wanted)]


def sample(step: int, text: str) -> dict[str, Any]:
    return {"step": step, "prompt": "The sheriff", "texts": [text, "slept."]}


def test_curves_and_samples_are_kept_up_to_date_in_place(api_url: str) -> None:
    earlier = curve(6)
    with temporary_settings({PREFECT_API_URL: api_url}):
        samples = [sample(step, "of before") for step in (3, 5, 6)]
        pictures = TrainingPictures("tales", 10, earlier, samples)
        pictures.metric(earlier[4])  # step 5: resumes from a checkpoint after step 4
        pictures.metric({"step": 5, "eval_loss": 4.0})
        for line in curve(10)[5:]:
            pictures.metric(line)
        for step in (5, 10):
            pictures.sample(sample(step, "rode."))
        pictures.show()
    (url,) = data_of(api_url, "tales-curves")
    head, _, encoded = url.partition(",")
    assert head == "data:image/svg+xml;base64"
    training, validation, _ = polylines(base64.b64decode(encoded).decode())
    assert (len(training), len(validation)) == (10, 1)
    (table,) = data_of(api_url, "tales-samples")
    rows = json.loads(table) if isinstance(table, str) else table
    assert [(row["step"], row["text"]) for row in rows] == [
        (3, "of before"),
        (5, "rode."),
        (10, "rode."),
    ]


def test_a_step_that_trains_nothing_shows_nothing(api_url: str) -> None:
    with temporary_settings({PREFECT_API_URL: api_url}):
        TrainingPictures("nothing", None, []).show()
    assert data_of(api_url, "nothing-curves") == []


def delete(api_url: str, key: str) -> None:
    """As a person does in the UI."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        for artifact in client.read_artifacts(artifact_filter=wanted):
            client.delete_artifact(artifact.id)


def ask_nobody() -> None:
    httpx.get("http://127.0.0.1:9")


def test_a_server_that_takes_no_picture_ends_no_training(api_url: str) -> None:
    said: list[str] = []
    kept = logging.Handler(logging.WARNING)
    kept.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("prefect.flow_runs").addHandler(kept)

    @flow
    def trains() -> None:
        watcher = PrefectWatcher("gone", TrainingPictures("gone", 10, []))
        watcher.started("finetune", "here")
        for done in (1, 2, 3):
            watcher.event("finetune", Event("progress", {"done": done, "total": 10}))
            watcher._next_progress = 0.0
            delete(api_url, "gone-finetune-progress")
        watcher.ended("finetune", Outcome(step="finetune", status="done"))
        _only_shown(ask_nobody)()

    with temporary_settings({PREFECT_API_URL: api_url}):
        trains()
    logging.getLogger("prefect.flow_runs").removeHandler(kept)
    about = [words for words in said if "Prefect's UI" in words]
    assert len(about) == 2 and "does not show all" in about[0] and "ask_nobody" in about[1]


def test_weeks_of_metrics_and_samples_stay_small() -> None:
    pictures = TrainingPictures("weeks", None, curve(5000), clock=lambda: -1.0)
    pictures._next = 0.0  # nothing is sent
    for step in range(5001, 300_001):
        pictures.metric({"step": step, "loss": 1.0, "learning_rate": 0.1})
        if step % 100 == 0:
            pictures.metric({"step": step, "eval_loss": 2.0})
            pictures.sample({"step": step, "prompt": "The sheriff", "texts": ["rode."]})
    lines, samples = pictures._metrics, pictures._samples
    assert MOST_LINES / 4 <= len(lines) <= MOST_LINES
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert (lines[0]["step"], lines[-1]["step"]) == (1, 300_000)
    gaps = [after["step"] - before["step"] for before, after in itertools.pairwise(lines)]
    assert max(gaps) < 3_000  # of every part of the weeks something is left
    assert any("eval_loss" in line for line in lines)
    assert (len(samples), samples[-1]["step"]) == (MOST_SAMPLES, 300_000)


def test_the_longer_it_trains_the_rarer_its_pictures() -> None:
    now = 0.0
    pictures = TrainingPictures("rare", None, [], clock=lambda: now)
    pictures.show()  # of nothing: nothing is sent
    assert pictures._next == RENEW_SECONDS
    now = 24 * 3600.0
    pictures.show()
    assert pictures._next - now == 432.0
