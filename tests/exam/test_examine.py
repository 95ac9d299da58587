"""The model exam passes what is done right, and sees each thing that would be done wrong."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

import tests.training.forking  # noqa: F401  DeepSpeed is loaded, with one thread
from trainer.contract.parameters import Parameters
from trainer.contract.topics import LoraConfig
from trainer.exam import examine as examine_module
from trainer.exam.__main__ import main as exam_main
from trainer.exam.every_model import default_config
from trainer.exam.examine import CHECKS, Examined, examine
from trainer.exam.kept import Asked
from trainer.exam.small_copy import small_config, small_model
from trainer.models.buffers import persistent_buffers
from trainer.training import process
from trainer.training.engine import adapters, engine, loss
from trainer.training.save import final as final_module

SWIFT = ("causal", "loss", "cache")


def passes(kind: str, *only: str, lora: LoraConfig | None = None) -> dict[str, str]:
    found = examine(default_config(kind), only=only or tuple(CHECKS), lora=lora)
    assert not found.not_examined
    return found.checks


def test_a_mixture_with_a_routers_corrections_passes_everything() -> None:
    assert passes("deepseek_v3") == dict.fromkeys(CHECKS, "")


@pytest.mark.parametrize("kind", ["gptj", "gemma2", "gpt_oss", "phi3", "falcon", "qwen3_moe"])
def test_the_loss_and_the_server_are_right_for(kind: str) -> None:
    assert passes(kind, *SWIFT) == dict.fromkeys(SWIFT, "")


def test_an_encoder_sees_later_tokens() -> None:
    assert "it sees later tokens" in passes("bert", "causal")["causal"]


# Zeros at first; computed from the config.
@pytest.mark.parametrize("kind", ["deepseek_v3", "minimax"])
def test_buffers_that_final_lacks_are_seen(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(final_module, "restore_buffers", lambda *given: None)
    assert "differs from the base model in" in passes(kind, "final")["final"]


def test_buffers_that_a_second_process_lacks_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.Engine, "share_buffers", lambda self: None)
    monkeypatch.setattr(process, "restore_buffers", lambda *given: None)
    monkeypatch.setattr(process, "weights_for", lambda *given: None)
    found = passes("deepseek_v3", "processes")["processes"]
    assert "two processes with zero_stage=3 get losses off by" in found


def test_a_resume_that_starts_elsewhere_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "set_optimizer_state", lambda *given: None)
    assert "a resumed run" in passes("llama", "resume")["resume"]


def test_a_model_whose_first_parameters_get_no_gradient_resumes() -> None:
    """Gemma 3 with its vision tower: text trains none of it, and Adam takes no step there."""
    config = default_config("gemma3")
    config.vision_config.num_hidden_layers = 2
    assert examine(config, only=("resume",)).checks == {"resume": ""}


def test_a_wrong_loss_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that softens its logits: the head alone is not enough for its loss."""
    monkeypatch.setattr(loss, "has_plain_head", lambda model: True)
    assert "transformers says" in passes("gemma2", "loss")["loss"]


def test_an_adapter_merged_into_both_ends_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "untie_adapted", lambda model: None)
    lora = LoraConfig(rank=4, target_modules=["q_proj", "lm_head"])
    tied = default_config("qwen2")
    tied.tie_word_embeddings = True
    found = examine(tied, only=("lora",), lora=lora)
    assert "off base plus adapter" in found.checks["lora"]


def test_layers_that_the_model_lacks_are_named() -> None:
    lora = LoraConfig(target_modules=["nothing_like_it"])
    assert "lora can't be added" in passes("llama", "lora", lora=lora)["lora"]


def config_of(kind: str, **changes: Any) -> Any:
    return AutoConfig.for_model(kind, **changes)


def test_the_copy_keeps_the_features_of_the_config() -> None:
    config = config_of(
        "gemma2", num_hidden_layers=26, head_dim=64, attn_logit_softcapping=7.0, sliding_window=4096
    )
    small = small_config(config)
    assert small.attn_logit_softcapping == 7.0 and small.head_dim == 64
    assert set(small.layer_types) == set(config.layer_types)
    assert small.num_hidden_layers == len(small.layer_types) < 10
    assert small.sliding_window < 48  # shorter than the exam's texts
    assert config.num_hidden_layers == 26
    tied = small_config(config_of("llama", tie_word_embeddings=True))
    assert tied.tie_word_embeddings is True


def test_the_copys_buffers_are_not_where_they_begin() -> None:
    model = small_model(small_config(default_config("deepseek_v3")))
    corrections = persistent_buffers(model)
    assert corrections and all(torch.count_nonzero(b) == b.numel() for b in corrections.values())


def test_each_kind_of_lora_and_a_base_in_four_bits_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = LoraConfig(rank=4, dora=True, rslora=True, target_modules="all-linear", base_bits=4)
    assert passes("llama", "lora", lora=kinds)["lora"] == ""
    monkeypatch.setattr(final_module, "round_to_four_bits", lambda *_: None)
    found = examine(default_config("llama"), only=("lora",), lora=kinds)
    assert "off base plus adapter" in found.checks["lora"]


def test_the_exams_process_is_asked_with_the_requests_lora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it but the exam itself, which the tests above make."""
    given: list[Any] = []

    def seen(config: Any, *, lora: LoraConfig | None, **_: Any) -> Examined:
        given.append(lora)
        return Examined("llama")

    monkeypatch.setattr(examine_module, "examine", seen)
    default_config("llama").save_pretrained(tmp_path)
    topic = {"rank": 4, "target_modules": "all-linear", "base_bits": 4}
    request = Parameters(run_name="run", lora=topic).request  # type: ignore[arg-type]
    asked = json.dumps(dataclasses.asdict(Asked.of_request(request, False)))
    assert exam_main([str(tmp_path), str(tmp_path / "result.json"), asked]) == 0
    assert given == [LoraConfig(rank=4, target_modules="all-linear", base_bits=4)]
    assert json.loads((tmp_path / "result.json").read_text())["model_type"] == "llama"
