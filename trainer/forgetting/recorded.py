"""What a run's processes were told, from what the run recorded."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer.contract.checkpoints import name_of, steps_there
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest
from trainer.contract.step_configs import FinetuneConfig, load_step_config
from trainer.contract.volume import path_on_volume
from trainer.tokens.store import TokenStore
from trainer.training.job import Job
from trainer.training.plan import Shortened
from trainer.training.step import left_out_of

_SIZES = ("num_contexts", "global_batch", "batch_size", "zero_stage", "offload")


def store_of(run: RunFolder) -> TokenStore:
    """The tokens that the run was trained on.

    Raises:
        RequestError: They were pruned or changed.
    """
    record = run.record() or {}
    try:
        store = TokenStore.open(path_on_volume(run.root.parent, "tokens", record["tokens"]))
    except (DamagedError, KeyError) as error:
        raise RequestError(
            f"{run.root.name} can't be repeated: its tokens are not there ({error}). Tokenize the "
            "same dataset again: `finetune tokenize`."
        ) from error
    if store.digest != record["tokens_digest"]:
        raise RequestError(f"{record['tokens']} is another store than {run.root.name} was made of.")
    return store


def job_of(run: RunFolder, changed: Mapping[str, Any] = MappingProxyType({})) -> Job:
    """What the processes were told, as if they began at the run's start on this machine.

    Args:
        changed: Fields of the config that are to be others.
    Raises:
        RequestError: The run did not record enough, or was not trained in one way.
    """
    record = run.record()
    if record is None or "config" not in record or "sizing" not in record:
        raise RequestError(
            f"RUN recorded too little to be repeated (got {run.root.name!r}). It was adopted, or "
            "made by an older version."
        )
    abouts = [
        read_manifest(run.checkpoints / name_of(step)).about
        for step in steps_there(run.checkpoints)
    ]
    _refuse_two_ways(run, abouts)
    last = abouts[-1] if abouts else {}
    config = _config(run, record, last, changed)
    sizing = record["sizing"]
    known: dict[str, Any] = {
        "num_contexts": store_of(run).manifest.num_train_contexts,
        "global_batch": sizing["batch_size"]
        * (sizing.get("gradients") or config.gradients)
        * config.processes,
        "batch_size": sizing["batch_size"],
        "zero_stage": config.zero_stage,
        "offload": sizing["offload"],
    }
    known |= {name: last[name] for name in _SIZES if name in last}
    store = store_of(run)
    omitted = left_out_of(config, store)
    return Job(
        config=config,
        num_ids=store.manifest.vocab_size,
        checkpointed_layers=last.get("checkpointed_layers", sizing["checkpointed_layers"]),
        shortened=Shortened(*last["shortened"]) if last.get("shortened") else None,
        left_out=omitted.ranges if omitted else (),
        **known,
    )


def _config(
    run: RunFolder, record: dict[str, Any], last: dict[str, Any], changed: Mapping[str, Any]
) -> FinetuneConfig:
    recorded = record["config"]
    given = {
        **recorded,
        "volume": str(run.root.parent),
        "processes": recorded.get("processes", 1) * recorded.get("nodes", 1),
        "nodes": 1,
        "precision": last.get("precision", recorded.get("precision", "")),
        "request": record["request"],
    }
    # What `fork` and `forget` changed stands in the request alone until the run was admitted.
    given["skip"] = record["request"].get("skip", recorded.get("skip", {}))
    given.pop("wandb_key", None)
    given |= changed
    config = load_step_config("finetune", json.dumps(given))
    assert isinstance(config, FinetuneConfig)
    return config


def _refuse_two_ways(run: RunFolder, abouts: list[dict[str, Any]]) -> None:
    same = ("processes", "threads", "zero_stage", "precision", "torch", "device", "global_batch")
    changed = [
        f"{name} {one[name]}, then {other[name]}"
        for one, other in pairwise(abouts)
        for name in same
        if one.get(name) != other.get(name)
    ]
    if changed:
        raise RequestError(
            f"{run.root.name} was not trained in one way ({'; '.join(changed)}), so that nothing "
            "can be expected to the bit. Train it again, then repeat that run."
        )


def checkpoint_digest(place: Path) -> str:
    """SHA-256 of a checkpoint's manifest, which holds the digests of all its files."""
    from trainer.tokens.store import file_digest

    return file_digest(place / "manifest.json")
