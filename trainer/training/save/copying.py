"""The copy of a training state that a checkpoint is written from.

On a CPU training stands still for it. On a GPU a stream of its own copies into pinned memory while
training continues: only the next optimizer step waits, on the GPU, until the copy is made.
"""

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StateCopy:
    """Copies `views`, whose numbers training changes, again and again."""

    def __init__(self, views: Sequence[Tensor], in_place: bool, cuda: Any = torch.cuda) -> None:
        """Get the memory while training begins: the first copy takes no longer than the others.

        Args:
            in_place: There is no copy: `tensors` are the views.
            cuda: Makes streams and events.
        """
        self._views, self._in_place, self._cuda = views, in_place, cuda
        self._on_gpu = any(_is_on_gpu(view) for view in views)
        self._tensors: list[Tensor] = []
        self._copied: Any = None  # an event of the GPU; None: nothing was copied by it yet
        self._preparing = threading.Thread(target=self._prepare, name="buffers", daemon=True)
        self._preparing.start()

    @property
    def tensors(self) -> list[Tensor]:
        """The numbers of the last copy, in host memory. Call `wait` first."""
        return self._tensors

    def begin(self) -> None:
        """Copy; on a GPU return before it is done."""
        self._preparing.join()
        if self._in_place or not self._views:
            return
        if not self._on_gpu:
            torch._foreach_copy_(self._tensors, list(self._views))
            return
        stream = self._stream
        stream.wait_stream(self._cuda.current_stream())  # the step before is done by then
        with self._cuda.stream(stream):
            for copy, view in zip(self._tensors, self._views, strict=True):
                copy.copy_(view, non_blocking=True)
            self._copied = self._cuda.Event()
            self._copied.record(stream)

    def let_change(self) -> None:
        """Have the GPU's next work wait until the copy is made; the host does not wait."""
        if self._copied is not None:
            self._cuda.current_stream().wait_event(self._copied)

    def wait(self) -> None:
        """Wait until the copy is made: from the thread that writes it."""
        if self._copied is not None:
            self._copied.synchronize()

    def _prepare(self) -> None:
        if self._in_place:
            self._tensors = [view.detach() for view in self._views]
            return
        if self._on_gpu:
            self._stream = self._cuda.Stream()
        self._tensors = [
            torch.empty(view.shape, dtype=torch.float32, pin_memory=self._pins(view)).zero_()
            for view in self._views
        ]

    def _pins(self, view: Tensor) -> bool:
        return self._on_gpu and _is_on_gpu(view)


def _is_on_gpu(view: Tensor) -> bool:
    return view.device.type == "cuda"
