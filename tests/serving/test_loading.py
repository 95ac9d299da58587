"""What can be served besides a finished model: adapters beside their base, another engine."""

import shutil
from pathlib import Path
from types import SimpleNamespace as Said
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tensorizer import TensorSerializer

from tests.serving import tiny_models
from tests.serving.asking import ask, running
from trainer.contract.errors import RequestError
from trainer.contract.step_configs import ServeConfig
from trainer.models import load_model
from trainer.serving.engine.sequences import SequenceRequest, TokenLogprob
from trainer.serving.engine.vllm import _Answer
from trainer.serving.loading import load
from trainer.serving.step import run


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with a base model, adapters to it, and the two merged."""
    volume = tmp_path_factory.mktemp("adapters")
    tiny_models.save(volume / "models/base")
    torch.manual_seed(2)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        init_lora_weights=False,
        base_model_name_or_path="models/base",
        target_modules=["q_proj", "v_proj"],
    )
    adapted: Any = get_peft_model(load_model(volume / "models/base"), config)
    adapted.peft_config["default"].base_model_name_or_path = "models/base"
    adapted.save_pretrained(volume / "town/final/adapter")
    adapted.merge_and_unload().save_pretrained(volume / "town/final")
    tiny_models.tokenizer().save_pretrained(volume / "town/final")
    return volume


def answers(volume: Path, model: str, **given: Any) -> list[int]:
    config = ServeConfig(volume=str(volume), model=model, **given)
    loaded, _ = load(config, volume / model)
    with running(loaded) as engine:
        request = SequenceRequest(prompt_ids=(5, 6, 7), max_new_tokens=30, top_logprobs=0)
        (answer,) = ask(engine, [request])
    return answer.ids


def test_adapters_beside_their_base_answer_as_the_merged_model(volume: Path) -> None:
    unmerged = answers(volume, "town/final/adapter")
    assert unmerged == answers(volume, "town/final")
    assert unmerged != answers(volume, "models/base")


def test_weights_of_a_tensorizer_file_answer_as_the_safetensors(volume: Path) -> None:
    serializer = TensorSerializer(str(volume / "models/base/base.tensors"))
    serializer.write_module(load_model(volume / "models/base"))
    serializer.close()
    folder = volume / "tensors/base"  # nothing but this file has weights
    shutil.copytree(volume / "models/base", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    expected = answers(volume, "models/base")
    assert answers(volume, "tensors/base", tensorizer_uri="base.tensors") == expected
    with pytest.raises(RequestError, match="tensorizer_uri has no weights"):
        answers(volume, "tensors/base", tensorizer_uri="config.json")


def test_a_server_refuses_another_model_than_the_one_deployed(volume: Path) -> None:
    config = ServeConfig(volume=str(volume), model="models/base", model_digest="ab" * 32)
    with pytest.raises(RequestError, match="model is not the one that was deployed"):
        run(config)


def test_an_engine_that_is_not_installed_is_refused_by_name(volume: Path) -> None:
    with pytest.raises(RequestError, match="engine vllm is not installed"):
        run(ServeConfig(volume=str(volume), model="models/base", engine="vllm"))


# --- vLLM's outputs as events; vLLM itself is not run here ------------------------------


def scores(**logprobs: float) -> dict[int, Any]:
    return {int(name[1:]): Said(logprob=value) for name, value in logprobs.items()}


def output(ids: list[int], logprobs: Any = None, prompt: Any = None) -> Any:
    return Said(outputs=[Said(token_ids=ids, logprobs=logprobs)], prompt_logprobs=prompt)


def test_vllms_outputs_become_text_scores_and_an_end() -> None:
    tokenizer = tiny_models.tokenizer()
    ids = tokenizer("The sheriff rode into town")["input_ids"]
    request = SequenceRequest(
        prompt_ids=tuple(ids[:2]), max_new_tokens=50, top_logprobs=1, prompt_logprobs=True
    )
    answer = _Answer(0, request, tokenizer, frozenset([0]))
    first = [scores(**{f"t{i}": -1.0, "t299": -0.5}) for i in ids[2:4]]
    events = answer.events(output(ids[2:4], first, [None, scores(**{f"t{ids[1]}": -2.0})]))
    assert [t.logprob for t in events[0].prompt] == [None, -2.0]
    assert events[1].token == TokenLogprob(token_id=ids[2], logprob=-1.0, top=((299, -0.5),))
    rest = [scores(**{f"t{i}": -1.0}) for i in [*ids[4:], 0]]
    events += answer.events(output([*ids[4:], 0], rest))
    assert "".join(e.text for e in events) == tokenizer.decode(ids[2:])
    assert events[-1].finish == "stop"
    assert answer.finished


def test_vllms_answer_is_cut_at_a_stop_sequence() -> None:
    tokenizer = tiny_models.tokenizer()
    ids = tokenizer("The sheriff rode into town")["input_ids"]
    request = SequenceRequest(prompt_ids=(ids[0],), max_new_tokens=50, stop=("rode",))
    answer = _Answer(0, request, tokenizer, frozenset([0]))
    events = answer.events(output(ids[1:]))
    text = tokenizer.decode(ids[1:])
    assert "".join(e.text for e in events) == text[: text.index("rode")]
    assert events[-1].finish == "stop"
