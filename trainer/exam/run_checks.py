"""Check a small model by short runs: `final`, a resume, two processes, adapters."""

import shutil
from pathlib import Path
from typing import Any

import torch

from trainer.contract.checkpoints import name_of
from trainer.contract.run_folder import RunFolder
from trainer.contract.topics import LoraConfig
from trainer.exam.checks import SAME, Failed, plain_logits, some_ids
from trainer.exam.small_run import SAVE_STEPS, STEPS, losses, train_small
from trainer.training.engine.four_bits import round_to_four_bits

RATE = 1e-3
LORA_RATE = 2e-2  # so that adapters change something in a few steps


def check_final(volume: Path, trust_remote_code: bool) -> None:
    """After training at rate 0 `final` equals the base model, tensor by tensor, buffers too."""
    run = train_small(volume, "rate-0", learn_rate=0.0, trust_remote_code=trust_remote_code)
    base, final = (_state(f, trust_remote_code) for f in (volume / "models/small", run.final))
    if other := base.keys() ^ final.keys():
        raise Failed(f"`final` has other tensors than the base model, as {min(other)}")
    changed = [name for name in base if not torch.equal(base[name], final[name])]
    if changed:
        raise Failed(
            f"at rate 0 `final` differs from the base model in {len(changed)} tensors, "
            f"as {changed[0]}"
        )
    found = losses(run)
    if found[-1] != found[-1]:
        raise Failed("the held-out loss is not a number")


def check_processes(volume: Path, one: RunFolder, zero_stage: int, trust_remote_code: bool) -> None:
    """Two processes, split as requested, train as one does."""
    two = train_small(
        volume,
        "two",
        learn_rate=RATE,
        processes=2,
        zero_stage=zero_stage,
        trust_remote_code=trust_remote_code,
    )
    far = max(abs(a - b) for a, b in zip(losses(one), losses(two), strict=True))
    if not far <= 10 * SAME:
        raise Failed(f"two processes with zero_stage={zero_stage} get losses off by {far:.2g}")


def check_resume(volume: Path, whole: RunFolder, trust_remote_code: bool) -> None:
    """A resumed run equals the unbroken one."""

    def begin(run: RunFolder) -> int:
        name = name_of(SAVE_STEPS)
        shutil.copytree(whole.checkpoints / name, run.checkpoints / name)
        return SAVE_STEPS

    resumed = train_small(
        volume, "resumed", learn_rate=RATE, trust_remote_code=trust_remote_code, begin=begin
    )
    expected = losses(whole)
    if losses(resumed) != expected[-len(losses(resumed)) :]:
        raise Failed("a resumed run has other losses than the unbroken one")
    base, final = (_state(run.final, trust_remote_code) for run in (whole, resumed))
    if changed := [name for name in base if not torch.equal(base[name], final[name])]:
        raise Failed(f"a resumed run ends with another {changed[0]} than the unbroken one")


def unbroken_run(volume: Path, trust_remote_code: bool) -> RunFolder:
    run = train_small(volume, "one", learn_rate=RATE, trust_remote_code=trust_remote_code)
    assert len(losses(run)) > STEPS
    return run


def check_adapters(volume: Path, lora: LoraConfig, trust_remote_code: bool) -> None:
    """A merged LoRA gives the loss that training had, and equals base plus adapter."""
    from peft import PeftModel

    run = train_small(
        volume, "lora", learn_rate=LORA_RATE, lora=lora, trust_remote_code=trust_remote_code
    )
    base = _loaded(volume / "models/small", trust_remote_code)
    if lora.base_bits == 4:
        round_to_four_bits(base, torch.float32, lora.modules_to_save)
    ids = some_ids(base.config.get_text_config().vocab_size)
    before = plain_logits(base, ids)
    adapted = plain_logits(PeftModel.from_pretrained(base, str(run.final / "adapter")), ids)
    merged = plain_logits(_loaded(run.final, trust_remote_code), ids)
    far = (adapted - merged).abs().max().item()
    if not far <= 10 * SAME * max(1.0, adapted.abs().max().item()):
        raise Failed(f"the merged model is off base plus adapter by {far:.2g} in its logits")
    if torch.equal(before, merged):
        raise Failed("the adapters change nothing")


def _loaded(folder: Path, trust_remote_code: bool) -> Any:
    from trainer.models import load_model

    return load_model(folder, dtype=torch.float32, trust_remote_code=trust_remote_code)


def _state(folder: Path, trust_remote_code: bool) -> dict[str, torch.Tensor]:
    return _loaded(folder, trust_remote_code).state_dict()
