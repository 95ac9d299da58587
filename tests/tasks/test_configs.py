"""From parameters to step configs: nothing lost, nothing made up."""

import dataclasses

import pytest

from flows.parameters import Parameters
from infra.backend import work_key
from tasks import configs
from trainer.config import FinetuneConfig, TokenizeConfig, load_step_config
from trainer.errors import RequestError


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


def test_work_is_the_same_whatever_the_processes_and_who_asks() -> None:
    def key(config: dict[str, object]) -> str:
        return work_key(config, without=configs.NOT_DEFINING)

    assert key(finetune()) == key(finetune(trainer_gpus=4, logs="elsewhere", no_resume=True))
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
