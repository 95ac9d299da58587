"""The end of a text is what the store has: the final model, the server and the gate know it."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from tests.training.volume import EOT, VOCABULARY, make_config, make_model, make_volume
from trainer.contract.step_configs import load_step_config
from trainer.models.end_of_text import ids_that_end
from trainer.serving.deploy.gate import expected_of
from trainer.serving.loading import about_folder
from trainer.tokens.store import TokenStore
from trainer.training.job import Job
from trainer.training.save import final

TURN = VOCABULARY - 1


def job_of(volume: Path) -> Job:
    config: Any = load_step_config("finetune", json.dumps(make_config(volume)))
    return Job(config=config, num_contexts=21, batch_size=2, global_batch=4, zero_stage=0)


def ends_with(volume: Path, eot: int) -> None:
    """Have the store say that `eot` ended its texts."""
    folder = volume / "tokens/tiny"
    manifest = dataclasses.replace(TokenStore.open(folder).manifest, eot_token_id=eot)
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")


@pytest.mark.parametrize("eot", [EOT, TURN, 5])
def test_the_final_model_says_what_ended_texts_in_training(
    tmp_path: Path, eot: int, monkeypatch: pytest.MonkeyPatch
):
    volume = make_volume(tmp_path)
    folder = volume / "models/tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"w{TURN}"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    ends_with(volume, eot)
    monkeypatch.setattr(final, "checkpointed_model", lambda *_: make_model("llama"))
    job = job_of(volume)
    final.write_final(job, {"tokens": 1, "loss": 1.0, "eval_loss": None})
    made = job.run.final
    assert GenerationConfig.from_pretrained(made).eos_token_id == eot
    assert json.loads((made / "config.json").read_text())["eos_token_id"] == eot
    assert expected_of(made).end_id == eot
    server: Any = SimpleNamespace(trust_remote_code=False)
    served, about = about_folder(server, made)
    assert about.end_ids == {eot}
    # w5 is a word: it must not be left out of answers, so the tokenizer keeps its own end.
    assert served.eos_token_id == (EOT if eot == 5 else eot)
    assert served.decode([5], skip_special_tokens=True) == "w5"


def test_the_other_ends_of_a_base_model_stay_where_it_names_several(tmp_path: Path):
    settings = tmp_path / "generation_config.json"
    assert ids_that_end(tmp_path, 7) == [7]
    settings.write_text('{"eos_token_id": [3, 7, 9]}')
    assert ids_that_end(tmp_path, 7) == [3, 7, 9]
    assert ids_that_end(tmp_path, 5) == [5]
    settings.write_text('{"eos_token_id": 3}')
    assert ids_that_end(tmp_path, 7) == [7]
    settings.write_text("[]")
    assert ids_that_end(tmp_path, 7) == [7]
