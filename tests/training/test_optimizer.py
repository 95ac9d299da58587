"""Adam's numbers, weight decay and clipping are those of transformers' Trainer, however spread."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from tests.training.forking import Strike, log_of, run_step
from tests.training.volume import make_config, make_model, make_volume, read_lines
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.validation import load_parameters
from trainer.tokens.store import TokenStore
from trainer.training.engine.adam import decayed_and_not

CONTEXTS = 24
NUMBERS = {"weight_decay": 2.0, "beta1": 0.8, "beta2": 0.95, "eps": 1e-2, "clip": 0.1}
THEIRS = {
    "weight_decay": 2.0,
    "adam_beta1": 0.8,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-2,
    "max_grad_norm": 0.1,
}


class Texts(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The training contexts of a store, padding unlabelled."""

    def __init__(self, volume: Path) -> None:
        self.store = TokenStore.open(volume / "tokens/tiny")

    def __len__(self) -> int:
        return CONTEXTS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.tensor(self.store.contexts[index].astype("int64"))
        trained = torch.arange(len(ids)) < int(self.store.lengths[index])
        return {"input_ids": ids, "labels": torch.where(trained, ids, -100)}


class InOrder(Trainer):
    """Trainer without its shuffling."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def losses_of_trainer(volume: Path, folder: Path, **arguments: Any) -> list[float]:
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(volume / "models/tiny"),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            learning_rate=0.01,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            **{"warmup_steps": 0.1, **arguments},
        ),
        train_dataset=Texts(volume),
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def losses_of_run(volume: Path, name: str, strike: Strike | None = None, **changes: Any) -> Any:
    config = make_config(volume, run_name=name, request={}, no_shuffle=True, **changes)
    if strike is not None:
        assert run_step("finetune", config, strike) == -signal.SIGKILL, log_of(config)
    assert run_step("finetune", config) == 0, log_of(config)
    return [x["loss"] for x in read_lines(volume / name / "metrics.jsonl") if "loss" in x]


@pytest.mark.parametrize(
    ("architecture", "ours", "theirs"),
    [
        ("gptj", {}, {}),
        (
            "gptj",
            {"optimizer": NUMBERS, "schedule": {"kind": "cosine", "warmup_steps": 3}},
            {**THEIRS, "lr_scheduler_type": "cosine", "warmup_steps": 3},
        ),
        ("neox", {"optimizer": NUMBERS}, THEIRS),
        ("llama", {"optimizer": {**NUMBERS, "clip": 0.0}}, {**THEIRS, "max_grad_norm": 0.0}),
    ],
)
def test_losses_are_those_of_transformers_trainer(
    tmp_path: Path, architecture: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    volume = make_volume(tmp_path, architecture, contexts=CONTEXTS)
    found = losses_of_run(volume, "run", save_steps=0, **ours)
    assert len(found) == 12
    expected = losses_of_trainer(volume, tmp_path / "trainer", **theirs)
    assert found == pytest.approx(expected, abs=1e-4)  # Trainer logs four decimals


@pytest.mark.parametrize("architecture", ["gptj", "neox", "llama"])
def test_weights_decay_that_trainer_decays(architecture: str) -> None:
    model = make_model(architecture)
    decayed, others = decayed_and_not(model)
    named = {id(p): name for name, p in model.named_parameters()}
    theirs = Trainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]
    assert {named[id(p)] for p in decayed} == set(theirs) & set(named.values())
    assert others and all(p.ndim == 1 for p in others)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A volume, and the losses of one process with decay, betas and clipping of its own."""
    volume = make_volume(tmp_path_factory.mktemp("plain"), contexts=CONTEXTS)
    return volume, losses_of_run(volume, "plain", optimizer=NUMBERS, gradients=4)


@pytest.mark.parametrize("stage", [1, 3])
def test_decay_and_clipping_are_the_same_when_spread_and_resumed(
    plain: tuple[Path, list[float]], stage: int
) -> None:
    volume, expected = plain
    spread = {"processes": 2, "gradients": 2, "zero_stage": stage, "optimizer": NUMBERS}
    whole = losses_of_run(volume, f"stage-{stage}", **spread)
    assert whole == pytest.approx(expected, abs=1e-5)
    saved = volume / f"broken-{stage}/checkpoints/step-00000004"
    strike = Strike("trainer.training.engine.engine:Engine.step", 6, rank=0, sealed=saved)
    config = make_config(volume, run_name=f"broken-{stage}", request={}, no_shuffle=True, **spread)
    run_step("finetune", config, strike)
    assert run_step("finetune", config) == 0, log_of(config)
    assert "resumes from step 4" in log_of(config)
    weights = [
        (volume / name / "final/model.safetensors").read_bytes()
        for name in (f"stage-{stage}", f"broken-{stage}")
    ]
    assert weights[0] == weights[1]


def test_decay_in_host_memory_and_in_eight_bits_is_the_same_to_their_precision(
    plain: tuple[Path, list[float]],
) -> None:
    volume, expected = plain
    numbers = {**NUMBERS, "offload": "always"}
    found = losses_of_run(volume, "host", gradients=4, zero_stage=2, optimizer=numbers)
    assert found == pytest.approx(expected, abs=1e-4)
    numbers = {**NUMBERS, "adam_bits": 8}
    found = losses_of_run(volume, "eight", gradients=4, optimizer=numbers)
    assert found == pytest.approx(expected, abs=0.02)
    strike = Strike("trainer.training.engine.engine:Engine.step", 6)
    again = losses_of_run(volume, "eight-broken", strike, gradients=4, optimizer=numbers)
    assert again == found


@pytest.mark.parametrize("name", ["weight_decay", "clip"])
def test_each_number_matters(plain: tuple[Path, list[float]], name: str) -> None:
    """Else the comparisons above would prove nothing."""
    volume, expected = plain
    numbers = {n: value for n, value in NUMBERS.items() if n != name}
    found = losses_of_run(volume, f"no-{name[:4]}", gradients=4, epochs=2, optimizer=numbers)
    assert abs(found[-1] - expected[-1]) > 1e-3


@pytest.mark.parametrize(
    ("optimizer", "problem"),
    [
        ({"weight_decay": -0.1}, "optimizer.weight_decay"),
        ({"beta1": 1.0}, "optimizer.beta1"),
        ({"beta2": -0.1}, "optimizer.beta2"),
        ({"eps": 0}, "optimizer.eps"),
        ({"clip": -1}, "optimizer.clip"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(optimizer: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError) as refused:
        load_parameters(Parameters, {"run_name": "run", "optimizer": json.dumps(optimizer)})
    assert refused.value.problems[0].startswith(problem)
