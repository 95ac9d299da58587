"""What the UI shows while training goes, by a real server."""

import base64
import json
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.training_pictures import TrainingPictures
from tests.report.test_page import curve, polylines


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
        pictures.metric(earlier[4])  # step 5: goes on from a checkpoint after step 4
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
