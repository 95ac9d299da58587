"""Texts packed into a context: as alone where attention is all that mixes tokens, else refused."""

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import tests.training.forking  # noqa: F401  DeepSpeed is loaded, with one thread
from trainer.contract.errors import RequestError
from trainer.contract.step_configs import FetchConfig
from trainer.contract.topics import DataConfig
from trainer.exam import checks
from trainer.exam.every_model import default_config
from trainer.exam.examine import small_copy
from trainer.exam.kept import ExamResult
from trainer.fetch.what_is_there import check_context
from trainer.planning.model_shape import rotation_limit
from trainer.training.engine.loss import CausalLoss

KINDS = [
    "gptj", "gpt_neo", "gpt_neox", "gpt2", "llama", "mistral", "qwen3_moe", "gemma2", "gemma3_text",
    "phi3",
]  # fmt: skip


class Packed(NamedTuple):
    """Two rows of several texts, as CausalLoss takes them."""

    ids: torch.Tensor
    lengths: torch.Tensor
    trained: torch.Tensor
    positions: torch.Tensor

    @classmethod
    def made(cls, vocabulary: int) -> "Packed":
        lengths = torch.tensor([48, 29])
        texts = ((19, 9, 20), (20, 9, 19))  # the last of the second row is padding
        positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in texts])
        trained = (positions > 0) & (torch.arange(48) < lengths[:, None])
        return cls(checks.some_ids(vocabulary), lengths, trained, positions)


def one_at_a_time(loss_of: Any, given: Packed) -> torch.Tensor:
    total = torch.zeros(())
    for row, places, length in zip(given.ids, given.positions, given.lengths.tolist(), strict=True):
        edges = [*(places[:length] == 0).nonzero()[:, 0].tolist(), length]
        for begin, end in itertools.pairwise(edges):
            total = total + loss_of(row[None, begin:end], torch.tensor([end - begin]))
    return total


def loss_and_gradients(
    model: Any, trained: int, loss: Callable[[], torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    mean = loss() / trained
    mean.backward()
    named = model.named_parameters()
    return mean.item(), {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_one_text_at_a_time(kind: str) -> None:
    model, ids = small_copy(default_config(kind))
    checks.check_packed(model, ids)
    for attention in {model.config._attn_implementation, "eager"}:
        model.set_attn_implementation(attention)
        given = Packed.made(model.config.get_text_config().vocab_size)
        loss_of, count = CausalLoss(model), int(given.trained.sum())
        packed, ours = loss_and_gradients(model, count, functools.partial(loss_of, *given))
        alone, expected = loss_and_gradients(
            model, count, functools.partial(one_at_a_time, loss_of, given)
        )
        # Neighbouring floats near Gemma's loss of 150 are 1.5e-5 apart.
        assert packed == pytest.approx(alone, abs=1e-5, rel=1e-6)
        largest = max(float(g.abs().max()) for g in expected.values())
        for name, gradient in expected.items():
            assert float((ours[name] - gradient).abs().max()) < 1e-4 * max(1.0, largest), name


@pytest.mark.parametrize("kind", ["mamba", "bamba", "qwen3_next", "gpt_oss"])
def test_a_model_that_mixes_texts_otherwise_fails(kind: str) -> None:
    model, ids = small_copy(default_config(kind))
    with pytest.raises(checks.Failed, match="beside others"):
        checks.check_packed(model, ids)


def test_a_mask_that_lets_texts_see_each_other_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.training.engine import loss

    model, ids = small_copy(default_config("llama"))
    kept = loss.texts_in_rows
    monkeypatch.setattr(loss, "texts_in_rows", lambda positions: kept(None))
    with pytest.raises(checks.Failed, match="beside others"):
        checks.check_packed(model, ids)


def test_packing_alone_is_refused_for_it() -> None:
    failed = ExamResult("mamba", {"packed": "the loss is off"})
    assert failed.problems("m", with_lora=True) == []
    [refused] = failed.problems("m", with_lora=False, packed=True)
    assert refused.startswith("model m fails the model exam: documents that are packed")
    unknown = ExamResult("new", not_examined="no small copy")
    assert unknown.problems("m", with_lora=True) == []
    assert "needs a model that was examined" in unknown.problems("m", True, packed=True)[0]


ROTATIONS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "dynamic", "factor": 4.0},
]  # fmt: skip


@pytest.mark.parametrize("scaling", ROTATIONS, ids=lambda scaling: str(scaling["rope_type"]))
def test_kinds_of_rotation_are_those_of_one_text_at_a_time(scaling: dict[str, Any]) -> None:
    config = default_config("llama")
    config.rope_parameters = {"rope_theta": 10000.0, **scaling}
    model, ids = small_copy(config)
    checks.check_packed(model, ids)


def test_a_rotation_by_the_longest_text_is_refused_beyond_its_length(tmp_path: Path) -> None:
    longrope = {"max_position_embeddings": 131_072, "original_max_position_embeddings": 4096}
    scaling = {"rope_type": "longrope", "short_factor": [1], "long_factor": [2]}
    assert rotation_limit({**longrope, "rope_scaling": scaling}) == ("longrope", 4096)
    dynamic = {"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 2}}
    assert rotation_limit(dynamic) == ("dynamic", 2048)
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    assert rotation_limit({"max_position_embeddings": 64, "rope_parameters": yarn}) is None

    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text(json.dumps({"model_type": "llama", **dynamic}))
    for data, context in ((PACKED, 2048), (DataConfig(), 4096)):
        check_context(config_of(tmp_path, data, context), tmp_path / "m")
    with pytest.raises(RequestError, match=r"data\.packing does not go with contexts of this"):
        check_context(config_of(tmp_path, PACKED, 4096), tmp_path / "m")


PACKED = DataConfig(packing="documents")


def config_of(volume: Path, data: DataConfig, context: int) -> FetchConfig:
    return FetchConfig(volume=str(volume), model="m", dataset="d", data=data, context=context)
