"""From parameters to step configs: nothing lost, nothing made up."""

import ast
import dataclasses
import inspect

import pytest

from tasks import configs
from trainer.contract import step_configs
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.step_configs import FinetuneConfig, TokenizeConfig, load_step_config
from trainer.contract.work_key import work_key


def values(**given: object) -> dict[str, object]:
    return Parameters(run_name="run", **given).model_dump()  # type: ignore[arg-type]


def finetune(tokens: str = "tokens/a", **given: object) -> dict[str, object]:
    return configs.finetune_config(
        values(**given),
        {},
        model="models/m",
        tokenizer="",
        tokens=tokens,
        attempt="1",
        earlier_outcomes=[],
    )


def test_a_steps_config_takes_every_parameter_of_its_name() -> None:
    config = finetune(learn_rate=0.5, gradients=7, top_k=3, trainer_gpus=2)
    assert config["learn_rate"] == 0.5
    assert config["gradients"] == 7
    assert config["processes"] == 2
    assert config["sampling"]["top_k"] == 3  # type: ignore[index]
    topics = finetune(lora={"rank": 4}, checkpoints={"keep_last": 5})
    assert topics["lora"]["rank"] == 4  # type: ignore[index]
    assert topics["checkpoints"]["keep_last"] == 5  # type: ignore[index]


def test_tokenize_takes_the_percentage_and_not_the_sampling_of_text() -> None:
    config = configs.tokenize_config(values(sampling=50), model="models/m", tokenizer="")
    assert config["sampling"] == 50


def test_work_is_the_same_whoever_asks() -> None:
    def key(config: dict[str, object]) -> str:
        return work_key("finetune", config)

    assert key(finetune()) == key(finetune(no_resume=True))
    assert key(finetune()) != key(finetune(trainer_gpus=4))  # which changes the batch
    assert key(finetune()) != key(finetune(epochs=2))
    assert key(finetune()) != key(finetune(tokens="tokens/b"))


@pytest.mark.parametrize("cls", [TokenizeConfig, FinetuneConfig])
def test_a_config_is_loaded_strictly(cls: type) -> None:
    step = cls.__name__.removesuffix("Config").lower()
    with pytest.raises(RequestError) as refused:
        load_step_config(step, '{"volume": "/v", "model": 3, "contxt": 1, "random_seed": -1}')
    told = "\n".join(refused.value.problems)
    for name in ("model", "contxt", "random_seed"):
        assert name in told


def test_what_a_config_says_is_read_back_as_it_was() -> None:
    import json

    config = finetune(learn_rate=1e-5)
    loaded = load_step_config("finetune", json.dumps(config))
    assert dataclasses.asdict(loaded) == config  # type: ignore[call-overload]


def test_the_default_of_a_parameter_stands_in_one_place() -> None:
    tree = ast.parse(inspect.getsource(step_configs))
    again = {
        f"line {line.lineno}: {line.target.id}"
        for line in ast.walk(tree)
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and line.target.id in Parameters.model_fields
        and line.target.id != "run_name"  # of a step: empty where it belongs to no run
        and isinstance(line.value, (ast.Constant, ast.UnaryOp))
        and ast.literal_eval(line.value) not in ("", None)
    }
    assert not again
