"""Text from prompts: seeded, alone and in a batch, and without side effects."""

from typing import Any

import pytest
import torch

from tests.training.volume import CONTEXT, make_model, make_tokenizer
from trainer.contract.step_configs import SamplingConfig
from trainer.models.generation import prompt_ids, read_prompts, sample

SAMPLING = SamplingConfig(prompt_tokens=6, prompt_samples=3)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("llama", dropout=0.5)


def test_the_same_seed_writes_the_same_whatever_was_drawn_before(model: Any) -> None:
    texts = []
    for drawn in (0, 5):
        torch.rand(drawn)
        texts.append(sample(model, make_tokenizer(), ["w3 w4", "w5"], SAMPLING, seed=1))
    assert texts[0] == texts[1]
    assert [len(each) for each in texts[0]] == [3, 3]
    assert texts[0] != sample(model, make_tokenizer(), ["w3 w4", "w5"], SAMPLING, seed=2)


def test_sampling_leaves_random_state_and_mode_alone(model: Any) -> None:
    model.train()
    before = torch.get_rng_state()
    sample(model, make_tokenizer(), ["w3"], SAMPLING, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


def test_an_empty_prompt_begins_with_the_first_token(model: Any) -> None:
    assert prompt_ids(model, make_tokenizer(), "", 4) == [0]


def test_a_prompt_that_is_too_long_loses_its_beginning(model: Any) -> None:
    prompt = " ".join(f"w{i}" for i in range(1, 60))
    ids = prompt_ids(model, make_tokenizer(), prompt, 6)
    assert ids == list(range(1, 60))[-(2 * CONTEXT - 6) :]
    [texts] = sample(model, make_tokenizer(), [prompt], SAMPLING, seed=1)
    assert all(texts)


def test_prompt_files_have_one_prompt_a_line_with_escaped_breaks() -> None:
    assert read_prompts("one\\ntwo\n\n three\n") == ["one\ntwo", " three"]


def test_it_tells_how_much_is_written_and_writes_the_same() -> None:
    model, told = make_model("gptj").eval(), []
    asked = ["w3 w4", "w5"]
    quiet = sample(model, make_tokenizer(), asked, SAMPLING, seed=1)
    counted = sample(
        model, make_tokenizer(), asked, SAMPLING, seed=1, on_token=lambda *d: told.append(d)
    )
    assert counted == quiet
    total = 2 * SAMPLING.prompt_tokens
    assert {each for _, each in told} == {total}
    done = [number for number, _ in told]
    assert done == sorted(done)
    assert done[0] == 0 and done[-1] == total
    assert len({*done}) > 3
