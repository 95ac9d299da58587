"""What the UI shows of a training while it goes: its curves, and samples by checkpoint."""

import base64
import json
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from trainer.report.curves import MOST_POINTS, curves_svg

RENEW_SECONDS = 15.0  # between two pictures: each is sent to the server whole
RENEW_SHARE = 1 / 200  # of the time since the first one: after a day every 7 minutes
MOST_LINES = 4 * MOST_POINTS  # of metrics.jsonl, for a picture that shows a quarter of them
MOST_SAMPLES = 200  # the newest
KEPT = ("step", "loss", "eval_loss", "learning_rate")


class TrainingPictures:
    """Two artifacts, made when there is something to show and brought up to date since.

    Args:
        name: Prefix of their keys.
        total_steps: Of the run, as planned; None: not known.
        earlier: Lines of metrics.jsonl of earlier attempts.
        earlier_samples: Lines of samples.jsonl of them.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        name: str,
        total_steps: int | None,
        earlier: Iterable[Mapping[str, Any]],
        earlier_samples: Iterable[Mapping[str, Any]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._began = clock, clock()
        self._name, self._total_steps = name, total_steps
        self._metrics = [_kept(line) for line in earlier]
        if len(self._metrics) > MOST_LINES:
            self._metrics = _thinned(self._metrics)
        rows = (_row(line) for line in earlier_samples)
        self._samples: deque[dict[str, Any]] = deque(rows, maxlen=MOST_SAMPLES)
        self._ids: dict[str, uuid.UUID] = {}
        self._next = self._began

    def metric(self, line: Mapping[str, Any]) -> None:
        """Take a line of metrics.jsonl, and show it if the picture is old enough."""
        if "loss" in line and self._metrics and self._metrics[-1]["step"] >= line["step"]:
            # What an earlier attempt did beyond its last checkpoint is done again.
            self._metrics = [m for m in self._metrics if m["step"] < line["step"]]
        self._metrics.append(_kept(line))
        if len(self._metrics) > MOST_LINES:
            self._metrics = _thinned(self._metrics)
        if self._clock() >= self._next:
            self.show()

    def sample(self, line: Mapping[str, Any]) -> None:
        """Take a line of samples.jsonl."""
        row = _row(line)
        kept = [other for other in self._samples if not _is_done_again(other, row)]
        self._samples = deque([*kept, row], maxlen=MOST_SAMPLES)

    def show(self) -> None:
        """Bring both up to date."""
        now = self._clock()
        self._next = now + max(RENEW_SECONDS, RENEW_SHARE * (now - self._began))
        if self._metrics:
            svg = curves_svg(self._metrics, self._total_steps).encode()
            url = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
            self._put("curves", url, lambda key: create_image_artifact(url, key, "Curves"))
        if self._samples:
            rows = list(self._samples)
            text = json.dumps(rows)
            self._put("samples", text, lambda key: create_table_artifact(rows, key, "Samples"))

    def _put(self, kind: str, data: str, create: Callable[[str], Any]) -> None:
        if kind not in self._ids:
            self._ids[kind] = create(f"{self._name}-{kind}")
            return
        with get_client(sync_client=True) as client:
            client.update_artifact(self._ids[kind], ArtifactUpdate(data=data))


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": line["step"], "prompt": line["prompt"], "text": line["texts"][0]}


def _is_done_again(row: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether an earlier attempt's sample lies beyond the checkpoint that was resumed from."""
    same = (row["step"], row["prompt"]) == (now["step"], now["prompt"])
    return same or row["step"] > now["step"]


def _kept(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in KEPT if name in line}


def _thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """About half as many as may be kept: evenly over the steps, and the newest of each kind."""
    spacing = (lines[-1]["step"] - lines[0]["step"]) / (MOST_LINES // 4)
    kept: list[dict[str, Any]] = []
    for is_training in (True, False):
        of_kind = [line for line in lines if ("loss" in line) == is_training]
        last = -math.inf
        for line in of_kind:
            if line["step"] - last > spacing or line is of_kind[-1]:
                last = line["step"]
                kept.append(line)
    return sorted(kept, key=lambda line: line["step"])
