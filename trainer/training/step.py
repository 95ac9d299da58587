"""The finetune step: find out what is there, decide, and start the training processes.

Loads no torch before it is clear that there is something to train.
"""

import dataclasses
import importlib.metadata
import time
from typing import Any

from trainer.contract import checkpoints
from trainer.contract.checkpoints import clear_parts, name_of
from trainer.contract.events import say
from trainer.contract.json_files import readable_object
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import FinetuneConfig
from trainer.contract.volume import path_on_volume
from trainer.contract.wording import skipped_words
from trainer.devices import devices, has_gpu
from trainer.planning.step_count import few_steps
from trainer.report import journal
from trainer.retention.full_volume import short_of_room
from trainer.steps import StepResult
from trainer.tokens.left_out import LeftOut, left_out
from trainer.tokens.store import TokenStore, file_digest
from trainer.training.job import Job
from trainer.training.limits.budget import end_by
from trainer.training.limits.refusals import refuse_schedule, refuse_what_cannot_be_trained
from trainer.training.limits.sizing import Sizing, confirmed, size_up
from trainer.training.plan import TrainingPlan
from trainer.training.processes.nodes import Group, meet, node_rank
from trainer.training.save.records import cut_back
from trainer.training.schedule import Shortened

# Of the config: who asked, and what run.json says elsewhere.
_NOT_RECORDED = (
    "volume",
    "inputs",
    "request",
    "no_resume",
    "attempt",
    "earlier_outcomes",
    "plan",
)


def run(config: FinetuneConfig) -> StepResult:
    """Train the model, or find it trained; see FinetuneConfig."""
    run_folder = RunFolder(config.volume, config.run_name)
    made = _run(config, run_folder)
    if node_rank() == 0:  # other nodes have no result
        final = checkpoints.read_manifest(run_folder.final).digest
        made.result["digests"] = {"final": final, "admission": run_folder.admission}
    return made


def _run(config: FinetuneConfig, run_folder: RunFolder) -> StepResult:
    if node_rank() == 0:
        if config.no_resume:
            run_folder.start_over(config.attempt)
        run_folder.refuse_other_request(config.request)
    if (done := _finished(config, run_folder)) is not None:
        if node_rank() == 0:
            run_folder.restore_outcomes(config.earlier_outcomes)
        return done
    if config.nodes == 1:
        return _train(_prepare(config, run_folder), None)
    with meet(config.nodes) as group:
        agreed = group.agree(lambda: {"job": _prepare(config, run_folder).to_json()})
        return _train(Job.from_json(agreed["job"]), group)


def _prepare(config: FinetuneConfig, run_folder: RunFolder) -> Job:
    """Admit the run, and work out what its processes have to know."""
    store = TokenStore.open(path_on_volume(config.volume, "tokens", config.tokens))
    new_tokens = refuse_what_cannot_be_trained(config, store)
    omitted = left_out_of(config, store)
    made_from = {**_made_from(config, store), "plan": config.plan}
    if omitted:
        made_from["left_out"] = omitted.figures
        say(f"left out of training: {skipped_words(omitted.figures, config.epochs)}")
    if run_folder.record() is None:
        sizing = _size(config, store)
        refuse_schedule(config, _plan_of(config, store, sizing))
        made_from["sizing"] = sizing.to_record()
    run_folder.admit(config.request, config.attempt, made_from, config.earlier_outcomes)
    say_what_is_untied(config)
    if (unused := len(devices()) - config.processes) > 0:
        say(f"{len(devices())} GPUs are here; trainer_gpus={config.processes} leaves {unused} idle")
    if new_tokens:
        left = config.lora and not config.lora.modules_to_save
        frozen = "; lora leaves them so, unless modules_to_save names embeddings and head"
        frozen = frozen if left else ""
        they = f"{new_tokens} added tokens are new to the model"
        say(f"{they} and begin at the mean of the others{frozen}")
    job = _job(config, run_folder, store, omitted.ranges if omitted else ())
    refuse_schedule(config, job.plan)  # of a fork, which was admitted before
    return job


def _plan_of(config: FinetuneConfig, store: TokenStore, sizing: Sizing) -> TrainingPlan:
    """The steps of a run that is about to begin."""
    return Job(
        config=config,
        num_contexts=store.manifest.num_train_contexts,
        batch_size=sizing.batch_size,
        global_batch=_global_batch(config, sizing),
        zero_stage=config.zero_stage,
    ).plan


