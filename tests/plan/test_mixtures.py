"""A mixture of experts is planned with all its weights in memory and a few of them at work."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from flows.plan_request import plan_request
from trainer.contract.parameters import Parameters
from trainer.models.count import count
from trainer.parameter_counts import FOLDER, shape_of
from trainer.planning.model_shape import ModelShape

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32768,
    "vocab_size": 32000,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
QWEN3_30B_A3B: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
FALCON_7B = {
    "model_type": "falcon",
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_kv_heads": 71,
    "multi_query": True,
    "new_decoder_architecture": False,
    "vocab_size": 65024,
}
# Beside each kind what transformers leaves open. All and active weights, in billions: as counted.
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "deepseek_v3": {},
    "gpt_oss": {},
    "olmoe": {},
    "glm4_moe": {},
    "qwen2_moe": {},
    "llama4_text": {},
    "deepseek_v2": {
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_group": 1,
        "topk_group": 1,
    },
    "falcon": {"tie_word_embeddings": True},
    "gpt2": {},
    "gemma2": {},
    "phi3": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_alone_gives_what_the_architecture_has(kind: str) -> None:
    config = AutoConfig.for_model(kind, **KINDS[kind])
    counted = count(config)
    shape = ModelShape.from_config(json.loads(config.to_json_string(use_diff=False)))
    assert shape.parameters == pytest.approx(counted["parameters"], rel=2e-3)
    assert shape.idle_parameters == pytest.approx(counted["idle_parameters"], rel=2e-3)


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [(MIXTRAL, 46.70e9, 12.88e9), (QWEN3_30B_A3B, 30.53e9, 3.34e9), (FALCON_7B, 6.92e9, 6.92e9)],
)
def test_published_models_have_their_size(
    config: dict[str, Any], total: float, active: float
) -> None:
    shape = ModelShape.from_config(config)
    assert shape.parameters == pytest.approx(total, rel=1e-3)
    assert shape.active_parameters == pytest.approx(active, rel=2e-3)


def test_falcons_heads_of_keys_are_one_or_as_the_new_architecture_says() -> None:
    assert ModelShape.from_config(FALCON_7B).kv_heads == 1
    new = {**FALCON_7B, "new_decoder_architecture": True, "num_kv_heads": 8}
    assert ModelShape.from_config(new).kv_heads == 8


def planned(home: Path, config: dict[str, Any], **changes: Any) -> Any:
    folder = home / "finetune-data/models/m"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    given = {"run_name": "r", "model": "models/m", "trainer_gpus": 8, **changes}
    return plan_request(Parameters(**given), home, num_contexts=1000, on_cluster=True)


def test_a_mixture_needs_the_memory_of_all_and_the_time_of_few(tmp_path: Path) -> None:
    mixture = planned(tmp_path, MIXTRAL, trainer_ram=2000)
    assert (mixture.parameters, mixture.active_parameters) == pytest.approx(
        (46.70e9, 12.88e9), rel=2e-3
    )
    assert mixture.checkpoint_gib == pytest.approx(12 * 46.7e9 / 2**30, rel=1e-2)
    one = {**MIXTRAL, "num_local_experts": 1, "intermediate_size": 2 * 14336}
    alike = planned(tmp_path, one, trainer_ram=2000)  # a dense model that works as much
    ratio = mixture.seconds_parts["compute"] / alike.seconds_parts["compute"]
    same = mixture.checkpointed_layers == alike.checkpointed_layers
    assert ratio == pytest.approx(1, rel=0.05 if same else 0.4)
    assert "work on a token" in dict(mixture.rows())["model"]


def test_weights_are_counted_exactly_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own; Mamba is nothing that the arithmetic knows."""
    monkeypatch.delenv("FINETUNE_EXAMS")
    config = AutoConfig.for_model("qwen3_next", num_hidden_layers=4, vocab_size=512)
    values = json.loads(config.to_json_string(use_diff=False))
    shape = shape_of(values, tmp_path, keep=True)
    assert shape.parameters == count(config)["parameters"]
    [kept] = (tmp_path / FOLDER).iterdir()
    kept.write_text(json.dumps({"parameters": 5, "idle_parameters": 2}))
    again = shape_of(values, tmp_path)
    assert (again.parameters, again.active_parameters) == (5, 3)
