"""The base model's log-probabilities of pairs of answers: computed once, and kept by content.

    cache/reference/{key}.bin   (num_contexts, 2) float64, little-endian, and their SHA-256

The key names all that can change a number: the store, the base model's files, the precision and
the kind of device. Each pair is computed by itself, so neither the batch size nor the number of
processes changes one. A file that is missing or damaged is made again, also for a run that
resumes.

Costs a forward pass over all pairs, and reading the model's files once for their digest.
"""

import hashlib
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from trainer.contract import events
from trainer.contract.files import sync, writer_name
from trainer.contract.sealed_folder import file_record
from trainer.fetch.weights import PICKLED
from trainer.tokens.store import TokenStore
from trainer.training.data.batches import read_pairs
from trainer.training.engine.engine import Engine, EngineOptions
from trainer.training.engine.start_up import host_group
from trainer.training.job import Job

FOLDER = "cache/reference"
FORMAT = 1  # raised when the same pairs and weights would give other numbers
_CHECK_BYTES = 32
_TOLD_SECONDS = 0.5


def known_reference(job: Job, store: TokenStore, options: EngineOptions) -> np.ndarray | None:
    """What an earlier run left of these pairs, (num_contexts, 2); None: nothing.

    The first process reads, so that all of them find the same.
    """
    found: list[np.ndarray | None] = [None]
    if options.rank == 0:
        path = _path(job, store, options)
        found[0] = _kept(path, store.manifest.num_contexts)
        if found[0] is not None:
            events.say(
                f"the base model's log-probabilities of {len(found[0]):,} pairs are cached "
                f"({FOLDER}/{path.name})"
            )
    if options.world > 1:
        dist.broadcast_object_list(found, src=0, group=host_group())
    return found[0]


def compute_reference(job: Job, store: TokenStore, engine: Engine) -> np.ndarray:
    """The log-probabilities of all pairs by the model as it is, which is to be the base model.

    By all processes together; the first one keeps them on the volume.
    """
    began, options = time.monotonic(), engine.options
    count = store.manifest.num_contexts
    own = np.arange(options.rank, count, options.world)
    found, told = np.zeros((count, 2)), began
    with engine.evaluating():
        for turn in range(-(-count // options.world)):  # every process takes part in each
            batch = read_pairs(store, own[turn : turn + 1])
            answers = engine.log_probs(batch.ids, batch.lengths, batch.trained)
            found[own[turn : turn + 1]] = answers.cpu().numpy()[: len(own[turn : turn + 1])]
            if options.rank == 0 and time.monotonic() - told >= _TOLD_SECONDS:
                told = time.monotonic()
                done = min(count, turn * options.world)
                events.progress(label="base model", done=done, total=count, unit="pairs")
    summed = np.array(engine.sum_over_processes(*found.flatten())).reshape(count, 2)
    if options.rank == 0:
        path = _path(job, store, options)
        _keep(path, summed)
        events.say(
            f"computed the base model's log-probabilities of {count:,} pairs in "
            f"{time.monotonic() - began:.1f} s ({FOLDER}/{path.name})"
        )
    return summed


def _path(job: Job, store: TokenStore, options: EngineOptions) -> Path:
    lora = job.config.lora
    made_by = {
        "format": FORMAT,
        "tokens": store.digest,
        "model": _model_files(job.path("model")),
        "precision": options.precision,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "dora": lora is not None and lora.dora,  # whose weights are the base's but for rounding
    }
    key = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:32]
    return Path(job.config.volume) / FOLDER / f"{key}.bin"


def _model_files(folder: Path) -> dict[str, str]:
    """Digests of the files that say what the model computes."""
    endings = (".safetensors", ".py", *PICKLED)
    paths = [p for p in folder.iterdir() if p.suffix in endings or p.name == "config.json"]
    return {path.name: file_record(path, "xxh3_128")["xxh3_128"] for path in sorted(paths)}


def _kept(path: Path, count: int) -> np.ndarray | None:
    """What is kept, unless it is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    numbers, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
    if hashlib.sha256(numbers).digest() != check or len(numbers) != 16 * count:
        events.notice(f"{path.name} is damaged: the base model's log-probabilities are made again")
        return None
    return np.frombuffer(numbers, "<f8").reshape(count, 2)


def _keep(path: Path, found: np.ndarray) -> None:
    """Write the file beside its place, and rename it: a kill leaves it whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{writer_name()}")
    numbers = found.astype("<f8").tobytes()
    with open(beside, "wb") as file:
        file.write(numbers + hashlib.sha256(numbers).digest())
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync(path.parent)
