"""Write checkpoints behind the training's back.

Training stops for a copy of its state in memory; on a GPU not even for that, see copying.py.
Where the state is offloaded to host memory, it is written from there, and only the next optimizer
step waits until it was. A thread in each process writes, digests and syncs its slices; that of the
first process waits for all, seals, verifies and prunes. One checkpoint is on its way at most.
"""

import errno
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.checkpoints.tensors import SliceReader, write_tensors
from trainer.contract.checkpoints import name_of, part_of, prune
from trainer.contract.errors import StepError
from trainer.contract.files import size_of
from trainer.contract.json_text import parse_json
from trainer.contract.sealed_folder import seal, verify
from trainer.contract.topics import CheckpointsConfig
from trainer.retention.full_volume import full_sentence, is_full
from trainer.training.engine.partitions import KINDS, Slice
from trainer.training.save.copying import StateCopy
from trainer.training.save.retrying import insist

LOOK_SECONDS = 1.0  # between two looks at the room that other processes have


class Saver:
    """Saves the slices of one process, and as the first process the checkpoint as a whole."""

    def __init__(
        self,
        folder: Path,
        slices: list[Slice],
        rank: int,
        world: int,
        keep: CheckpointsConfig,
        whole_bytes: int = 0,
        in_place: bool = False,
        buffers: Callable[[], Mapping[str, torch.Tensor]] = dict,
    ) -> None:
        """Get memory for a copy of the slices.

        Args:
            buffers: The model's persistent buffers by name, which the first process saves.
            whole_bytes: What all processes write together; 0: this one alone writes.
            in_place: Write from the slices themselves, in host memory: a process that is about to
                change them calls `let_change` first.
        """
        self.folder = folder
        self.seconds = 0.0  # that the last checkpoint took, from copy to seal
        self.stalled_seconds = 0.0  # that training stood still for checkpoints
        self._rank, self._world, self._keep, self._first = rank, world, keep, rank == 0
        self._keys = [piece.key(kind) for piece in slices for kind in KINDS]
        self._views = [piece.tensors[kind] for piece in slices for kind in KINDS]
        self._bytes = slices_bytes(slices)
        self._whole_bytes = whole_bytes or self._bytes
        self._in_place, self._buffers = in_place, buffers
        self._copy = StateCopy(self._views, in_place)
        self._written = threading.Event()
        self._written.set()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._sealed: Path | None = None

    def save(self, step: int, about: Mapping[str, Any]) -> None:
        """Copy the state now and write it in the background.

        Args:
            step: Optimizer steps done.
            about: What the manifest is to say; only the first process' counts.
        """
        self.wait()
        began = time.monotonic()
        self._copy.begin()
        self._written.clear()
        self._thread = threading.Thread(
            target=self._work,
            args=(step, dict(about), began, buffer_arrays(self._buffers()) if self._first else {}),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()
        self.stalled_seconds += time.monotonic() - began

    def wait(self) -> Path | None:
        """Wait until what was saved is sealed; the newest sealed checkpoint of this process.

        Raises:
            StepError: It could not be written.
        """
        if self._thread is not None:
            began = time.monotonic()
            self._thread.join()
            self.stalled_seconds += time.monotonic() - began
            self._thread = None
        self.check()
        return self._sealed

    def let_change(self) -> None:
        """Wait until the slices may change: on the host only where they are written in place."""
        self._copy.let_change()
        if self._in_place and not self._written.is_set():
            began = time.monotonic()
            self._written.wait()
            self.stalled_seconds += time.monotonic() - began

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise what ended the writing of a checkpoint; a StepError where the volume took none."""
        if isinstance(self._failure, OSError | StepError):
            why = f" ({self._failure})"
            if is_full(self._failure):
                why = f": {full_sentence(self.folder.parents[1], self._whole_bytes)}"
            raise StepError(
                f"a checkpoint could not be written{why}. The ones before it are "
                "intact. Make room on the volume and run it again: it resumes from the last one."
            ) from self._failure
        if self._failure is not None:
            raise self._failure

    def _work(
        self, step: int, about: dict[str, Any], began: float, buffers: dict[str, np.ndarray]
    ) -> None:
        try:
            try:
                self._copy.wait()
                self._write(step, buffers)
            finally:
                self._written.set()
            if self._first:
                place = self._seal(step, about)
                self.seconds = time.monotonic() - began
                self._verify_and_prune(place)
        # Whatever it is, nobody waits for this thread's end: training's own raises it at `check`.
        except BaseException as error:  # noqa: BLE001
            self._failure = error
            shutil.rmtree(part_of(self.folder / name_of(step)), ignore_errors=True)

    def _write(self, step: int, buffers: dict[str, np.ndarray]) -> None:
        """Write this process' slices and `buffers`; try again when the volume is full or ails."""
        part = part_of(self.folder / name_of(step))
        path = part / f"rank-{self._rank:05d}-of-{self._world:05d}.safetensors"
        arrays = {
            key: copy.numpy() for key, copy in zip(self._keys, self._copy.tensors, strict=True)
        }
        arrays |= buffers

        def write() -> dict[str, Any]:
            part.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            self._make_room(part)
            return write_tensors(path, arrays)

        def make_room() -> None:
            path.unlink(missing_ok=True)  # what there is of it takes room that others need
            self._free_space()

        record = insist(write, "a checkpoint", on_failure=make_room)
        note = _note_of(part, self._rank)
        insist(lambda: _leave_note(note, {path.name: record}), "a checkpoint", self._free_space)

    def _make_room(self, part: Path) -> None:
        """Prune early, as far as the rule allows, where there is no room for what is to come.

        Raises:
            OSError: There is none even so.
        """
        # The first process alone prunes, so it looks at what all will write.
        needed = self._whole_bytes - size_of(part) if self._first else self._bytes
        if self._missing(needed):
            self._free_space()
        if missing := self._missing(needed):
            raise OSError(errno.ENOSPC, f"the volume lacks {missing / 2**20:,.1f} MiB of room")

    def _missing(self, needed: int) -> int:
        """Bytes that the volume lacks to take `needed` more."""
        return max(0, int(needed * 1.02) - shutil.disk_usage(self.folder).free)

    def _free_space(self) -> None:
        if self._first:
            prune(self.folder, keep_last=1, keep_best=self._keep.keep_best)

    def _seal(self, step: int, about: dict[str, Any]) -> Path:
        place = self.folder / name_of(step)
        part = part_of(place)
        notes = [_note_of(part, rank) for rank in range(self._world)]
        self._wait_for(notes, part)
        known = {}
        for note in notes:
            known.update(parse_json(note.read_text(encoding="utf-8")))
            note.unlink()
        insist(lambda: seal(part, place, about, known), "a checkpoint", on_failure=self._free_space)
        return place

    def _wait_for(self, notes: list[Path], part: Path) -> None:
        """Wait until all processes have written; make room for those that have none."""
        looked = time.monotonic()
        while not all(note.exists() for note in notes):
            time.sleep(0.02)  # a process that died is noticed by who started it
            if time.monotonic() - looked < LOOK_SECONDS:
                continue
            looked = time.monotonic()
            if self._missing(self._whole_bytes - size_of(part)):
                self._free_space()

    def _verify_and_prune(self, place: Path) -> None:
        """Read the new checkpoint back; only then may older ones go."""
        if problems := verify(place):
            raise StepError(f"the new checkpoint does not verify: {'; '.join(problems)}")
        self._sealed = place
        keep = self._keep
        most_bytes = int(keep.max_gib * 2**30)
        prune(self.folder, keep.keep_last, keep.keep_best, most_bytes, keep.keep_every)


def slices_bytes(slices: list[Slice]) -> int:
    """What the slices take in a checkpoint, in fp32."""
    return 4 * len(KINDS) * sum(piece.numel for piece in slices)


def restore(slices: list[Slice], reader: SliceReader, kinds: Sequence[str] = KINDS) -> None:
    """Fill the slices with what `reader` finds, straight where they are if that is on the host.

    Raises:
        ValueError: It has parameters of another length, or lacks some.
    """
    for piece in slices:
        for kind in kinds:
            to = piece.tensors[kind]
            numbers = to if to.device.type == "cpu" else torch.empty(to.shape, dtype=torch.float32)
            out = numbers.detach().numpy()
            reader.read(f"{kind}/{piece.name}", piece.start, out, math.prod(piece.shape))
            if numbers is not to:
                to.copy_(numbers)


def buffer_arrays(buffers: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copies of buffers as a checkpoint holds them: flat, 16-bit floats widened to fp32."""
    arrays = {}
    for name, buffer in buffers.items():
        flat = buffer.detach().to("cpu", copy=True).reshape(-1)
        if flat.dtype in (torch.bfloat16, torch.float16):
            flat = flat.float()
        arrays[f"buffer/{name}@0"] = flat.numpy()
    return arrays


def restore_buffers(buffers: Mapping[str, torch.Tensor], reader: SliceReader) -> None:
    """Fill the buffers with what `reader` finds.

    Raises:
        ValueError: It lacks one, or has it of another size.
    """
    for name, buffer in buffers.items():
        numbers = reader.buffer(name)
        if numbers.size != buffer.numel():
            raise ValueError(
                f"the buffer {name} has {numbers.size} numbers instead of {buffer.numel()}"
            )
        buffer.data.copy_(torch.from_numpy(numbers).view(buffer.shape))


def _note_of(part: Path, rank: int) -> Path:
    """Where a process leaves the record of its file for the first one, outside the checkpoint."""
    return part.with_name(f"{part.name}.rank-{rank:05d}")


def _leave_note(note: Path, record: dict[str, Any]) -> None:
    """Whole or not at all, and not synced: nobody reads it after a power cut."""
    beside = note.with_name(f"{note.name}.new")
    beside.write_text(json.dumps(record), encoding="utf-8")
    beside.replace(note)
