"""A step's key names everything that the step reads: what can change its work changes the key."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from infra.backend import StepSpec
from infra.serving_place import ServingSpec
from tasks import configs
from tasks.specs import step_spec
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import differences
from trainer.contract.step_configs import STEP_CONFIGS, FetchConfig
from trainer.contract.work_key import BOOKKEEPING, NOT_DEFINING, differing, work_key
from trainer.fetch.inputs import digests_of
from trainer.tokens.text.sources import list_sources

DIGESTS = {name: "before" for names in configs.READS.values() for name in names}
PLACES = {"model": "models/m", "tokens": "tokens/s"}
PARAMETERS = Parameters(run_name="run", model="models/m")


def made(step: str, digests: dict[str, str], parameters: Parameters = PARAMETERS) -> dict[str, Any]:
    """The step's config as its task makes it."""
    values, request = parameters.model_dump(), parameters.request
    if step in ("plan", "fetch"):
        return configs.fetch_config(values, request)
    if step == "tokenize":
        return configs.tokenize_config(values, model="models/m", tokenizer="", digests=digests)
    if step == "finetune":
        rest: dict[str, Any] = {"tokenizer": "", "attempt": "a", "earlier_outcomes": []}
        return configs.finetune_config(values, request, **PLACES, **rest, digests=digests)
    if step == "evaluate":
        return configs.evaluate_config(values, **PLACES, digests=digests)
    if step == "deploy":
        return configs.deploy_config(values, run="run", digests=digests)
    about = {"series": "nightly", "action": "judge", **PLACES}
    return configs.champion_config(values, request, **about, digests=digests)


def spec(step: str, config: dict[str, Any]) -> StepSpec:
    return step_spec(PARAMETERS.model_dump(), step, config)


@pytest.mark.parametrize(
    ("step", "name"), [(step, name) for step, names in configs.READS.items() for name in names]
)
def test_the_content_of_what_a_step_reads_is_in_its_key(step: str, name: str) -> None:
    before, after = (spec(step, made(step, {**DIGESTS, name: what})) for what in ("a", "b"))
    assert before.key != after.key
    assert differing(step, before.config, after.config) == [f"inputs.{name}"]


FIELDS = [
    (step, field.name)
    for step, config in STEP_CONFIGS.items()
    for field in dataclasses.fields(config)  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("step", "name"), FIELDS)
def test_every_value_of_a_steps_config_is_in_its_key_but_who_asks_and_what_is_recorded(
    step: str, name: str
) -> None:
    config = {field: None for of, field in FIELDS if of == step} | {"inputs": {}, "request": {}}
    changed = {**config, name: {"other": "value"}}
    same = name in BOOKKEEPING | NOT_DEFINING.get(step, frozenset())
    assert (work_key(step, config) == work_key(step, changed)) is same


def test_what_is_in_no_key_is_who_asks_and_what_cannot_change_the_result() -> None:
    """A list that grows by accident would bring wrong results back."""
    assert {"flow_began", "asked", "listing"} == BOOKKEEPING
    assert {
        "tokenize": {"workers"},
        "finetune": {"no_resume", "attempt", "earlier_outcomes", "plan", "grace_seconds"},
    } == NOT_DEFINING


@pytest.mark.parametrize("step", [step for step in STEP_CONFIGS if step != "serve"])
def test_one_run_on_two_volumes_is_two_pieces_of_work(step: str) -> None:
    other = PARAMETERS.model_copy(update={"pvc": "other"})
    before, after = (spec(step, made(step, DIGESTS, asked)) for asked in (PARAMETERS, other))
    assert before.key != after.key


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ServingSpec)])
def test_a_server_made_from_anything_else_is_another_one(name: str) -> None:
    about = {"run_name": "run", "volume": "v", "model": "m", "model_digest": "d", "image": "i"}
    one = ServingSpec(**about, revision=1)  # type: ignore[arg-type]
    other = dataclasses.replace(one, **{name: "other"})
    assert one.serves_as(other) is (name in ("revision", "figures"))  # the number, and the losses


