"""Find out how the built-in engine can serve a model: batched, alone, or not at all.

    how = how_to_serve(model)        a few forward passes; also on a small copy of the model

Each way is tried on the model, from the fastest to the slowest, and compared token by
token with whole passes without any cache. So a model that nobody here has seen is served
by what is right for it, and no list of names decides.

    batched         prompts are read together in pieces, left-padded; answers share a batch
    prompts_alone   each prompt is read alone and whole; answers share a batch
    taking_turns    each sequence has a cache of its own, which transformers makes
    one_at_a_time   the same, and the next sequence waits for the end of this one
    whole_passes    no cache: each token costs a pass over the whole text, so it is slow
    vllm_only       even whole passes fail here; vLLM may serve it
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from trainer.serving.alone import AloneReader
from trainer.serving.engine.kv_cache import BatchCache, LayerPlan, layer_plan
from trainer.serving.model_calls import ModelCall, whole_pass
from trainer.serving.rope_limits import RopeLimits, rope_limits

Way = Literal[
    "batched", "prompts_alone", "taking_turns", "one_at_a_time", "whole_passes", "vllm_only"
]

# Largest difference of the logits from those of whole passes, as a share of their spread over the
# vocabulary. Measured on 77 tiny architectures: right caches 3e-4 at most in float32, wrong ones
# 7e-3 at least. Half precisions round; a router of experts may then choose another one.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
PROMPT_TOKENS = (20, 5, 13)  # two read together, one that joins them; most windows of tests are 16
ANSWER_TOKENS = 4
PIECE_TOKENS = 8  # of the prompts read together: padding alone fills a piece of the second one
CROSSING_TOKENS = 96  # a change of rotary frequencies is tried where it comes this early
# What a model's code may raise when it is given a cache that it does not expect.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class HowToServe:
    """What the engine does with a model."""

    way: Way
    rope: RopeLimits = field(default_factory=RopeLimits)
    plan: LayerPlan = ()  # of the cache of a batch
    bytes_per_token: int = 0  # of keys and values in a batch; 0: not batched
    reasons: tuple[str, ...] = ()  # why each faster way is not used

    @property
    def is_batched(self) -> bool:
        return self.way in ("batched", "prompts_alone")

    @property
    def sentence(self) -> str:
        """What a user should know before training and when the server starts."""
        told = {
            "batched": "answers share batches",
            "prompts_alone": "prompts are read one by one, answers share batches",
            "taking_turns": "each sequence has its own cache: no batches, so it is slower",
            "one_at_a_time": "one sequence is answered at a time, so others wait",
            "whole_passes": "no cache is right for it: each token reads the whole text, slowly",
            "vllm_only": "the engine builtin can't serve it: set serving's engine to vllm",
        }[self.way]
        return told + (f" ({'; '.join(self.reasons)})" if self.reasons else "")

    def shares_batch(self, most_tokens: int) -> bool:
        """Whether a sequence of at most `most_tokens` may share a batch with others."""
        shortest = self.rope.shortest
        return self.is_batched and (shortest is None or most_tokens <= shortest)


class WrongAnswerError(Exception):
    """A way gives other logits than whole passes."""


@torch.inference_mode()
def how_to_serve(model: Any) -> HowToServe:
    """The fastest way that gives, token by token, what whole passes give.

    Args:
        model: A causal language model in evaluation mode, on its device.
    """
    trial = _Trial(model)
    try:
        trial.read_whole()
    except FAILURES as error:
        _raise_if_out_of_memory(error)
        return HowToServe(way="vllm_only", reasons=(f"whole passes: {_sentence(error)}",))
    tries: tuple[tuple[Way, Callable[[], int]], ...] = (
        ("batched", trial.batched),
        ("prompts_alone", trial.prompts_alone),
        ("taking_turns", trial.taking_turns),
        ("one_at_a_time", trial.one_at_a_time),
    )
    reasons: list[str] = []
    for way, attempt in tries:
        try:
            size = attempt()
            return HowToServe(
                way=way,
                rope=trial.rope,
                plan=trial.plan if size else (),
                bytes_per_token=size,
                reasons=tuple(reasons),
            )
        except (WrongAnswerError, *FAILURES) as error:
            _raise_if_out_of_memory(error)
            reasons.append(f"{way}: {_sentence(error)}")
    return HowToServe(way="whole_passes", rope=trial.rope, reasons=tuple(reasons))


class _Trial:
    """The texts of one examination, and the ways to read them."""

    def __init__(self, model: Any) -> None:
        self._call = ModelCall(model)
        self.rope = rope_limits(model.config)
        self._tolerance = TOLERANCES.get(model.dtype, 0.2)
        self._plan: LayerPlan | None = None
        vocabulary = model.get_input_embeddings().weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        shortest = self.rope.shortest
        room = min(shortest or 10**9, PROMPT_TOKENS[0] + ANSWER_TOKENS) - ANSWER_TOKENS
        self._prompts = [max(1, min(length, room)) for length in PROMPT_TOKENS]
        self._texts = [
            torch.randint(0, vocabulary, (length + ANSWER_TOKENS,), generator=generator)
            for length in self._prompts
        ]
        self._whole: list[torch.Tensor] = []
        crossing = shortest if shortest is not None and shortest <= CROSSING_TOKENS else 0
        self._crossing = torch.randint(0, vocabulary, (crossing + 2,), generator=generator)
        self._crosses = crossing > 1

    @property
    def plan(self) -> LayerPlan:
        if self._plan is None:
            self._plan = layer_plan(self._call.model.config)
        return self._plan

    def read_whole(self) -> None:
        """Read each text in one pass; raise where that is not possible, or not reproducible."""
        self._whole = [whole_pass(self._call, text, ANSWER_TOKENS + 1) for text in self._texts]
        again = whole_pass(self._call, self._texts[0], ANSWER_TOKENS + 1)
        if not bool(torch.isfinite(again).all()):
            raise ValueError("its logits are not finite")
        if _distance(again, self._whole[0]) > self._tolerance:
            raise ValueError("two passes over one text give different logits")

    def batched(self) -> int:
        """Prompts read together in pieces, one that joins, one that leaves; bytes per token."""
        incoming = BatchCache(prompts=2, plan=self.plan)
        lengths, longest = self._prompts[:2], max(self._prompts[:2])
        last: torch.Tensor | None = None
        for begin in range(0, longest, PIECE_TOKENS):
            end = min(begin + PIECE_TOKENS, longest)
            rows = [_padded(self._texts[row], lengths[row], longest)[begin:end] for row in (0, 1)]
            after = [max(0, length - (longest - end)) for length in lengths]
            last = self._forward(incoming, torch.stack(rows), after)
        assert last is not None
        return self._answer_together(incoming, [last[0], last[1]])

    def prompts_alone(self) -> int:
        """As `batched`, but each prompt is read alone in one pass; bytes per token."""
        first, logits = self._read_alone(0)
        second, more = self._read_alone(1)
        first.join(second, [0])
        return self._answer_together(first, [logits, more])

    def one_at_a_time(self) -> int:
        """Each text with transformers' own cache, to its end before the next one begins."""
        for row in range(len(self._texts)):
            reader = AloneReader(self._call, cached=True, rope=self.rope)
            for place in range(ANSWER_TOKENS + 1):
                self._read_next(reader, row, place)
        if self._crosses:
            self._cross()
        return 0

    def taking_turns(self) -> int:
        """Each text with transformers' own cache, one token of each in turn."""
        readers = [AloneReader(self._call, cached=True, rope=self.rope) for _ in self._texts]
        for place in range(ANSWER_TOKENS + 1):
            for row, reader in enumerate(readers):
                self._read_next(reader, row, place)
        if self._crosses:
            self._cross()
        return 0

    def _read_next(self, reader: AloneReader, row: int, place: int) -> None:
        """Read a prompt, or one token behind it."""
        end = self._prompts[row] + place
        logits = reader.read(self._texts[row][reader.num_read : end].tolist())
        self._compare(logits[-1], self._whole[row][place])

    def _cross(self) -> None:
        """A text that grows beyond the length at which its rotary frequencies change."""
        reader = AloneReader(self._call, cached=True, rope=self.rope)
        begin = len(self._crossing) - 4
        for end in range(begin, len(self._crossing) + 1):
            new = self._crossing[reader.num_read : end].tolist()
            self._compare(reader.read(new)[-1], whole_pass(self._call, self._crossing[:end])[-1])

    def _read_alone(self, row: int) -> tuple[BatchCache, torch.Tensor]:
        cache, prompt = BatchCache(prompts=1, plan=self.plan), self._prompts[row]
        return cache, self._forward(cache, self._texts[row][:prompt].unsqueeze(0), [prompt])[0]

    def _answer_together(self, cache: BatchCache, read: list[torch.Tensor]) -> int:
        """Let the third text join, read all token by token, and let the first one leave."""
        third, logits = self._read_alone(2)
        cache.join(third, [0])
        for row, seen in enumerate([*read, logits]):
            self._compare(seen, self._whole[row][0])
        rows = [0, 1, 2]  # texts, in the order of the rows
        for place in range(ANSWER_TOKENS):
            if place == ANSWER_TOKENS // 2:
                cache.leave(0)
                rows = [2, 1]
            ids = torch.stack([self._texts[r][self._prompts[r] + place, None] for r in rows])
            answers = self._forward(cache, ids, [length + 1 for length in cache.lengths])
            for row, seen in zip(rows, answers, strict=True):
                self._compare(seen, self._whole[row][place + 1])
        return cache.bytes_per_token or 1

    def _forward(
        self, cache: BatchCache, ids: torch.Tensor, lengths_after: list[int]
    ) -> torch.Tensor:
        """Logits of the last column, shape (rows, vocabulary)."""
        mask, positions = cache.inputs_for(lengths_after, ids.shape[1])
        name = self._call.cache_argument
        output = self._call(ids, mask, positions, cache={name: cache}, keep=1)
        cache.advance(lengths_after, ids.shape[1])
        return output.logits[:, -1].float().cpu()

    def _compare(self, seen: torch.Tensor, whole: torch.Tensor) -> None:
        distance = _distance(seen, whole)
        if not distance <= self._tolerance:
            raise WrongAnswerError(
                f"its logits differ from those of whole passes by {distance:.2g} of their spread"
            )


def _padded(text: torch.Tensor, length: int, longest: int) -> torch.Tensor:
    return torch.nn.functional.pad(text[:length], (longest - length, 0))


def _distance(seen: torch.Tensor, whole: torch.Tensor) -> float:
    """How far logits are apart, as a share of their spread over the vocabulary."""
    seen, whole = seen.log_softmax(-1), whole.log_softmax(-1)
    spread = whole.std(-1).clamp(min=1e-6)
    apart = (seen - whole).square().mean(-1).sqrt()
    return float((apart / spread).max())


def _raise_if_out_of_memory(error: Exception) -> None:
    if isinstance(error, torch.OutOfMemoryError):
        raise error


def _sentence(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if isinstance(error, WrongAnswerError) else f"{type(error).__name__}: {first}"
