"""One training process of a run: build the engine, go to the right place, train.

Run alone in the step's own process, or as one of several by `trainer.training.processes.launch`.
"""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from trainer import host_memory
from trainer.checkpoints.tensors import SliceReader
from trainer.contract.checkpoints import name_of, newest_good
from trainer.contract.errors import DamagedError, DoesNotFitError, RequestError
from trainer.contract.events import say
from trainer.contract.files import write_atomically
from trainer.contract.sealed_folder import read_manifest
from trainer.report import journal
from trainer.tokens.store import TokenStore
from trainer.training.engine.adapters import add_adapters
from trainer.training.engine.base import base_model, weights_for
from trainer.training.engine.engine import DTYPES, Engine, EngineOptions
from trainer.training.engine.four_bits import quantize
from trainer.training.engine.partitions import (
    put_in_place,
    set_optimizer_state,
    slices_to_fill,
    slices_to_save,
)
from trainer.training.engine.start_up import join_processes
from trainer.training.engine_options import options_of
from trainer.training.job import Job
from trainer.training.limits.skipping import BadNumbersError
from trainer.training.limits.stopping import StopRequest
from trainer.training.loop import Loop, Progress
from trainer.training.record.memory_use import gpu_peak_gib
from trainer.training.record.validate_and_sample import Looks
from trainer.training.reference import compute_reference, known_reference
from trainer.training.save.final import write_final
from trainer.training.save.records import cut_back
from trainer.training.save.saving import Saver, restore, restore_buffers, slices_bytes
from trainer.training.save.seeds_and_records import engine_record, has_dropout
from trainer.training.schedule import Shortened
from trainer.training.store_check import StoreCheck


