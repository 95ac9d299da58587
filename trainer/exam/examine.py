"""All checks on one model: from a config to a table of what is right and what is not."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.contract.topics import LoraConfig
from trainer.exam import checks, run_checks
from trainer.exam.small_copy import every_buffer_random, small_config, small_model
from trainer.exam.small_run import make_volume

CHECKS = {
    "final": "after training at rate 0, `final` equals the base model",
    "loss": "loss and gradients equal transformers' own",
    "causal": "the last token changes nothing before it",
    "cache": "the built-in server gives what whole passes give, alone and beside others",
    "lora": "a merged LoRA equals base plus adapter",
    "processes": "two processes train as one does",
    "resume": "a resumed run equals the unbroken one",
    "packed": "documents packed into a context (data.packing) have the losses of each alone",
}


@dataclass
class Examined:
    """What the exam found: `checks` by name, empty where it passed, else what is wrong."""

    model_type: str
    checks: dict[str, str] = field(default_factory=dict)
    not_examined: str = ""
    """Why no small copy could be made; then `checks` is empty."""


def examine(
    config: Any,
    *,
    zero_stage: int = 3,
    lora: LoraConfig | None = None,
    trust_remote_code: bool = False,
    only: tuple[str, ...] = tuple(CHECKS),
    after_check: Callable[["Examined"], None] = lambda found: None,
) -> Examined:
    """Examine the architecture that `config`, of transformers, describes.

    Args:
        zero_stage: That is asked for.
        lora: That is asked for; None: the default one.
        only: Which of CHECKS to make.
        after_check: Is given what is known so far.
    """
    load_for_forks()
    found = Examined(str(getattr(config, "model_type", "")))
    try:
        model, ids = small_copy(config, trust_remote_code)
    except Exception as error:  # noqa: BLE001  model code raises anything
        found.not_examined = _said(error)
        return found
    with tempfile.TemporaryDirectory(prefix="finetune-exam-") as folder:
        for name, check in _checks(model, ids, Path(folder), zero_stage, lora, trust_remote_code):
            if name in only:
                found.checks[name] = _outcome(check)
                after_check(found)
    return found


def load_for_forks() -> None:
    """Load what takes long, with one thread: a fork of a process with more may not compute."""
    import peft  # noqa: F401

    import trainer.training.process  # noqa: F401
    from trainer.training.engine.start_up import import_deepspeed

    torch.set_num_threads(1)
    import_deepspeed()


def small_copy(config: Any, trust_remote_code: bool = False) -> tuple[Any, torch.Tensor]:
    """A small model of the architecture that computes something, and ids to compute it from."""
    for heads in (2, 8):  # CodeGen has its heads in groups of four
        try:
            model = small_model(small_config(config, heads), trust_remote_code=trust_remote_code)
            ids = checks.some_ids(model.config.get_text_config().vocab_size)
            checks.plain_logits(model, ids)
            return model, ids
        except Exception:
            if heads == 8:
                raise
    raise AssertionError("unreachable")


def _checks(
    model: Any,
    ids: torch.Tensor,
    volume: Path,
    zero_stage: int,
    lora: LoraConfig | None,
    code: bool,
) -> list[tuple[str, Callable[[], None]]]:
    """The checks in the order they are made: the swift ones first."""
    with every_buffer_random(model):
        make_volume(volume, model)
    if code:
        _copy_code(model, volume / "models/small")
    whole: list[Any] = []  # the run, or what it failed with

    def unbroken() -> Any:
        if not whole:
            try:
                whole.append(run_checks.unbroken_run(volume, code))
            except (RuntimeError, checks.Failed) as error:
                whole.append(error)
        if isinstance(whole[0], Exception):
            raise whole[0]
        return whole[0]

    return [
        ("causal", lambda: checks.check_causality(model, ids)),
        ("cache", lambda: checks.check_cache(model, ids, checks.served)),
        ("final", lambda: run_checks.check_final(volume, code)),
        ("resume", lambda: run_checks.check_resume(volume, unbroken(), code)),
        ("processes", lambda: run_checks.check_processes(volume, unbroken(), zero_stage, code)),
        ("lora", lambda: run_checks.check_adapters(volume, lora or LoraConfig(), code)),
        ("loss", lambda: checks.check_loss(model, ids)),  # it changes the model's head
        ("packed", lambda: checks.check_packed(model, ids)),
    ]


def _copy_code(model: Any, folder: Path) -> None:
    """Bring the model's own code files beside the small copy's weights."""
    import inspect
    import shutil

    source = Path(inspect.getfile(type(model))).parent
    for path in source.glob("*.py"):
        shutil.copy(path, folder)


def _outcome(check: Callable[[], None]) -> str:
    """Empty where the check passes, else what is wrong in one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check()
        except checks.Failed as failed:
            return str(failed)
        except Exception as error:  # noqa: BLE001  a crash is a finding like any other
            return _said(error)
    return ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
