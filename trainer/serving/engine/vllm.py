"""vLLM in place of our own engine, on GPUs: the same requests in, the same events out.

vLLM has an environment of its own (it wants another transformers), so it is imported by name.
Written against `AsyncLLM` of vLLM 0.32.
Source: https://docs.vllm.ai/en/latest/api/vllm/v1/engine/async_llm.html
"""

import asyncio
import dataclasses
import importlib
import itertools
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from trainer.contract.errors import RequestError
from trainer.serving.engine.answer_text import AnswerText
from trainer.serving.engine.engine import Limits, QueueFullError
from trainer.serving.engine.sampling import Sampling
from trainer.serving.engine.sequences import (
    Event,
    FinishReason,
    Job,
    SequenceRequest,
    Sink,
    TokenLogprob,
)


class VllmEngine:
    """See `engine.Engine`; vLLM batches, we turn its tokens into text and into events."""

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        end_ids: frozenset[int],
        *,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        engine_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare vLLM for the model in `folder`; `start` loads it.

        Args:
            dtype: Precision to compute in: that of `final`, which the gate compares with.
            engine_args: More arguments of vLLM's AsyncEngineArgs, by name.
        Raises:
            RequestError: vLLM is not installed, or refuses an argument.
        """
        try:
            vllm = importlib.import_module("vllm")
        except ImportError as error:
            raise RequestError(
                "engine vllm is not installed (got serving's engine='vllm'). "
                "Take an image that has it, or leave engine out."
            ) from error
        self.tokenizer, self.limits, self.end_ids = tokenizer, limits, end_ids
        self.failure: str | None = None
        self.on_failure: Any = lambda: None
        self.num_answered = 0
        self.num_passes = 0  # vLLM's own metrics count them
        ours = {
            "model": str(folder),
            "dtype": dtype,
            "max_model_len": limits.max_total_tokens,
            "max_num_seqs": limits.max_batch,
            "trust_remote_code": trust_remote_code,
            "max_logprobs": 20,
        }
        self._arguments = _engine_arguments(vllm.AsyncEngineArgs, ours, engine_args or {})
        self._loop = asyncio.new_event_loop()
        self._llm: Any = None
        self._under_way: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm", daemon=True)

    def start(self) -> None:
        """Load the model; return when it can answer.

        Raises:
            RequestError: vLLM did not start; with its reason.
        """
        self._thread.start()
        self._started.wait()
        if self.failure:
            raise RequestError(f"the engine vllm did not start ({self.failure}). Its log says why.")

    def submit(self, requests: list[SequenceRequest], sink: Sink, adapter: str = "") -> Job:
        """Queue `requests`; see `Engine.submit`. There are no adapters here."""
        assert not adapter
        for request in requests:
            _refuse(request.sampling)
        if self.failure or self.under_way + len(requests) > self._most:
            raise QueueFullError(self.failure or f"{self.under_way} requests wait already")
        job = Job(sink, time.monotonic() + self.limits.request_seconds)
        for index, request in enumerate(requests):
            asyncio.run_coroutine_threadsafe(self._begin(index, request, job), self._loop)
        return job

    @property
    def _most(self) -> int:
        return self.limits.max_batch + self.limits.max_queue

    @property
    def waiting(self) -> int:
        return max(0, len(self._under_way) - self.limits.max_batch)

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    def close(self) -> None:
        """Finish what is running, then end the thread."""
        asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    # --- the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._llm = self._loop.run_until_complete(self._load())
        except Exception as error:  # noqa: BLE001 - vLLM's many; `start` raises it where it is seen
            self.failure = f"{type(error).__name__}: {error}"
            return
        finally:
            self._started.set()
        self._loop.run_forever()

    async def _load(self) -> Any:
        llm = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
        return llm.from_engine_args(self._arguments)

    async def _begin(self, index: int, request: SequenceRequest, job: Job) -> None:
        task = asyncio.create_task(self._answer(index, request, job))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _finish(self) -> None:
        await asyncio.gather(*self._under_way)
        self._llm.shutdown()

    async def _answer(self, index: int, request: SequenceRequest, job: Job) -> None:
        dead = importlib.import_module("vllm.v1.engine.exceptions").EngineDeadError
        answer = _Answer(index, request, self.tokenizer, self.end_ids)
        name = f"request-{next(self._numbers)}"
        prompt = {"prompt_token_ids": list(request.prompt_ids)}
        try:
            async for output in self._llm.generate(prompt, self._parameters(request), name):
                reason = _given_up(job)
                events = [answer.end(reason)] if reason else answer.events(output)
                self.num_answered += sum(event.token_id is not None for event in events)
                job.sink(events)
                if answer.finished:
                    return  # leaving the generator aborts what vLLM still has of it
        except dead as error:
            self.failure = f"vLLM ended: {error}"
            self.on_failure()
        except Exception as error:  # noqa: BLE001 - whatever it is, its client must hear of it
            print(f"vLLM failed on {name}: {type(error).__name__}: {error}", flush=True)
        finally:
            if not answer.finished:
                job.sink([answer.end("error")])

    def _parameters(self, request: SequenceRequest) -> Any:
        names = importlib.import_module("vllm.sampling_params")
        sampling = request.sampling
        return names.SamplingParams(
            max_tokens=max(1, request.max_new_tokens),
            min_tokens=request.min_new_tokens,
            temperature=sampling.temperature if sampling.do_sample else 0.0,
            top_k=sampling.top_k if sampling.do_sample else 0,
            top_p=sampling.top_p if sampling.do_sample else 1.0,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=dict(sampling.logit_bias) or None,
            seed=sampling.seed,
            stop_token_ids=sorted(self.end_ids),
            logprobs=request.top_logprobs,
            prompt_logprobs=(request.top_logprobs or 0) if request.prompt_logprobs else None,
            detokenize=False,  # ours cuts at stop sequences as our own engine does
            output_kind=names.RequestOutputKind.DELTA,
        )


class _Answer:
    """One answer running: vLLM's outputs in, events out."""

    def __init__(
        self,
        index: int,
        request: SequenceRequest,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
    ) -> None:
        self.finished = False
        self._index, self._request, self._end_ids = index, request, end_ids
        self._text = AnswerText(tokenizer, request.prompt_ids, request.stop, request.include_stop)
        self._count = 0
        self._told_prompt = not request.prompt_logprobs

    def end(self, reason: FinishReason, text: str = "") -> Event:
        self.finished = True
        return Event(index=self._index, text=text, finish=reason)

    def events(self, output: Any) -> list[Event]:
        """What one of vLLM's outputs tells."""
        made = []
        if not self._told_prompt and output.prompt_logprobs is not None:
            self._told_prompt = True
            pairs = zip(self._request.prompt_ids, output.prompt_logprobs, strict=True)
            scored = tuple(_scored(i, found, self._request.top_logprobs) for i, found in pairs)
            made.append(Event(index=self._index, prompt=scored))
        if self._request.max_new_tokens == 0:
            return [*made, self.end("length")]
        (completion,) = output.outputs
        found = completion.logprobs or [None] * len(completion.token_ids)
        for token_id, scores in zip(completion.token_ids, found, strict=True):
            if not self.finished:
                made.append(self._token(token_id, scores))
        return made

    def _token(self, token_id: int, scores: Any) -> Event:
        self._count += 1
        text, finish = self._text_and_finish(token_id)
        self.finished = finish is not None
        scored = self._request.top_logprobs is not None
        token = _scored(token_id, scores, self._request.top_logprobs) if scored else None
        return Event(index=self._index, text=text, token_id=token_id, token=token, finish=finish)

    def _text_and_finish(self, token_id: int) -> tuple[str, FinishReason | None]:
        if token_id in self._end_ids:
            return self._text.finish(), "stop"
        text = self._text.push(token_id)
        if self._text.stopped:
            return text, "stop"
        if self._count == self._request.max_new_tokens:
            return text + self._text.finish(), "length"
        return text, None


