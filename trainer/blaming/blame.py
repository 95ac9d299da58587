"""Rank the texts of a run by influence on a target, then prove by replays which ones did it."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.blaming.halving import Group, Halving, OutOfBudgetError
from trainer.blaming.influence import influence
from trainer.blaming.interval import bootstrap
from trainer.blaming.repetitions import Repetitions
from trainer.blaming.states import State, model_at, states_of
from trainer.blaming.suspects import Texts, drawn_like, most_suspect, names_of, texts_of
from trainer.blaming.target import Question, Target, measured, target_of
from trainer.contract.checkpoints import name_of
from trainer.contract.errors import RequestError
from trainer.contract.events import say
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import verify
from trainer.contract.wording import format_seconds
from trainer.forgetting.recorded import checkpoint_digest, job_of, store_of
from trainer.plan.facts import step_seconds
from trainer.tokens.pair_contexts import refuse_pairs
from trainer.tokens.store import TokenStore
from trainer.training.job import Job

FORMAT = 1
CONTROLS = 2  # replays without texts that nobody suspects
STANDS_OUT = 2.0  # times the largest effect of a control
EXPLAINS = 0.6  # of the effect of all suspects
SHOWN = 10  # ranked texts in the report, each way


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run, and what is asked about it."""

    run: RunFolder
    job: Job
    store: TokenStore
    texts: Texts
    target: Target
    states: list[State]
    question: Question
    base: dict[str, Any]
    """Of the run itself, as `measured` has it."""

    @property
    def sign(self) -> int:
        return 1 if self.question.wanted == "worse" else -1

    def change(self, without: dict[str, Any], group: Group) -> float:
        """How much the texts of a group had raised the target's loss; below 0: lowered.

        Held-out text of their own is not counted: a bad text foretells itself best.
        """
        if self.target.is_held_out:
            differences, tokens = self._of_others(without, group)
            return float(differences.sum() / max(1, tokens.sum()))
        return self.base["loss"] - without["loss"]

    def held_out(self, without: dict[str, Any], group: Group) -> dict[str, Any]:
        """How much they had raised the held-out loss, with an interval over its documents."""
        differences, tokens = self._of_others(without, group)
        if not len(tokens):
            return {"change": None, "interval": None}
        return {
            "change": float(differences.sum() / tokens.sum()),
            "interval": bootstrap(differences, tokens, self.question.seed),
        }

    def _of_others(self, without: dict[str, Any], group: Group) -> tuple[np.ndarray, np.ndarray]:
        """By held-out document: the sum of differences, and the tokens; not of the group's own."""
        others = ~np.isin(self.texts.of_document[self.target.numbers], list(group))
        differences = np.array(self.base["sums"]) - np.array(without["sums"])
        return differences[others], np.array(without["tokens"])[others]


def blame(volume: Path, run: RunFolder, question: Question) -> dict[str, Any]:
    """The answer, see docs/forgetting.md.

    Raises:
        RequestError: The run can't be repeated, or has no such text.
    """
    case = _case(volume, run, question)
    replays = _repetitions(case)
    _say_plan(case, replays)
    scores = influence(case.job, case.store, case.target, case.texts, case.states)
    suspects, too_long = most_suspect(case.store, case.texts, case.sign * scores)
    proof = Proof(case, replays, suspects).prove()
    return {
        "format": FORMAT,
        "run": run.root.name,
        "question": question.to_record(),
        "loss": case.base["loss"],
        "held_out_documents": len(case.target.numbers),
        "states": [state.step for state in case.states],
        "ranked": {
            "worse": _ranked(case, scores, np.argsort(-scores, kind="stable")),
            "better": _ranked(case, scores, np.argsort(scores, kind="stable")),
        },
        "suspects": [names_of(case.store, case.texts, text) for text in suspects],
        "too_long": [names_of(case.store, case.texts, text) for text in too_long],
        **proof,
    }


def _case(volume: Path, run: RunFolder, question: Question) -> Case:
    job, store = job_of(run), store_of(run)
    refuse_pairs(store, "finetune blame")
    last = run.checkpoints / name_of(job.plan.steps)
    if not last.is_dir() or verify(last):
        raise RequestError(
            f"{run.root.name} has no good checkpoint of its last step ({job.plan.steps:,}) to "
            "compare with. Run it to its end, or again."
        )
    target = target_of(job, store, question)
    return Case(
        run=run,
        job=job,
        store=store,
        texts=texts_of(volume, store, (run.record() or {})["request"]["dataset"]),
        target=target,
        states=states_of(run, job),
        question=question,
        base=measured(target, model_at(job, last)),
    )


