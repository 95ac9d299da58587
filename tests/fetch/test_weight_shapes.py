"""A config.json that belongs to other weights is refused, whichever dimension differs."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from trainer import parameter_counts
from trainer.exam.kept import VARIABLE
from trainer.exam.small_copy import small_config
from trainer.fetch.model_folder import read_model
from trainer.fetch.weight_shapes import weight_problems
from trainer.models.count import count_of


@pytest.fixture(autouse=True)
def counted_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count in this process, which has torch loaded."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(
        parameter_counts, "_count", lambda text: json.loads(json.dumps(count_of(json.loads(text))))
    )


def saved(folder: Path, kind: str, *, whole: bool = True) -> dict[str, Any]:
    """Put a small model of the kind into the folder; its config."""
    model = AutoModelForCausalLM.from_config(small_config(AutoConfig.for_model(kind)))
    (model if whole else model.base_model).save_pretrained(folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


@pytest.mark.parametrize("kind", ["gptj", "gpt2", "llama", "mixtral", "gemma3_text", "falcon"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_model_as_it_was_saved_is_taken(tmp_path: Path, kind: str, whole: bool) -> None:
    config = saved(tmp_path, kind, whole=whole)
    assert parameter_counts.tensor_shapes(config, tmp_path)
    assert weight_problems(read_model(tmp_path), tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "key", "value", "named"),
    [
        ("llama", "intermediate_size", 97, "mlp.down_proj.weight"),
        ("llama", "num_key_value_heads", 1, "self_attn.k_proj.weight"),
        ("gptj", "n_inner", 97, "mlp.fc_in.bias"),
        ("gpt2", "n_inner", 97, "mlp.c_fc.bias"),
    ],
)
def test_another_dimension_is_named(
    tmp_path: Path, kind: str, key: str, value: int, named: str
) -> None:
    config = saved(tmp_path, kind)
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    (problem,) = weight_problems(read_model(tmp_path), tmp_path)
    assert problem.startswith(f"model {tmp_path.name} has weights of another shape than its config")
    assert named in problem and "Bring the config.json that belongs to the weights." in problem