def train(job: Job, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Train to the end and, in the first process, write the final model.

    Returns:
        Of the first process: loss, eval_loss, tokens, seconds, tokens_per_second of the run.
    """
    try:
        if job.is_trial:
            return _try(job, rank, world)
        if rank == 0:
            journal.go_on()
        if not job.is_trained:
            job = replace(job, shortened=_train(job, rank, world))
    except torch.OutOfMemoryError as error:
        raise DoesNotFitError(
            f"a step does not fit into the GPU's memory (batch_size {job.batch_size}: {error}). "
            "Take a smaller batch_size, a larger batch_size_divisor or a shorter context."
        ) from error
    if rank or job.until:
        return {}  # the first process seals the last checkpoint, and resumes from it
    figures = _figures(job)
    with journal.phase("final model"):
        write_final(job, figures)
    return figures


def _try(job: Job, rank: int, world: int) -> dict[str, Any]:
    """Do two real steps on full contexts, the second with Adam's moments there.

    Returns:
        peak_gib: Most of a GPU's memory that was in use; None without one.
    """
    join_processes(rank, world)
    options = options_of(job, rank, world)
    model, _ = _model(job, options)
    _make_zero(model)
    engine = Engine(model, options)
    context = TokenStore.open(job.path("tokens")).manifest.context
    rows = job.batch_size * (2 if options.beta else 1)
    ids = torch.zeros((rows, context), dtype=torch.int64)
    positions = torch.arange(context).expand_as(ids) if options.packed else None
    reference = torch.zeros((job.batch_size, 2), dtype=torch.float64) if options.beta else None
    for _ in range(2):
        loss = engine.loss(ids, torch.full((rows,), context), None, positions, reference)
        engine.backward(loss / ids.numel())
        engine.step(0.0)
    peak_gib = gpu_peak_gib()
    engine.close()
    return {"peak_gib": peak_gib}


@torch.no_grad()
def _make_zero(model: Any) -> None:
    """Give a trial's model numbers; the time it takes to load them is saved."""
    for parameter in model.parameters():
        parameter.zero_()


def _train(job: Job, rank: int, world: int) -> Shortened | None:
    """Train to the end; how the schedule was shortened, if it was."""
    check = StoreCheck(job.path("tokens")) if rank == 0 else None
    join_processes(rank, world)
    options = options_of(job, rank, world)
    store = TokenStore.open(job.path("tokens"))
    if options.beta:
        store = replace(store, reference=known_reference(job, store, options))
    with host_memory.given_back():
        engine, progress, store = _begun(job, options, store, check)
    keep, slices = job.config.checkpoints, slices_to_save(engine)
    whole_bytes = int(engine.sum_over_processes(slices_bytes(slices))[0])
    saver = Saver(
        job.run.checkpoints,
        slices,
        rank,
        world,
        keep,
        whole_bytes,
        in_place=options.offload,
        buffers=lambda: engine.buffers,
    )
    _refuse_damaged(check, engine)
    looks, stop = Looks(job, engine, store), StopRequest()
    try:
        Loop(job, engine, store, saver, stop, progress, looks).run()
    except BadNumbersError as error:
        progress = _gone_back(error, job, engine)
        Loop(job, engine, store, saver, stop, progress, looks).run()
    stop.at_once()
    engine.close()
    return progress.shortened


def _begun(
    job: Job, options: EngineOptions, store: TokenStore, check: StoreCheck | None
) -> tuple[Engine, Progress, TokenStore]:
    """The engine where training begins or resumes; a store of pairs knows its reference then."""
    missing = bool(options.beta) and store.reference is None
    # The base model goes first where it has yet to say what it thinks of the pairs.
    first = replace(job, from_step=0) if missing else job
    progress = Progress()
    model, base = _model(first, options)
    engine = Engine(model, options)
    if first.checkpoint_path is not None:
        progress = _go_to(first.checkpoint_path, engine)
    elif base is not None:
        restore(slices_to_fill(engine), base, ("weight",))
        restore_buffers(engine.buffers, base)
        put_in_place(engine)
    engine.share_buffers()
    if missing:
        _refuse_damaged(check, engine)  # no number is kept of a damaged token
        store = replace(store, reference=compute_reference(job, store, engine))
        if job.checkpoint_path is not None:
            progress = _go_to(job.checkpoint_path, engine)
            engine.share_buffers()
    return engine, progress, store


def _refuse_damaged(check: StoreCheck | None, engine: Engine) -> None:
    """Raise DamagedError, in every process, where the first one found the store damaged."""
    problem = check.problem() if check else None
    if engine.sum_over_processes(float(problem is not None))[0]:
        raise DamagedError(problem or "the token store is damaged")


def _gone_back(error: BadNumbersError, job: Job, engine: Engine) -> Progress:
    """The progress of the last checkpoint, everything else put back to it, too.

    Raises:
        BadNumbersError: There is no checkpoint, or the run went back before.
    """
    checkpoint, _ = newest_good(job.run.checkpoints)
    marker, is_first = job.run.went_back, engine.options.rank == 0
    went_back = engine.sum_over_processes(is_first and marker.exists())[0] > 0
    if checkpoint is None or went_back:
        raise error
    if is_first:
        # Beside the checkpoints, which say nothing of it yet: a run that fails again and is
        # started again must not go back each time.
        write_atomically(marker, json.dumps({"to": checkpoint.name, "because": str(error)}))
    progress = _go_to(checkpoint, engine)
    if is_first:
        cut_back(job.run.root, progress.records)
        say(f"{error} The run goes back to {checkpoint.name}, once.")
    engine.sum_over_processes(0.0)  # nobody writes before the files are cut back
    return progress


def _go_to(checkpoint: Path, engine: Engine) -> Progress:
    """Make the engine's state that of the checkpoint."""
    about = read_manifest(checkpoint).about
    try:
        reader = SliceReader(checkpoint)
        restore(slices_to_fill(engine), reader)
        restore_buffers(engine.buffers, reader)
    except ValueError as error:
        raise RequestError(
            f"model is not what {checkpoint.name} was trained from ({error}). A run continues with "
            "the model it began with. Bring that one back, or start over with no_resume=true."
        ) from error
    put_in_place(engine)
    set_optimizer_state(engine, about["optimizer"])
    _say_what_changed(about, engine)
    progress = Progress(**{f.name: about[f.name] for f in fields(Progress) if f.name in about})
    if progress.shortened is not None:
        progress.shortened = Shortened(*progress.shortened)
    return progress


def _say_what_changed(about: dict[str, Any], engine: Engine) -> None:
    """Exactness needs the same sums in the same order: say where they won't be."""
    now = engine_record(engine)
    names = ("processes", "zero_stage", "precision", "threads", "torch", "device")
    changed = [f"{n} {now[n]} (was {about[n]})" for n in names if now[n] != about[n]]
    if not changed or engine.options.rank:
        return
    if now["processes"] != about["processes"] and has_dropout(engine.model):
        how = "and dropout draws anew for each process, so losses differ as with another seed"
    else:
        how = "so losses agree to about 1e-4 and not to the last bit"
    what = ", ".join(changed)
    say(f"it continues with {what}: the same batches, but sums in another order, {how}")


def _model(job: Job, options: EngineOptions) -> tuple[Any, SliceReader | None]:
    """The model that is trained, and what fills its weights where they aren't there yet.

    So each process reads its own part alone. None where the model has to be whole first
    (adapters beside it, embeddings it lacks, weights of other names): then the first process
    loads it and DeepSpeed hands it on to the others; or where a checkpoint fills it.
    """
    config, dtype = job.config, DTYPES[options.precision]
    others = options.rank > 0
    if config.lora is None:
        model = base_model(job, dtype, filled_later=True)
        if job.checkpoint_path is not None or job.is_trial:
            return model, None
        reader = None if config.tensorizer_uri else weights_for(model, job.path("model"))
        if reader is not None or others:
            return model, reader
        return base_model(job, dtype), None
    # Codes of 4 bits are no parameters, so DeepSpeed hands them on to nobody.
    in_four_bits = config.lora.base_bits == 4
    model = base_model(job, dtype, filled_later=job.is_trial or (others and not in_four_bits))
    if in_four_bits and job.is_trial:
        _make_zero(model)
    if in_four_bits:
        quantize(model, config.lora.modules_to_save)
    add_adapters(model, config.lora, config.model, config.random_seed)
    return model, None


def _figures(job: Job) -> dict[str, Any]:
    """What the last checkpoint says of the whole run."""
    about = read_manifest(job.run.checkpoints / name_of(job.plan.steps)).about
    figures = {name: about[name] for name in ("loss", "eval_loss", "tokens")}
    if job.shortened:
        figures |= {"steps": job.plan.steps, "steps_planned": job.plan.whole_steps}
        figures["budget_ends"] = about.get("ends", [])
    figures["seconds"] = round(about["seconds"], 3)
    figures["tokens_per_second"] = round(about["tokens"] / max(about["seconds"], 1e-9), 1)
    return figures
