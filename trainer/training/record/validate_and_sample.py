"""What is looked at while a model trains: its held-out loss, and what it writes after prompts."""

from collections.abc import Callable
from typing import Any

from trainer.models import load_tokenizer
from trainer.models.chat_prompts import as_in_store, prompt_encoder
from trainer.models.end_of_text import ids_that_end
from trainer.models.generation import read_prompts, sample
from trainer.planning.step_count import curve_steps
from trainer.tokens.store import TokenStore
from trainer.training.data.validation import held_out_loss
from trainer.training.engine.engine import Engine
from trainer.training.job import Job
from trainer.training.save.seeds_and_records import seed_of


class Looks:
    """Of one process; every process looks at the same time, and stops looking at the same time."""

    def __init__(self, job: Job, engine: Engine, store: TokenStore) -> None:
        self._config, self._engine, self._store = job.config, engine, store
        # Of the whole schedule: a budget may end it earlier, which a resumed run can't know.
        self._curve_steps = curve_steps(job.plan.whole_steps, job.config.save_steps)
        tokenizer = load_tokenizer(job.tokenizer_path, job.config.trust_remote_code)
        self._tokenizer = as_in_store(tokenizer, store.manifest)
        self._encode = prompt_encoder(self._tokenizer, store.manifest)
        self._end_ids = ids_that_end(job.path("model"), store.manifest.eot_token_id)
        self._prompts: list[str] = []
        if job.config.prompt_file and job.config.sampling.writes:
            self._prompts = read_prompts(job.path("prompt_file").read_text(encoding="utf-8"))

    def called_for(self, step: int, is_due: bool, is_last: bool) -> tuple[bool, bool]:
        """Whether to validate and whether to sample after `step` steps.

        Args:
            is_due: Whether a checkpoint is made then: it says the loss of its own weights.
        """
        saves, every = is_due or is_last, self._config.prompt_every
        samples = step == 0 or is_last or (step % every == 0 if every else saves)
        validate = (saves and step > 0) or step in self._curve_steps
        return validate, samples and bool(self._prompts)

    def held_out_loss(self, go_on: Callable[[], bool]) -> float | None:
        """The loss on the held-out contexts; None where there are none, or when stopped."""
        engine, options = self._engine, self._engine.options
        with engine.evaluating():
            return held_out_loss(
                engine.loss,
                self._store,
                options.batch_size,
                options.rank,
                options.world,
                engine.sum_over_processes,
                go_on,
            )

    def samples(self, step: int, go_on: Callable[[], bool]) -> list[dict[str, Any]]:
        """What the model writes after each prompt: lines of samples.jsonl."""
        engine, config = self._engine, self._config
        synced = engine.options.zero_stage == 3 and engine.options.world > 1
        lines = []
        with engine.evaluating():
            for number, prompt in enumerate(self._prompts):
                if not go_on():
                    break
                seed = seed_of(config.random_seed, step, number)
                given = (engine.model, self._tokenizer, [self._encode(prompt)])
                [texts] = sample(*given, config.sampling, seed, synced, self._end_ids)
                lines.append({"step": step, "prompt": prompt, "texts": texts})
        return lines
