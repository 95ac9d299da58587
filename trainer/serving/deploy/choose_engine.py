"""Which engine serves a run's model: as asked, and as the model exam allows. Loads no torch.

builtin   refused where check d) of the exam found its answers wrong
vllm      as asked
auto      vllm where check d) found the built-in engine's answers wrong. Else the server chooses
          where it starts: vLLM if that is installed and there is a GPU, else the built-in one.
"""

import importlib.util

from trainer.contract.errors import RequestError
from trainer.contract.parameter_types import ServingEngine
from trainer.contract.run_folder import RunFolder
from trainer.devices import has_gpu
from trainer.exam.kept import builtin_wrong_in


def wrong_of(folder: RunFolder) -> str:
    """What the exam of the run's fetch step found wrong with the built-in engine; '': nothing."""
    fetched = folder.outcome("fetch")
    return builtin_wrong_in(fetched.result.get("exam") or {}) if fetched else ""


def engine_for(asked: str, wrong: str, run_name: str) -> str:
    """The engine that a server of the run is started with.

    Args:
        asked: `serving.engine`.
        wrong: What `wrong_of` said.
        run_name: Of the run, for the error.
    Raises:
        RequestError: It can't be the one that was asked for.
    """
    if not wrong or asked == "vllm":
        return asked
    if asked == "auto":
        return "vllm"
    raise RequestError(
        f"serving.engine={asked} would answer wrongly with the model of {run_name!r} (got {wrong}, "
        "in the model exam). Set serving.engine=vllm, on a GPU, or serve `final` elsewhere."
    )


def cannot_be_tried(asked: str, wrong: str) -> bool:
    """Whether this machine has nothing that answers rightly with the model."""
    return bool(wrong) and asked != "vllm" and engine_here("auto") == "builtin"


def engine_here(asked: ServingEngine) -> ServingEngine:
    """What `auto` is on this machine; any other engine is itself."""
    if asked != "auto":
        return asked
    return "vllm" if importlib.util.find_spec("vllm") and has_gpu() else "builtin"
