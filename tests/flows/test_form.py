"""The form that Prefect shows for each flow: its order, its help, and errors in words."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, is_valid, validate

from flows.finetune import finetune
from flows.retrain import RetrainParameters, retrain
from flows.sweep import sweep
from flows.sweep_request import SweepParameters
from flows.without_effect import OF_CLUSTERS
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.topics import LoraConfig, SkipConfig
from trainer.contract.validation import load_json, load_parameters

FLOWS = pytest.mark.parametrize("flow", [finetune, retrain, sweep], ids=lambda flow: flow.name)
OF_EVERYONE = ["context", "epochs", "learn_rate", "batch_size", "gradients", "lora", "data"]
OWN = {
    "finetune": [],
    "retrain": ["start_from", "retention"],
    "sweep": ["over", "method", "trials", "parallel", "halving"],
}


def schema_of(flow: Any) -> dict[str, Any]:
    return parameter_schema(flow).model_dump()


def in_order(flow: Any) -> list[str]:
    properties = schema_of(flow)["properties"]
    return sorted(properties, key=lambda name: properties[name]["position"])


@FLOWS
def test_the_form_begins_with_what_people_change(flow: Any) -> None:
    begin = ["run_name", "model", "dataset", *OWN[flow.name], *OF_EVERYONE]
    assert in_order(flow)[: len(begin)] == begin


@FLOWS
def test_what_is_for_clusters_alone_ends_the_form_and_says_so(flow: Any) -> None:
    names, properties = in_order(flow), schema_of(flow)["properties"]
    assert sorted(names[-len(OF_CLUSTERS) :]) == sorted(OF_CLUSTERS)
    marked = [n for n in names if properties[n]["description"].startswith("On Kubernetes only: ")]
    assert marked == names[-len(OF_CLUSTERS) :]


@FLOWS
def test_each_key_of_a_topic_is_described_and_no_rule_is_a_regex(flow: Any) -> None:
    nested = list(properties_in(schema_of(flow)))
    assert {"rank", "adam_bits", "documents", "memory_gib", "queue"} <= {name for name, _ in nested}
    assert [name for name, found in nested if not found.get("description")] == []
    # What is refused is quoted by the server and the form: the words of `else`, no pattern.
    words = [words for _, found in nested for words in rules_taken_from(found)]
    assert len(words) == 4 and all(each.endswith(".") and " " in each for each in words)
    assert [name for name, found in nested if "'pattern'" in repr(found)] == []


@FLOWS
def test_prefects_server_refuses_a_wrong_name_when_a_run_is_created(flow: Any) -> None:
    given = {"run_name": "My_Run", **({"over": {"epochs": [1]}} if flow is sweep else {})}
    with pytest.raises(ValidationError) as refused:
        validate(given, schema_of(flow), raise_on_error=True)
    assert str(refused.value) == (
        "Validation failed for field 'run_name'. Failure reason: \"a DNS label of at most 40 "
        "characters. Use lower-case letters, digits and '-', beginning and ending with a letter "
        'or digit." was expected'
    )
    for name, is_right in [("a", True), ("my-run-1", True), ("a\n", False), ("a" * 41, False)]:
        assert is_valid({**given, "run_name": name}, schema_of(flow)) == is_right


def properties_in(schema: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property at any depth, with its schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {}).items()
    for below in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(below, dict | list):
            yield from properties_in(below)


def rules_taken_from(schema: Any) -> Iterator[str]:
    """The words of each rule at any depth, which is taken out of the schema."""
    if isinstance(schema, dict) and schema.pop("if", None):
        yield schema.pop("else")["const"]
    for below in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(below, dict | list):
            yield from rules_taken_from(below)


WRONG = [
    *("", "Upper x", "a" * 300, -1, -5.5, 0, 1e9, 1.5, math.nan, math.inf, True, None),
    *([], [1], ["", {}], {"a": 1}, {"a": [1]}, "[1]", "{", ["a"]),
]
TOPICS = {
    **{
        name: field.default
        for name, field in RetrainParameters.model_fields.items()
        if dataclasses.is_dataclass(field.default)
    },
    "lora": LoraConfig(),
    "cluster": ClusterSettings(),
}
NOT_IN_WORDS = re.compile(
    r"should match|pattern|[\]\)][*+?]|\{\d+,\d*\}|\\[dw]|^\S+ (String|List|Input|Value)\b|"
    r"valid (string|integer|number|list|boolean|dictionary)|instance of|unable to parse|Expecting|"
    r"literal\[|list\[|engine_args\.a\.(str|int|float|bool)|Value error"
)


def wrong_requests() -> Iterator[tuple[type[Parameters], dict[str, Any]]]:
    sweeping = {"over": {"epochs": [1]}}
    for value in WRONG:
        for name in SweepParameters.model_fields:
            yield SweepParameters, {"run_name": "a", **sweeping, name: value}
        for name in RetrainParameters.model_fields:
            yield RetrainParameters, {"run_name": "a", name: value}
        for topic, usual in TOPICS.items():
            for key in dataclasses.fields(usual):
                yield RetrainParameters, {"run_name": "a", topic: {key.name: value}}


def problems_of(cls: type[Parameters], given: dict[str, Any]) -> list[str]:
    try:
        load_parameters(cls, given)
    except RequestError as error:
        return error.problems
    return []


def test_no_parameter_or_key_is_refused_by_a_regex_or_in_pydantics_words() -> None:
    told = [line for cls, given in wrong_requests() for line in problems_of(cls, given)]
    named = {line.split()[0] for line in told}
    assert len(told) > 1000 and {"run_name", "pvc", "lora.rank", "cluster.queue"} <= named
    assert {line for line in told if NOT_IN_WORDS.search(line.split("(got ")[0])} == set()
    no_value = ("looks like a key", "is not a parameter")  # is shown, or is what is wrong
    valued = [line for line in told if not any(words in line for words in no_value)]
    assert {line for line in valued if "(got " not in line} == set()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"run_name": "My_Run"},
            "run_name is not a DNS label of at most 40 characters (got 'My_Run'). Use lower-case "
            "letters, digits and '-', beginning and ending with a letter or digit.",
        ),
        (
            {"pvc": "Data"},
            "pvc is not the name of a volume: at most 253 characters (got 'Data'). Use lower-case "
            "letters, digits, '-' and '.', beginning and ending with a letter or digit.",
        ),
        ({"epochs": "two"}, "epochs should be a whole number (got 'two')."),
        ({"model": ""}, "model should have at least 1 character (got '')."),
        ({"lora": {"target_modules": 1}}, "lora.target_modules should be a list, or 'all-linear'"),
        ({"cluster": "{"}, "cluster is no JSON object (got '{')."),
        ({"data": None}, "data is no JSON object (got None). Give one like {"),
    ],
)
def test_a_refusal_says_the_rule(given: dict[str, Any], words: str) -> None:
    (problem,) = problems_of(Parameters, {"run_name": "a", **given})
    assert problem.startswith(words)


def test_a_digest_of_a_topic_is_refused_in_words() -> None:
    with pytest.raises(RequestError, match=r"sha256\.0 is not a SHA-256 digest \(got 'abc'\)"):
        load_json(SkipConfig, '{"sha256": ["abc"]}', "skip")
