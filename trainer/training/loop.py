"""The training loop of one process: batches in, optimizer steps, checkpoints and figures out."""

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.contract import events
from trainer.contract.errors import Interrupted
from trainer.contract.events import say
from trainer.report import journal
from trainer.tokens.pair_contexts import loss_terms
from trainer.tokens.store import TokenStore
from trainer.training.data.batches import Batch, read_ahead
from trainer.training.engine.engine import WITHOUT_UPDATE, Engine
from trainer.training.engine.partitions import bring_up_to_date
from trainer.training.job import Job
from trainer.training.limits import budget
from trainer.training.limits.skipping import (
    SKIPPED_IN_ROW,
    BadNumbersError,
    skipped_line,
    suspects_of,
)
from trainer.training.limits.stopping import StopRequest, too_late
from trainer.training.record.instruments import Instruments
from trainer.training.record.measures import Measures
from trainer.training.record.recorder import Recorder
from trainer.training.record.validate_and_sample import Looks
from trainer.training.save.saving import Saver
from trainer.training.save.seeds_and_records import (
    engine_record,
    finite,
    left_out_fields,
    reward_fields,
    seed_of,
)
from trainer.training.schedule import Shortened


@dataclass
class Progress:
    """How far the run is: what a checkpoint's manifest says beside the weights."""

    step: int = 0
    tokens: int = 0  # trained on so far
    seconds: float = 0.0  # of training, in all processes the run ever had
    loss: float | None = None
    eval_loss: float | None = None
    looked_at: int = -1  # the last step at which validation or samples were made
    skipped_in_row: int = 0  # steps whose numbers were not finite, up to now
    shortened: Shortened | None = None  # the schedule, by the budget
    ends: list[list[int]] = field(default_factory=list)  # how often, as in BudgetConfig
    records: dict[str, int] = field(default_factory=dict)  # bytes of metrics.jsonl, ...


