"""batch_size=-1 settled by a real out-of-memory error, and offload on a card made to look small."""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.scale import (
    NotRun,
    Scale,
    device,
    engine_step,
    make_engine,
    make_model,
    options,
    peak_gib,
    random_ids,
)
from tests.training.volume import make_tokenizer, write_store
from trainer.contract.errors import DoesNotFitError
from trainer.contract.step_configs import FinetuneConfig, load_step_config
from trainer.planning.memory_model import GIB
from trainer.tokens.store import TokenStore
from trainer.training.engine.engine import DTYPES
from trainer.training.limits.sizing import Sizing, confirmed, fit
from trainer.training.step import _attempt

TOO_LARGE = 256  # contexts at a time: more than any card of today has room for
SMALL_CARD_GIB = 12  # 1.4 billion weights want 23 for their Adam alone


@contextmanager
def volume(scale: Scale, contexts: int, **config: Any) -> Iterator[FinetuneConfig]:
    """A volume with the middle model and random tokens; the config of a run on it."""
    with tempfile.TemporaryDirectory() as name:
        yield fill_volume(Path(name), scale, scale.middle(), contexts, **config)


def fill_volume(
    root: Path, scale: Scale, changes: dict[str, Any], contexts: int, **config: Any
) -> FinetuneConfig:
    """Fill an empty folder; `changes` are of the model's config."""
    model = make_model(scale.config(**changes), scale.precision)
    model.cpu().save_pretrained(root / "model")
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    make_tokenizer().save_pretrained(root / "model")
    rng = np.random.default_rng(1)
    ids = rng.integers(1, scale.vocabulary, (contexts + 2, scale.context), dtype="<u2")
    lengths = np.full(contexts + 2, scale.context, dtype="<u4")
    write_store(root / "tokens" / "random", ids, lengths, contexts)
    given = {
        "volume": str(root),
        "run_name": "run",
        "model": "model",
        "tokens": "tokens/random",
        "zero_stage": 0,
        "gradients": 1,
        "request": {},
        **config,
    }
    loaded = load_step_config("finetune", json.dumps(given))
    assert isinstance(loaded, FinetuneConfig)
    return loaded


def settled_by_error(scale: Scale) -> dict[str, Any]:
    """Ever smaller sizings, each tried by the step's own trial, from one that can't fit on."""
    tried: list[tuple[int, int | None]] = []
    with volume(scale, TOO_LARGE, batch_size=-1) as config:
        store = TokenStore.open(config.volume / Path(config.tokens))

        def attempt(sizing: Sizing) -> float | None:
            tried.append((sizing.batch_size, sizing.checkpointed_layers))
            if scale.small and sizing.batch_size > 2:  # a CPU pages instead of refusing
                raise DoesNotFitError("made up for the small form")
            return _attempt(config, store, sizing) if not scale.small else _here(scale, sizing)

        first = Sizing(batch_size=8 if scale.small else TOO_LARGE)
        settled = confirmed(config, first, attempt)
    if len(tried) < 2:
        raise AssertionError(f"batch_size {TOO_LARGE} fits: nothing was settled by an error")
    return {
        "tried": " ".join(str(size) for size, _ in tried),
        "batch_size": settled.batch_size,
        "said": settled.reason,
    }


def _here(scale: Scale, sizing: Sizing) -> float | None:
    engine = make_engine(
        make_model(scale.config(**scale.middle()), scale.precision),
        options(scale, batch_size=sizing.batch_size),
    )
    engine_step(engine, random_ids(scale, sizing.batch_size))
    return peak_gib()


def offloaded(scale: Scale) -> dict[str, Any]:
    """What the plan chooses for a small card, done on a card that gives no more than that."""
    with volume(scale, 8, batch_size=1) as config:
        limit = int((0.0001 if scale.small else SMALL_CARD_GIB) * GIB) + _beside(scale)
        if scale.small:
            config = dataclasses.replace(
                config, optimizer=dataclasses.replace(config.optimizer, offload="always")
            )
        model = Path(config.volume) / config.model
        sizing = fit(config, model, scale.context, 8, limit, scale.precision)
    if not sizing.offload:
        raise AssertionError(f"nothing is offloaded on a card of {limit / GIB:.1f} GiB")
    if scale.small:
        raise NotRun(
            f"the small form compiles nothing: DeepSpeed's Adam for CPUs. Chosen: {sizing.reason}"
        )
    return {"card_gib": limit / GIB, **_steps_on_small_card(scale, sizing, limit)}


def _beside(scale: Scale) -> int:
    return 2 * GIB if scale.small else 0  # CUDA's own part, of which a tiny model knows nothing


def _steps_on_small_card(scale: Scale, sizing: Sizing, limit: int) -> dict[str, Any]:
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / total)
    chosen = options(
        scale,
        batch_size=sizing.batch_size,
        checkpointed_layers=sizing.checkpointed_layers,
        offload=True,
    )
    model = make_model(scale.config(**scale.middle()), scale.precision)
    engine = make_engine(model, chosen)
    losses = [engine_step(engine, random_ids(scale, sizing.batch_size)) for _ in range(2)]
    said = {"chosen": sizing.reason, "losses": " ".join(f"{loss:.4f}" for loss in losses)}
    return {
        **said,
        "peak_gib": peak_gib() or 0.0,
        "device": device(),
        "dtype": str(DTYPES[scale.precision]),
    }