def _scored(token_id: int, scores: Any, top: int | None) -> TokenLogprob:
    """vLLM's log-probabilities of one place: the chosen token's, and the likeliest `top`."""
    if scores is None:
        return TokenLogprob(token_id=token_id, logprob=None)
    ranked = sorted(scores.items(), key=lambda item: -item[1].logprob)[: top or 0]
    likeliest = tuple((other, score.logprob) for other, score in ranked)
    return TokenLogprob(token_id=token_id, logprob=scores[token_id].logprob, top=likeliest)


def _engine_arguments(arguments: Any, ours: dict[str, Any], given: Mapping[str, Any]) -> Any:
    """vLLM's arguments, `given` ones included.

    Raises:
        RequestError: One is unknown, set by the pipeline, or refused by vLLM.
    """
    known = {field.name for field in dataclasses.fields(arguments)}
    problems = [
        f"serving.engine_args holds {name!r}, which the pipeline sets itself. Leave it out."
        for name in sorted(given.keys() & (ours.keys() - {"dtype"}))
    ]
    problems += [
        f"serving.engine_args holds an argument that vLLM does not have (got {name!r})."
        for name in sorted(given.keys() - known)
    ]
    if problems:
        raise RequestError(*problems)
    try:
        return arguments(**{**ours, **given})
    except (TypeError, ValueError) as error:
        raise RequestError(f"serving.engine_args is refused by vLLM ({error}).") from error


def _given_up(job: Job) -> FinishReason | None:
    if job.cancelled:
        return "cancelled"
    return "timeout" if time.monotonic() > job.deadline else None


def _refuse(sampling: Sampling) -> None:
    """Raise ValueError for what vLLM has not: it would have to be ignored."""
    lacking = {"typical_p": sampling.typical_p != 1.0, "penalty_alpha": sampling.penalty_alpha > 0}
    lacking["bad_words"] = bool(sampling.bad_words)
    for name, asked in lacking.items():
        if asked:
            raise ValueError(f"{name} can't be used with the engine vllm. Leave it out.")