CHANGES = {
    "dataset": "dataset/a.txt",
    "model": "models/m/model.safetensors",
    "tokenizer": "models/t/tokenizer.json",
    "prompt_file": "prompts.txt",
    "report": "run/evaluation.json",
    "services": "run/services.jsonl",
}


@pytest.fixture
def request_on_volume(tmp_path: Path) -> FetchConfig:
    for path in CHANGES.values():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("before")
    return FetchConfig(
        volume=str(tmp_path),
        run_name="run",
        model="models/m",
        tokenizer="models/t",
        dataset="dataset",
        prompt_file="prompts.txt",
        tensorizer_uri="tensors",
    )


def digests(config: FetchConfig) -> dict[str, str]:
    volume = Path(config.volume)
    folders = {"model": volume / "models/m", "tokenizer": volume / "models/t"}
    return digests_of(config, folders, list_sources(config.volume, config.dataset))


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("how", ["other bytes", "gone"])
def test_a_file_that_changes_on_the_volume_changes_its_own_digest_alone(
    request_on_volume: FetchConfig, name: str, how: str
) -> None:
    before, path = digests(request_on_volume), Path(request_on_volume.volume) / CHANGES[name]
    if how == "gone" and name in ("dataset", "prompt_file"):
        (path.parent / "b.txt").write_text("another file")
        path.write_text("")
    elif how == "gone":
        path.unlink()
    else:
        path.write_text("after!")  # as many bytes
    after = digests(request_on_volume)
    assert {key for key in before if before[key] != after[key]} == {name}


def test_tensorizers_file_is_part_of_the_model(request_on_volume: FetchConfig) -> None:
    before = digests(request_on_volume)
    (Path(request_on_volume.volume) / "tensors").write_text("weights")
    after = digests(request_on_volume)
    assert {key for key in before if before[key] != after[key]} == {"model"}


@pytest.mark.parametrize(
    ("asked", "finetune", "champion", "request_digest"),
    [
        ({}, "8e4de659b50ef609", "51d5410ba50ba100", "229efe99477ca911"),
        (
            {"lora": {"rank": 4}, "optimizer": {"adam_bits": 8}},
            "77f6d779619c91ea",
            "c6040246a1483772",
            "37e6d4fbf507828f",
        ),
    ],
)
def test_keys_are_those_from_before_there_were_later_topics(
    asked: dict[str, Any], finetune: str, champion: str, request_digest: str
) -> None:
    """The digests were computed with the code of 29 November 2026, before `schedule`."""
    parameters = Parameters(run_name="run", model="models/m", **asked)
    keys = [spec(s, made(s, DIGESTS, parameters)).key for s in ("finetune", "champion")]
    assert keys == [finetune, champion]
    text = json.dumps(parameters.request, sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == request_digest


LATER = [
    {"schedule": {"max_steps": 5}},
    {"optimizer": {"weight_decay": 0.1}},
]


@pytest.mark.parametrize("asked", LATER)
def test_a_later_key_makes_other_work_and_another_request(asked: dict[str, Any]) -> None:
    other = Parameters(run_name="run", model="models/m", **asked)
    before, after = (
        spec("finetune", made("finetune", DIGESTS, p)).key for p in (PARAMETERS, other)
    )
    assert before != after
    (name,) = asked
    (phrase,) = differences(PARAMETERS.request, other.request)
    assert phrase.startswith(f"{name} was ")
    assert differences(other.request, PARAMETERS.request)


def test_a_record_without_later_topics_says_that_they_are_at_their_defaults() -> None:
    usual = {"schedule": {"kind": "linear", "max_steps": 0}}
    older = {name: v for name, v in PARAMETERS.request.items() if name != "schedule"}
    assert differences(older, {**PARAMETERS.request, **usual}) == []