def _repetitions(case: Case) -> Repetitions:
    last = case.run.checkpoints / name_of(case.job.plan.steps)
    seconds = step_seconds(case.run.metrics) or 0.0
    return Repetitions(
        run=case.run,
        job=case.job,
        store=case.store,
        texts=case.texts,
        question=case.question,
        key=f"{FORMAT} {checkpoint_digest(last)} {case.store.digest} {case.question.digest}",
        seconds_each=seconds * case.job.plan.steps,
    )


def _say_plan(case: Case, replays: Repetitions) -> None:
    most, each = case.question.max_replays, replays.seconds_each
    rounds = -(-most // replays.at_a_time)
    limit = f", at most {case.question.max_hours:g} hours" if case.question.max_hours else ""
    say(
        f"ranks {len(case.texts.documents):,} texts at {len(case.states)} checkpoints, then up to "
        f"{most} replays of up to {case.job.plan.steps:,} steps, {replays.at_a_time} at a time: "
        f"up to {format_seconds(rounds * each)}{limit}"
    )


def _ranked(case: Case, scores: np.ndarray, order: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "documents": names_of(case.store, case.texts, text),
            "influence": float(scores[text]),
        }
        for text in order[:SHOWN].tolist()
    ]


@dataclass
class Proof:
    """The replays, and what they come to."""

    case: Case
    replays: Repetitions
    suspects: list[int]
    noise: float = 0.0
    """The largest effect of leaving out texts that nobody suspects."""

    def prove(self) -> dict[str, Any]:
        """Verdict, blamed texts with their measured effect, controls."""
        if not self.suspects:
            return self._answer("nothing", [])
        everything = frozenset(self.suspects)
        seed = self.case.question.seed
        controls = [
            drawn_like(self.case.store, self.case.texts, self.suspects, seed + n)
            for n in range(CONTROLS)
        ]
        try:
            self._effects([everything, *controls])
        except OutOfBudgetError:
            return self._answer("not measured", [])
        self.noise = max(abs(effect) for effect in self._effects(controls))
        [whole] = self._effects([everything])
        if not self._stands_out(everything):
            return self._answer("nothing", [], controls)
        halving = Halving(self._effects, EXPLAINS * whole, self.replays.at_a_time)
        found = halving.search(self.suspects)
        return self._judged(found, controls, is_cut=halving.is_cut)

    def _effects(self, groups: Sequence[Group]) -> list[float]:
        """How far each group had moved the loss the way that is asked about."""
        found = self.replays.measure(groups)
        pairs = zip(found, groups, strict=True)
        return [self.case.sign * self.case.change(*pair) for pair in pairs]

    def _stands_out(self, group: Group) -> bool:
        """Whether it did more than other texts do, and to held-out text as a whole."""
        [found], [effect] = self.replays.measure([group]), self._effects([group])
        if effect <= STANDS_OUT * self.noise:
            return False
        interval = self.case.held_out(found, group)["interval"]
        if not self.case.target.is_held_out or interval is None:
            return True
        return interval[0] > 0 if self.case.sign > 0 else interval[1] < 0

    def _judged(self, found: list[int], controls: list[Group], *, is_cut: bool) -> dict[str, Any]:
        """Blame what was found where it is few texts and stands out by itself."""
        try:
            stands_out = self._stands_out(frozenset(found))
        except OutOfBudgetError:
            stands_out = True  # with what was left out beside it, it explained the effect
        if is_cut and len(found) > 1:
            return self._answer("narrowed" if stands_out else "nothing", found, controls)
        if len(found) > max(2, len(self.suspects) // 4):
            return self._answer("nothing", found, controls)
        return self._answer("found" if stands_out else "nothing", found, controls)

    def _answer(
        self, verdict: str, found: list[int], controls: Sequence[Group] = ()
    ) -> dict[str, Any]:
        everything = frozenset(self.suspects)
        return {
            "verdict": verdict,
            "blamed": [self._alone(text) for text in found] if verdict == "found" else [],
            "narrowed_to": [self._names(text) for text in found] if verdict == "narrowed" else [],
            "together": self._measured(frozenset(found)) if found else None,
            "all_suspects": self._measured(everything) if everything else None,
            "controls": [self._measured(group) for group in controls],
            "replays": len(self.replays.done),
        }

    def _names(self, text: int) -> list[str]:
        return names_of(self.case.store, self.case.texts, text)

    def _alone(self, text: int) -> dict[str, Any]:
        """A text with what leaving it out alone does, as far as the budget allows."""
        with contextlib.suppress(OutOfBudgetError):
            self.replays.measure([frozenset([text])])
        return {"documents": self._names(text), "alone": self._measured(frozenset([text]))}

    def _measured(self, group: Group) -> dict[str, Any] | None:
        found = self.replays.done.get(group)
        if found is None:
            return None
        change, held_out = self.case.change(found, group), self.case.held_out(found, group)
        return {"change": change, "held_out": held_out}