class Loop:
    """Trains from `progress.step` to the plan's last step."""

    def __init__(
        self,
        job: Job,
        engine: Engine,
        store: TokenStore,
        saver: Saver,
        stop: StopRequest,
        progress: Progress,
        looks: Looks,
    ) -> None:
        self.job, self.engine, self.store = job, engine, store
        progress.shortened = job.shortened or progress.shortened
        self.plan = replace(job.plan, shortened=progress.shortened)
        self.saver, self.stop, self.progress, self.looks = saver, stop, progress, looks
        self.first = engine.options.rank == 0
        self.recorder = Recorder(job, progress.step) if self.first else None
        self.measures = Measures(job, engine, store, saver)
        measured = job.measured_from
        self.instruments = Instruments(engine, store, job.run.root, measured) if measured else None
        self._began = time.monotonic() - progress.seconds
        self._saved_at = time.monotonic()
        self._warned = False
        self._saved_step = progress.step or -1

    @property
    def end(self) -> int:
        return self.job.until or self.plan.steps

    def run(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: A signal came; everything up to here is saved.
        """
        written = journal.current()
        if written is not None:
            written.went_on_from(self.progress.step)
        try:
            with journal.phase("compute"):
                self._run()
        finally:
            if self.recorder is not None:
                self.recorder.close()

    def _run(self) -> None:
        options, plan = self.engine.options, self.plan
        shares = (
            plan.share(plan.contexts_of(step), options.rank, options.world)
            for step in range(self.progress.step, self.end)
        )
        self._look(self._is_due_by_count())
        self._stop_or_go_on()
        rows = options.batch_size if options.compile else 0
        on_gpu = self.engine.device.type == "cuda"
        batches = read_ahead(self.store, shares, rows, pin=on_gpu)
        while self.progress.step < self.end:
            began = time.monotonic()
            with self.measures.pace.timing("data"):
                share = next(batches)
            self._measured(share, began) if self.instruments else self._train(share, began)
            self._keep_to_budget()
            is_due = self._is_due()
            self._look(is_due)
            if is_due:
                self._save()
            self._stop_or_go_on()
        self._save()
        with journal.phase("checkpoint stall"):
            self.saver.wait()

    def _measured(self, share: list[Batch], began: float) -> None:
        """Do the next step of a replay, with all that is measured around it."""
        assert self.instruments is not None
        contexts = self.plan.kept(self.plan.contexts_of(self.progress.step))
        self.instruments.before(self.progress.step + 1, contexts)
        try:
            self._train(share, began)
        except BadNumbersError:  # in every process alike, at the very step that is looked for
            self.instruments.after(self.progress.step)
            raise
        self.instruments.after(self.progress.step)

    def _train(self, share: list[Batch], began: float) -> None:
        """Do the next optimizer step."""
        engine, plan, progress = self.engine, self.plan, self.progress
        step = progress.step  # 0 to steps - 1
        torch.manual_seed(seed_of(plan.seed, step, engine.options.rank))
        whole = plan.contexts_of(step)
        contexts = plan.kept(whole)
        tokens, terms = self.store.trained_tokens(contexts), loss_terms(self.store, contexts)
        losses, rewards = [], []
        for batch in share:
            loss = engine.loss(*batch.given)
            engine.backward(loss / max(1, terms))
            losses.append(loss.detach())
            rewards.append(engine.rewards)
        self.saver.let_change()
        report = engine.step(plan.learning_rate(step), losses) if share else WITHOUT_UPDATE
        total, host_gib = engine.sum_over_processes(report.loss, self.measures.host_gib())
        mean = total / max(1, terms)
        progress.step, progress.loss = step + 1, mean if share else progress.loss
        if report.applied and share:
            progress.tokens += tokens
            progress.skipped_in_row = 0
        progress.seconds = time.monotonic() - self._began
        line = {
            "step": step + 1,
            "epoch": plan.place(step)[0] + 1,
            "loss": finite(mean),
            "learning_rate": plan.learning_rate(step),
            "grad_norm": finite(report.grad_norm),
            "tokens": progress.tokens,
            "tokens_per_second": tokens / (time.monotonic() - began),
            "seconds": progress.seconds,
            "host_memory_gib": host_gib,
            **reward_fields(engine, rewards, terms),
            **self.measures.of_step(contexts, time.monotonic() - began),
            **left_out_fields(len(whole), len(contexts), updates=bool(share)),
        }
        if self.recorder is not None:
            self.recorder.metric(line if report.applied else {**line, "skipped": True})
            self._report(line)
        if not report.applied:
            self._skip(whole, losses)

    def _skip(self, contexts: np.ndarray, losses: list[Tensor]) -> None:
        """Name what made a step's numbers bad; give up when it happens again and again."""
        engine, progress = self.engine, self.progress
        suspects = suspects_of(engine, self.plan, contexts, losses)
        if suspects is None:
            return  # fp16: the loss scale was too high, and is lower now
        progress.skipped_in_row += 1
        if self.recorder is not None:
            self.recorder.skipped(skipped_line(self.store, progress.step, suspects))
        if progress.skipped_in_row == SKIPPED_IN_ROW:
            self.saver.wait()
            raise BadNumbersError(progress.step, self.job.config.run_name)

    def _report(self, line: dict[str, Any]) -> None:
        done, total = self.progress.step, self.plan.steps
        events.progress(
            label="finetune",
            done=done,
            total=total,
            unit="steps",
            loss=line["loss"],
            tokens_per_second=line["tokens_per_second"],
            remaining_seconds=self.measures.remaining_seconds(done, total, recent=True),
        )

    def _keep_to_budget(self) -> None:
        """Let the schedule end earlier where the budget would be over before it."""
        done, end = self.progress.step, self.plan.steps
        decided = dict(self.job.config.budget.ends)
        if done == end or not (decided or self.job.end_by):
            return
        last = decided.get(done, end)
        if self.first and not decided:  # its clock alone counts
            last = budget.last_step(
                done,
                end,
                self.plan.whole_steps,
                left=self.job.end_by - time.time(),
                measured=self.measures.pace.seconds("step"),
                remaining_seconds=lambda e: self.measures.remaining_seconds(done, e),
            )
        last = int(self.engine.sum_over_processes(last if self.first else 0)[0])
        if last == end:
            return
        self.plan = self.plan.shortened_to(last, begin=done)
        self.progress.shortened = self.plan.shortened
        self.progress.ends.append([done, last])
        if self.first:
            say(
                f"budget: there is time for {last:,} of {self.plan.whole_steps:,} steps. "
                f"{self.plan.last_rate_in_words}, and the model is finished with it."
            )

    def _is_due_by_count(self) -> bool:
        step, every = self.progress.step, self.job.config.save_steps
        return step == self.end or bool(every and step % every == 0)

    def _is_due(self) -> bool:
        """Whether to save: by count, at the end, or by the clock."""
        minutes = self.job.config.checkpoints.every_minutes
        if self._is_due_by_count():
            return True
        if not minutes:
            return False
        by_clock = time.monotonic() - self._saved_at > 60 * minutes
        # Clocks differ, the decision must not: the first process decides.
        return self.engine.sum_over_processes(by_clock and self.first)[0] > 0

    def _look(self, is_due: bool) -> None:
        """Validate and sample where this step calls for it and it was not done yet.

        A signal in between ends it without a trace: it is done after going on again, unless
        the clock alone called for it.

        Args:
            is_due: Whether a checkpoint is about to be made.
        """
        progress, pace, loss, samples = self.progress, self.measures.pace, None, []
        is_last = progress.step == self.plan.steps
        validate, write = self.looks.called_for(progress.step, is_due, is_last)
        if progress.looked_at == progress.step or not (validate or write):
            return
        if validate:
            with pace.timing("validation"):
                loss = self.looks.held_out_loss(self._agreed_to_go_on)
        if write:
            with pace.timing("samples"):
                samples = self.looks.samples(progress.step, self._agreed_to_go_on)
        if not self._agreed_to_go_on():
            return
        progress.looked_at = progress.step
        if loss is not None and (is_due or is_last):  # a checkpoint's loss is of its own weights
            progress.eval_loss = loss
        if self.recorder is None:
            return
        if loss is not None:
            self.recorder.metric({"step": progress.step, "eval_loss": loss})
        for line in samples:
            self.recorder.sample(line)

    def _save(self) -> None:
        """Save, unless this step is saved already."""
        if self._saved_step == self.progress.step:
            return
        about = {"kind": "checkpoint", **self.plan.to_record(), **engine_record(self.engine)}
        if self.recorder is not None:
            self.progress.records = self.recorder.synced_sizes()
        with self.measures.pace.timing("checkpoint"):
            bring_up_to_date(self.engine)
            self.saver.save(self.progress.step, {**about, **asdict(self.progress)})
        if (written := journal.current()) is not None:
            written.saved(self.progress.step)
        self._saved_step, self._saved_at = self.progress.step, time.monotonic()

    def _warn_of_slow_saves(self) -> None:
        """Say once when a SIGTERM that came now would leave no time to save."""
        if not self.first or self._warned:
            return
        step, save = self.measures.pace.mean("step"), self.saver.seconds
        if warning := too_late(step, save, self.saver.busy, self.job.config.grace_seconds):
            self._warned = True
            say(warning)

    def _agreed_to_go_on(self) -> bool:
        """Whether no process was asked to stop: the same answer in all of them."""
        return self.engine.sum_over_processes(bool(self.stop))[0] == 0

    def _stop_or_go_on(self) -> None:
        """Raise Interrupted, once all is saved, if any process was asked to stop."""
        self.saver.check()
        self._warn_of_slow_saves()
        if self._agreed_to_go_on() or self.progress.step == self.end:
            return
        if self.progress.step:
            self._save()
        with journal.phase("checkpoint stall"):
            self.saver.wait()
        raise Interrupted(
            f"stopped by {self.stop.reason or 'another process'} after step "
            f"{self.progress.step} of {self.plan.steps}"
        )
