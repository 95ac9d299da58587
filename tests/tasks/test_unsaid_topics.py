"""A topic that is left at its default is in no digest: requests of older versions keep theirs."""

from typing import Any

import pytest

from tasks import configs
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.validation import load_parameters
from trainer.contract.work_key import differing, work_key

SKIP = {"documents": ["a.txt"], "sha256": []}


def finetune(**given: Any) -> dict[str, Any]:
    parameters = Parameters(run_name="one", **given)
    return configs.finetune_config(
        parameters.model_dump(),
        parameters.request,
        model="models/m",
        tokenizer="",
        tokens="tokens/t",
        attempt="",
        earlier_outcomes=[],
    )


def test_a_request_without_skip_is_the_request_of_an_older_version() -> None:
    assert "skip" not in Parameters(run_name="one").request
    assert Parameters(run_name="one", skip=SKIP).request["skip"] == {"documents": ["a.txt"]}


def test_keys_of_work_are_those_of_older_versions() -> None:
    config = finetune()
    older = {name: value for name, value in config.items() if name != "skip"}
    older["checkpoints"] = {k: v for k, v in config["checkpoints"].items() if k != "keep_every"}
    assert older != config
    assert work_key("finetune", older) == work_key("finetune", config)
    assert differing("finetune", config, finetune(skip=SKIP)) == ["skip"]
    kept = finetune(checkpoints={"keep_every": 5})
    assert differing("finetune", config, kept) == ["checkpoints"]


def test_a_wrong_digest_is_refused_by_its_name() -> None:
    with pytest.raises(RequestError) as refused:
        load_parameters(Parameters, {"run_name": "one", "skip": {"sha256": ["ABC"], "path": []}})
    problems = "\n".join(refused.value.problems)
    assert "skip.sha256.0" in problems and "skip.path is not a parameter" in problems