def _global_batch(config: FinetuneConfig, sizing: Sizing) -> int:
    gradients = sizing.gradients or config.gradients
    return sizing.batch_size * gradients * config.processes * config.nodes


def left_out_of(config: FinetuneConfig, store: TokenStore) -> LeftOut | None:
    """What the config's `skip` leaves out of the store."""
    return left_out(store, config.skip, config.volume, config.request.get("dataset", ""))


def say_what_is_untied(config: FinetuneConfig) -> None:
    """Say where the model's files go before its config."""
    if config.tensorizer_uri:
        return
    from trainer.models.loading import load_config, untie_what_differs

    folder = path_on_volume(config.volume, "model", config.model)
    described = load_config(folder, config.trust_remote_code)
    if sentence := untie_what_differs(described, folder, config.trust_remote_code):
        say(sentence)


def _size(config: FinetuneConfig, store: TokenStore) -> Sizing:
    """How much of the work to do at once, said where it was worked out."""
    model = path_on_volume(config.volume, "model", config.model)
    contexts = store.manifest.num_train_contexts
    texts = 2 if store.manifest.of_pairs else 1
    sizing = size_up(config, model, store.manifest.context, contexts, texts)
    if has_gpu():
        sizing = confirmed(config, sizing, lambda tried: _attempt(config, store, tried))
    if config.batch_size < 0 or sizing.checkpointed_layers != 0 or sizing.offload:
        say(sizing.reason)
    return sizing


def _attempt(config: FinetuneConfig, store: TokenStore, sizing: Sizing) -> float | None:
    """GiB of GPU memory that a real step takes, in processes that free all of it when they end."""
    from trainer.training.processes.launch import train_in_processes

    job = Job(
        config=dataclasses.replace(config, nodes=1),
        num_contexts=store.manifest.num_train_contexts,
        num_ids=store.manifest.vocab_size,
        batch_size=sizing.batch_size,
        global_batch=sizing.batch_size * config.processes,
        zero_stage=config.zero_stage,
        checkpointed_layers=sizing.checkpointed_layers,
        offload=sizing.offload,
        is_trial=True,
    )
    return train_in_processes(job, config.processes)["peak_gib"]


def _train(job: Job, group: Group | None) -> StepResult:
    """Train in this process or in several; what came of it, as the first node knows it."""
    figures: dict[str, Any] = {}
    if not job.is_trained and job.processes > 1:
        from trainer.training.processes.launch import train_in_processes

        with journal.handed_over():
            figures = train_in_processes(job, job.config.processes, group)
    elif group is None or group.first:
        from trainer.training.process import train

        figures = train(job)
    if group is not None and not group.first:
        group.wait_for_first()
        return StepResult(message=f"node {group.rank} of {group.nodes} is done")
    name = job.config.run_name
    result = {
        "final": f"{name}/final",
        "steps": job.plan.steps,
        "batch_size": job.batch_size,
        **figures,
        "resumed_from": job.from_step or None,
    }
    result["checkpoint"] = f"{name}/checkpoints/{name_of(result['steps'])}"
    return StepResult(result=result, message=_sentence(result))


def _finished(config: FinetuneConfig, run_folder: RunFolder) -> StepResult | None:
    """The result of an earlier time, where the final model is complete and intact."""
    record = run_folder.record()
    if config.no_resume and record is not None and record.get("attempt") != config.attempt:
        return None  # the first node is about to put it aside
    if not run_folder.final.exists():
        return None
    if problems := checkpoints.verify(run_folder.final):
        say(f"the final model is made again: {'; '.join(problems)}")
        return None
    earlier = run_folder.outcome("finetune")
    if earlier is not None and earlier.status == "done":
        return StepResult(result=earlier.result, message=earlier.message, reused=True)
    about = checkpoints.read_manifest(run_folder.final).about
    result = {
        "final": f"{config.run_name}/final",
        "steps": about["step"],
        "resumed_from": None,
        **about["figures"],
    }
    return StepResult(result=result, message=_sentence(result), reused=True)


