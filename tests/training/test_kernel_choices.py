"""What `kernels` asks torch for, and what is recorded of its choice."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.training.volume import make_model
from trainer.training.engine import kernels
from trainer.training.engine.options import EngineOptions, sends_meanwhile


@pytest.fixture
def settings_of_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what a test changes."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def test_sums_are_kept_in_one_order_where_that_is_asked(settings_of_torch: None) -> None:
    kernels.keep_order_of_sums(False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    kernels.keep_order_of_sums(True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()  # a model must not fail for it
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_kernel_of_attention_is_recorded() -> None:
    model = make_model("llama")
    model.set_attn_implementation("sdpa")
    found = kernels.attention_backend(model, 2, 16, torch.device("cpu"))
    assert found in ("sdpa: flash_attention", "sdpa: math")
    # Asked beside a training that has taken the memory: 4 TiB if the mask was made.
    long = kernels.attention_backend(model, 4, 1 << 20, torch.device("cpu"), masked=True)
    assert long.startswith("sdpa: ")
    model.set_attn_implementation("eager")
    assert kernels.attention_backend(model, 2, 16, torch.device("cpu")) == "eager"


class Layer:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def compile(self, **options: Any) -> None:
        self.asked.append(options)


def test_a_layer_that_is_no_single_graph_is_compiled_in_pieces_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from torch._dynamo.exc import Unsupported

    layer, calls = Layer(), 0

    def forward() -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise Unsupported("a call of print\nmore")
        return torch.ones(())

    assert kernels.full_graphs_or_less(forward, [layer]) == 1
    assert layer.asked == [{"dynamic": False, "fullgraph": False}]
    assert "(a call of print)" in capsys.readouterr().out
    assert kernels.full_graphs_or_less(lambda: torch.ones(()), [layer]) == 1
    assert len(layer.asked) == 1


@pytest.mark.parametrize(
    ("on_gpu", "world", "stage", "overlaps"),
    [
        (True, 2, 2, True),
        (True, 2, 3, True),
        (True, 2, 1, False),
        (True, 1, 2, False),
        (False, 2, 2, False),
    ],
)
def test_gradients_are_sent_meanwhile_on_several_gpus(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, world: int, stage: int, overlaps: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    options = EngineOptions(rank=0, world=world, batch_size=1, zero_stage=stage, precision="bf16")
    assert sends_meanwhile(options) is overlaps
