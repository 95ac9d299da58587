"""Chats are trained where their masks say, as transformers' Trainer does with the same labels."""

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from tests.training.forking import Strike, log_of, run_step
from tests.training.test_resume import ENGINE, SAVING, assert_same, kill_and_go_on
from tests.training.volume import (
    CONTEXT,
    EOT,
    make_config,
    make_model,
    make_volume,
    read_lines,
    write_store,
)
from trainer.tokens.store import TokenStore
from trainer.training.data.batches import read_batch

STEPS, BATCH, GRADIENTS = 50, 2, 2
CONTEXTS = STEPS * BATCH * GRADIENTS // 2  # two epochs


def masked_config(root: Path, **changes: Any) -> dict[str, Any]:
    volume = make_volume(
        root,
        changes.pop("architecture", "gptj"),
        contexts=changes.pop("contexts", 21),
        dropout=changes.pop("dropout", 0.0),
        masked=True,
    )
    return make_config(volume, **changes)


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A store's contexts as the Trainer takes them: -100 where nothing is trained."""

    def __init__(self, store: TokenStore, contexts: range) -> None:
        self.store, self.contexts = store, contexts

    def __len__(self) -> int:
        return len(self.contexts)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        index = self.contexts[at]
        ids = torch.from_numpy(self.store.contexts[index].astype(np.int64))
        trained = self.store.trained([index])
        assert trained is not None
        labels = torch.where(torch.from_numpy(trained[0]), ids, -100)
        length = int(self.store.lengths[index])
        attends = (torch.arange(CONTEXT) < length).long()
        return {"input_ids": ids, "attention_mask": attends, "labels": labels}


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **more: Any,
    ) -> None:
        if logs and "loss" in logs:
            self.found.append(logs["loss"])


def losses_of_trainer(root: Path, store: TokenStore, architecture: str) -> tuple[list[float], Any]:
    """Each step's loss, and the trained model, by transformers' Trainer."""
    losses = Losses()
    model = make_model(architecture)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(root),
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=GRADIENTS,
            num_train_epochs=2,
            learning_rate=0.01,
            warmup_steps=0.1,
            weight_decay=0.0,
            lr_scheduler_type="linear",
            max_grad_norm=1.0,
            optim="adamw_torch",
            logging_steps=1,
            train_sampling_strategy="sequential",
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Rows(store, range(CONTEXTS)),
        callbacks=[losses],
    )
    trainer.train()
    return losses.found, model


@pytest.mark.parametrize("architecture", ["gptj", "neox", "llama"])
def test_losses_and_weights_are_those_of_transformers_trainer(
    tmp_path: Path, architecture: str
) -> None:
    config = masked_config(
        tmp_path / "ours",
        architecture=architecture,
        contexts=CONTEXTS,
        batch_size=BATCH,
        gradients=GRADIENTS,
        no_shuffle=True,
        save_steps=0,
    )
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    ours = read_lines(Path(config["volume"]) / "run/metrics.jsonl")
    found = [line["loss"] for line in ours if "loss" in line]
    store = TokenStore.open(Path(config["volume"]) / "tokens/tiny")
    expected, model = losses_of_trainer(tmp_path / "theirs", store, architecture)
    assert len(found) == len(expected) == STEPS
    assert np.abs(np.array(found) - expected).max() < 1e-4
    assert found[-1] < found[0]

    held_out = Rows(store, range(CONTEXTS, store.manifest.num_contexts))
    rows = [held_out[at] for at in range(len(held_out))]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        expected_loss = float(model.eval()(**batch).loss)
    [eval_loss] = [line["eval_loss"] for line in ours if "eval_loss" in line]
    assert eval_loss == pytest.approx(expected_loss, abs=1e-4)