def _sentence(result: dict[str, Any]) -> str:
    loss = result.get("loss")
    planned = result.get("steps_planned")
    return (
        f"{result['final']} after {result['steps']:,} steps"
        + (f" of {planned:,}, by the budget" if planned else "")
        + ("" if loss is None else f", loss {loss:.4f}")
    )


def _job(
    config: FinetuneConfig,
    run_folder: RunFolder,
    store: TokenStore,
    omitted: tuple[tuple[int, int], ...],
) -> Job:
    """Everything the processes need to know."""
    clear_parts(run_folder.checkpoints)
    found, bad = checkpoints.newest_good(run_folder.checkpoints)
    for path, problems in bad:
        aside = checkpoints.set_aside(path)
        say(f"checkpoint {path.name} was set aside as {aside.name}: {'; '.join(problems)}")
    about = checkpoints.read_manifest(found).about if found else {}
    sizing = _sizing(config, run_folder)
    job = Job(
        config=config,
        num_contexts=store.manifest.num_train_contexts,
        num_ids=store.manifest.vocab_size,
        batch_size=sizing.batch_size,
        global_batch=about.get("global_batch", _global_batch(config, sizing)),
        zero_stage=config.zero_stage,
        checkpointed_layers=sizing.checkpointed_layers,
        offload=sizing.offload,
        from_step=about.get("step", 0),
        end_by=end_by(config, run_folder, time.time()),
        shortened=Shortened(*about["shortened"]) if about.get("shortened") else None,
        left_out=omitted,
    )
    if about and about["step"] == about["looked_at"] == job.plan.steps:
        job = dataclasses.replace(job, is_trained=True)
    for short in cut_back(run_folder.root, about.get("records", {})):
        say(short)
    if found is None:
        _say_how_long(job)
    else:
        say(f"resumes from step {job.from_step} of {job.plan.steps} (checkpoints/{found.name})")
        if not job.is_trained and (short := short_of_room(run_folder.checkpoints, found)):
            say(f"warning: {short}")
    return job


def _say_how_long(job: Job) -> None:
    """Say where a run that begins ends, where that is not at the end of many steps."""
    config, of_epochs = job.config, job.plan.steps_per_epoch * job.config.epochs
    if most := config.schedule.max_steps:
        ends = f"ends at step {most:,} of" if most < of_epochs else f"({most:,}) is not reached in"
        say(f"schedule.max_steps {ends} the {of_epochs:,} steps of {config.epochs} epoch(s)")
    if few := few_steps(of_epochs, job.global_batch):
        say(f"warning: {few}.")


def _sizing(config: FinetuneConfig, run_folder: RunFolder) -> Sizing:
    """What was worked out when the run was admitted, unless other sizes are asked for now."""
    record = run_folder.record()
    assert record is not None
    sizing = Sizing(**record["sizing"])
    if config.batch_size > 0:
        return dataclasses.replace(sizing, batch_size=config.batch_size, gradients=0)
    return sizing


def _made_from(config: FinetuneConfig, store: TokenStore) -> dict[str, Any]:
    """Versions and digests for run.json: enough to make the run again."""
    names = ("torch", "transformers", "deepspeed", "tokenizers", "safetensors", "finetune-pipeline")
    return {
        "versions": {name: importlib.metadata.version(name) for name in names},
        "model": config.model,
        "tokens": config.tokens,
        "tokens_digest": store.digest,
        "tokenizer_digest": store.manifest.tokenizer_digest,
        "random_seed": config.random_seed,
        "trust_remote_code": config.trust_remote_code,
        "config": _recorded(config, store),
        **({"code": _code(config)} if config.trust_remote_code else {}),
    }


def _recorded(config: FinetuneConfig, store: TokenStore) -> dict[str, Any]:
    """The config, for run.json: what is of pairs alone only where there are pairs."""
    left_out = (*_NOT_RECORDED, *(() if store.manifest.of_pairs else ("preference",)))
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in left_out}


def _code(config: FinetuneConfig) -> dict[str, Any]:
    """Which code the model's folder holds: its commit on the hub, and each file's digest."""
    folder = path_on_volume(config.volume, "model", config.model)
    marker = readable_object(folder / ".fetched.json") or {}
    files = {path.name: file_digest(path) for path in sorted(folder.glob("*.py"))}
    return {"id": marker.get("id"), "commit": marker.get("commit"), "files": files}
