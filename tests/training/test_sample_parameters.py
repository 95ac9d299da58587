"""Parameters of samples: they define no run, and are clipped to what the model has room for."""

from pathlib import Path

import pytest
import torch

from tests.training.volume import CONTEXT, make_model, make_tokenizer
from trainer.contract.errors import RequestError
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import SamplingConfig
from trainer.models.generation import sample


def test_parameters_of_samples_define_no_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "run")
    request = {"epochs": 1, "prompt_tokens": 4096, "prompt_file": "", "top_k": 5}
    run.write_record({"request": request, "created": "2026-01-01"})
    run.refuse_other_request({**request, "prompt_tokens": 5, "prompt_file": "p", "top_k": 0})
    with pytest.raises(RequestError, match="epochs was 1, is 2"):
        run.refuse_other_request({**request, "epochs": 2})


@pytest.mark.parametrize("architecture", ["gptj", "neox", "llama"])
def test_more_prompt_tokens_than_positions_are_clipped(architecture: str) -> None:
    positions = CONTEXT
    model = make_model(architecture, positions=positions).eval()
    asked = SamplingConfig(prompt_tokens=10 * positions, prompt_samples=1)
    lengths = []
    hook = model.register_forward_hook(
        lambda module, args, out: lengths.append(out.logits.shape[1])
    )
    [[text]] = sample(model, make_tokenizer(), ["w5 w6 w7"], asked, seed=1)
    hook.remove()
    assert isinstance(text, str) and 0 < sum(lengths) <= positions
    assert torch.isfinite(model(torch.tensor([[1]])).logits).all()
