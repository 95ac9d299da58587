"""The server of the tests with the engine vllm, in place of conftest.py: see `make test-vllm`.

    pytest --noconftest -p tests.serving.on_vllm tests/serving/test_openai_api.py ...

The same tests ask the same server over HTTP. Those that vLLM can't answer are named here.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from infra.local import service as local_service
from infra.local.service import Service
from tests.serving import tiny_models
from tests.serving.trained import seal_with_golden

# vLLM compiles for minutes on a CPU; a GiB is enough for keys and values.
ENGINE_ARGS = {"enforce_eager": True}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

NOT_OF_VLLM = {
    "test_completion_typical_p_and_penalty_alpha_change_the_choice": "vLLM has no typical_p",
    "test_completion_keeps_bad_words_out_as_the_pipeline_does": "vLLM has no bad_words of ids",
}
"""Tests by name, and why they are not made."""


def llama() -> LlamaForCausalLM:
    """A Llama in float32; vLLM's attention on a CPU takes no heads smaller than 32."""
    torch.manual_seed(0)
    sizes = {**tiny_models.SIZES, "hidden_size": 128, "num_key_value_heads": 2, "head_dim": 32}
    model = LlamaForCausalLM(LlamaConfig(**tiny_models.SHARED, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def save_llama(place: Path) -> Path:
    llama().save_pretrained(place)
    tokenizer = tiny_models.tokenizer()
    tokenizer.chat_template = tiny_models.CHAT_TEMPLATE
    tokenizer.save_pretrained(place)
    return place


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = getattr(item, "originalname", None) or item.name
        if reason := NOT_OF_VLLM.get(name):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with a finished Llama of the run `tales`, with golden answers."""
    root = tmp_path_factory.mktemp("volume")
    save_llama(root / "tales/part")
    seal_with_golden(root / "tales/part", root / "tales/final", llama())
    return root


@pytest.fixture(scope="session")
def service(volume: Path) -> Iterator[Service]:
    config = {"engine": "vllm", "engine_args": ENGINE_ARGS}
    yield local_service.start(volume, "tales", "tales/final", timeout_seconds=500, config=config)
    local_service.stop(volume, "tales")


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=240, trust_env=False) as http:
        yield http
