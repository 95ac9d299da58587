"""Metrics on trackio, where TRACKIO_SPACE_ID, TRACKIO_SERVER_URL or TRACKIO_DIR says.

The number of a line in metrics.jsonl is its step there, so the last step says what has arrived.
"""

from collections.abc import Mapping
from typing import Any

from trainer.training.record.background import Numbered


class TrackioRun:
    """One run there, under the same name however often the run here is resumed.

    A Space that has to be made for it is private.
    """

    def __init__(self, project: str, name: str, run_id: str, parameters: Mapping[str, Any]) -> None:
        import trackio

        self._run = trackio.init(
            project=project,
            name=f"{name}-{run_id[:8]}",  # a run that starts over is another one
            group=name,
            config={key: value for key, value in parameters.items() if key[0] != "_"},
            resume="allow",
            private=True,
            embed=False,
            auto_log_gpu=False,  # memory and speed are in the lines
            auto_log_cpu=False,
        )
        self.there = self._run._next_step  # 0, or one more than the last step there

    def send(self, lines: list[Numbered]) -> None:
        """Add lines; trackio itself sends them on, and keeps what a server does not take."""
        for number, line in lines:
            values = {name: value for name, value in line.items() if value is not None}
            self._run.log({f"at_{k}" if k == "step" else k: v for k, v in values.items()}, number)

    def close(self) -> None:
        self._run.finish()
