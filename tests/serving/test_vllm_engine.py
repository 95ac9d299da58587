"""vLLM behind the interface of our engine, with a stand-in that fails where vLLM can."""

import dataclasses
import queue
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import tiny_models
from trainer.contract.errors import RequestError
from trainer.contract.topics import ServingConfig
from trainer.serving.engine.engine import Limits
from trainer.serving.engine.sequences import Event, SequenceRequest
from trainer.serving.engine.vllm import VllmEngine

BAD_TOKEN = 299  # the stand-in refuses prompts that hold it


@dataclasses.dataclass
class EngineArgs:
    """The part of vLLM's AsyncEngineArgs that is used here."""

    model: str
    dtype: str = "auto"
    max_model_len: int = 0
    max_num_seqs: int = 0
    trust_remote_code: bool = False
    max_logprobs: int = 0
    enforce_eager: bool = False


class EngineDeadError(Exception):
    pass


class VllmValidationError(Exception):
    """Not a ValueError: any class of exception may come."""


class Llm:
    """Answers with token 7 again and again."""

    failure: Exception | None = None

    def __init__(self, arguments: EngineArgs) -> None:
        if self.failure:
            raise self.failure
        self.arguments = arguments

    @classmethod
    def from_engine_args(cls, arguments: EngineArgs) -> "Llm":
        return cls(arguments)

    async def generate(self, prompt: Any, parameters: Any, name: str) -> AsyncIterator[Any]:
        if BAD_TOKEN in prompt["prompt_token_ids"]:
            raise VllmValidationError("token id is out of range")
        for _ in range(parameters.max_tokens):
            completion = types.SimpleNamespace(token_ids=[7], logprobs=None)
            yield types.SimpleNamespace(prompt_logprobs=None, outputs=[completion])

    def shutdown(self) -> None:
        pass


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[Llm]:
    """A stand-in for the installed vLLM."""

    class Installed(Llm):
        pass

    names: dict[str, dict[str, Any]] = {
        "vllm": {"AsyncEngineArgs": EngineArgs},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": Installed},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
        "vllm.sampling_params": {
            "SamplingParams": types.SimpleNamespace,
            "RequestOutputKind": types.SimpleNamespace(DELTA="delta"),
        },
    }
    for name, members in names.items():
        module = types.ModuleType(name)
        for member, value in members.items():
            setattr(module, member, value)
        monkeypatch.setitem(sys.modules, name, module)
    return Installed


def engine(**options: Any) -> VllmEngine:
    limits = Limits(max_total_tokens=64, max_batch=4)
    return VllmEngine(Path("model"), tiny_models.tokenizer(), limits, frozenset([0]), **options)


def ask(served: VllmEngine, prompt: tuple[int, ...]) -> list[Event]:
    events: queue.Queue[Event] = queue.Queue()
    request = SequenceRequest(prompt_ids=prompt, max_new_tokens=3)
    served.submit([request], lambda told: [events.put(event) for event in told] and None)
    told = [events.get(timeout=60)]
    while told[-1].finish is None:
        told.append(events.get(timeout=60))
    return told


def test_request_that_vllm_refuses_ends_with_an_error_and_the_next_one_is_answered(
    vllm: type[Llm],
) -> None:
    served = engine()
    served.start()
    assert [event.finish for event in ask(served, (5, BAD_TOKEN))] == ["error"]
    assert [event.token_id for event in ask(served, (5, 6))] == [7, 7, 7]
    assert served.alive
    served.close()


def test_engine_that_does_not_start_is_refused_with_its_reason(
    vllm: type[Llm], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "failure", RuntimeError("no KV cache fits"))
    with pytest.raises(RequestError, match=r"did not start .RuntimeError: no KV cache fits"):
        engine().start()


def test_precision_and_arguments_reach_vllm(vllm: type[Llm]) -> None:
    served = engine(dtype="float32", engine_args={"enforce_eager": True})
    served.start()
    arguments = served._llm.arguments
    served.close()
    assert (arguments.dtype, arguments.enforce_eager) == ("float32", True)
    assert (arguments.max_model_len, arguments.max_num_seqs) == (64, 4)


@pytest.mark.parametrize(
    ("name", "words"),
    [("enforce_eagr", "does not have .got 'enforce_eagr'"), ("model", "'model', which the pipe")],
)
def test_argument_that_vllm_lacks_or_the_pipeline_sets_is_refused(
    vllm: type[Llm], name: str, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        engine(engine_args={name: "x"})


def test_arguments_of_vllm_are_refused_for_our_own_engine() -> None:
    with pytest.raises(ValueError, match="engine_args has no effect with engine='builtin'"):
        ServingConfig(engine_args={"enforce_eager": True})
