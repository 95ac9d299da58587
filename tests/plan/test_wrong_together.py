"""A wrong dataset and a context that the model does not take are reported together."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli.main import cli
from flows.cli.run_here import check_request
from flows.plan_request import gather
from tests.hub_double import HubDouble, HubModel
from tests.plan.models import GPT_2
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters

MODELS = pytest.mark.parametrize("model", ["models/gpt2", "org/gpt2"], ids=["volume", "hub"])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A volume with a model's config.json and no dataset, and a hub with the same model."""
    config = json.dumps(GPT_2)
    folder = tmp_path / "finetune-data/models/gpt2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)
    with HubDouble({"org/gpt2": HubModel({"config.json": config.encode()})}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield tmp_path


def asked(model: str) -> Parameters:
    return Parameters(run_name="run", model=model, dataset="nothing", context=4096)


def both_in(problems: list[str]) -> bool:
    """Whether both are there, each once."""
    beginnings = ("dataset is not there", "context is larger than the model takes (got 4096)")
    return [sum(p.startswith(b) for p in problems) for b in beginnings] == [1, 1]


@MODELS
def test_by_the_command_plan(home: Path, model: str) -> None:
    words = ["-p", f"model={model}", "-p", "dataset=nothing", "-p", "context=4096"]
    ended = CliRunner().invoke(cli, ["plan", *words, "--home", str(home), "--backend", "local"])
    assert isinstance(ended.exception, RequestError)
    assert both_in(list(ended.exception.problems))


@MODELS
def test_by_the_plan_of_a_flow(home: Path, model: str) -> None:
    with pytest.raises(RequestError) as refused:
        gather(asked(model), home / "finetune-data")
    assert both_in(list(refused.value.problems))


@MODELS
def test_before_a_run_begins(home: Path, model: str) -> None:
    with pytest.raises(RequestError) as refused:
        check_request(asked(model), home)
    assert both_in(list(refused.value.problems))