def test_only_trained_tokens_are_counted(tmp_path: Path) -> None:
    config = masked_config(tmp_path / "volume", epochs=1)
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    store = TokenStore.open(Path(config["volume"]) / "tokens/tiny")
    trained = store.trained(np.arange(21))
    assert trained is not None
    lines = read_lines(Path(config["volume"]) / "run/metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    assert steps[-1]["tokens"] == trained.sum() == store.trained_tokens(np.arange(21))
    assert trained.sum() < store.lengths[:21].sum() - 21


def test_processes_divide_by_the_tokens_of_the_whole_step(tmp_path: Path) -> None:
    alone = masked_config(tmp_path / "one", gradients=2, save_steps=0)
    together = masked_config(tmp_path / "two", gradients=1, processes=2, save_steps=0)
    for config in (alone, together):
        config["zero_stage"] = 2
        assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    found, expected = (
        [
            line["loss"]
            for line in read_lines(Path(c["volume"]) / "run/metrics.jsonl")
            if "loss" in line
        ]
        for c in (together, alone)
    )
    assert np.abs(np.array(found) - expected).max() < 1e-5


def test_killed_and_gone_on_it_is_the_unbroken_run(tmp_path: Path) -> None:
    whole = masked_config(tmp_path / "whole", dropout=0.2, save_steps=3)
    broken = masked_config(tmp_path / "broken", dropout=0.2, save_steps=3)
    for config in (whole, broken):
        (Path(config["volume"]) / "prompts.txt").write_text("w3 w4\n", encoding="utf-8")
        config |= {
            "prompt_file": "prompts.txt",
            "sampling": {"prompt_tokens": 4, "prompt_samples": 1},
        }
    assert run_step("finetune", whole) == 0, log_of(whole)[-3000:]
    kill_and_go_on(
        broken,
        [
            Strike(f"{ENGINE}:Engine.loss", 9),
            Strike(f"{SAVING}:seal", 1, after=True),
            Strike(f"{ENGINE}:Engine.step", 1, signum=signal.SIGTERM),
            Strike(f"{ENGINE}:Engine.backward", 1, after=True),
        ],
    )
    assert_same(broken, whole)


def test_a_batch_without_contexts_of_its_own_trains_nothing(tmp_path: Path) -> None:
    store = TokenStore.open(make_volume(tmp_path / "volume", masked=True) / "tokens/tiny")
    for rows in (0, 3):
        assert not read_batch(store, np.arange(0), rows).lengths.any()
    batch = read_batch(store, np.arange(2), 3)
    expected = store.trained([0, 1])
    assert batch.trained is not None and expected is not None
    assert batch.trained.tolist() == [*expected.tolist(), [False] * CONTEXT]
    assert batch.ids[2].tolist() == [EOT] * CONTEXT


def test_the_final_model_keeps_the_template_and_is_asked_with_whole_questions(
    tmp_path: Path,
) -> None:
    config = masked_config(tmp_path / "volume", epochs=1)
    (Path(config["volume"]) / "prompts.txt").write_text("w3 w4\n", encoding="utf-8")
    config |= {"prompt_file": "prompts.txt", "sampling": {"prompt_tokens": 4, "prompt_samples": 1}}
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    run = Path(config["volume"]) / "run"
    template = (run / "final/chat_template.jinja").read_text(encoding="utf-8")
    store = TokenStore.open(Path(config["volume"]) / "tokens/tiny")
    assert template == store.manifest.chat["template"]


def test_nothing_is_trained_with_a_damaged_mask(tmp_path: Path) -> None:
    config = masked_config(tmp_path / "volume", epochs=1)
    mask = Path(config["volume"]) / "tokens/tiny/mask.bin"
    good = mask.read_bytes()
    mask.write_bytes(bytes([good[0] ^ 8]) + good[1:])
    assert run_step("finetune", config) == 1
    assert "mask.bin has other content" in log_of(config)
    mask.write_bytes(good)
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]


def test_an_id_that_is_not_trained_is_nobody_s_target(tmp_path: Path) -> None:
    configs = [masked_config(tmp_path / name, epochs=1, lora={"rank": 2}) for name in ("a", "b")]
    store = TokenStore.open(Path(configs[1]["volume"]) / "tokens/tiny")
    trained = store.trained(np.arange(store.manifest.num_contexts))
    assert trained is not None
    # The last id of a text is seen by no other: it may be any, where it is not trained.
    ids = np.array(store.contexts)
    last = store.lengths.astype(np.int64) - 1
    rows = np.flatnonzero(~trained[np.arange(len(ids)), last])
    assert len(rows)
    ids[rows, last[rows]] = ids[rows, last[rows]] % 90 + 1
    folder = store.folder
    train, lengths = store.manifest.num_train_contexts, np.array(store.lengths)
    shutil.rmtree(folder)
    write_store(folder, ids, lengths, train, trained)
    for config in configs:
        assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    found, expected = (
        [
            line["loss"]
            for line in read_lines(Path(config["volume"]) / "run/metrics.jsonl")
            if "loss" in line
        ]
        for config in configs
    )
    assert found == expected
