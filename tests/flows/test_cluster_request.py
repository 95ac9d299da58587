"""What holds of a cluster: the parameter `cluster`, FINETUNE_CLUSTER, and the form's defaults."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.plan_request import plan_with
from flows.without_effect import without_effect
from trainer.contract.cluster_request import Cluster, cluster_settings_over
from trainer.contract.cluster_settings import ClusterSettings, defaults
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters, cluster_settings
from trainer.contract.validation import load_parameters
from trainer.plan.facts import PlanFacts
from trainer.planning.model_shape import ModelShape

OF_A_SITE = "{queue: gpus, nodes: 2, grace_seconds: 600, service_account: steps, user: 2000}"
GPT_J_TINY = {"model_type": "gptj", "n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 99}
# As Prefect's form sends them: the default of each setting that is a number or a text.
FORM = {name: value for name, value in defaults().items() if not isinstance(value, list | dict)}


def settings(**given: Any) -> ClusterSettings:
    return cluster_settings(load_parameters(Parameters, {"run_name": "x", **given}))


@pytest.mark.parametrize("form", [FORM, defaults(), {"nodes": 1}, {"queue": ""}, {"user": None}])
@pytest.mark.parametrize("as_text", [False, True])
def test_the_defaults_of_a_form_leave_the_clusters_settings_in_force(
    monkeypatch: pytest.MonkeyPatch, form: dict[str, Any], as_text: bool
) -> None:
    monkeypatch.setenv("FINETUNE_CLUSTER", OF_A_SITE)
    made = settings(cluster=json.dumps(form) if as_text else form)
    assert made == settings()
    assert (made.queue, made.nodes, made.user) == ("gpus", 2, 2000)


def test_what_a_user_changed_in_the_form_is_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CLUSTER", OF_A_SITE)
    made = settings(cluster={**FORM, "queue": "fast", "nodes": 4})
    assert (made.queue, made.nodes, made.grace_seconds) == ("fast", 4, 600)


def test_a_default_that_was_given_in_vain_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CLUSTER", OF_A_SITE)
    given = load_parameters(
        Parameters, {"run_name": "x", "cluster": {"nodes": 1, "ttl_seconds": 5}}
    )
    told = "cluster.nodes (its default is no choice: FINETUNE_CLUSTER says 2)"
    assert without_effect(given, on_cluster=True) == [told]
    form = load_parameters(Parameters, {"run_name": "x", "cluster": FORM})
    assert without_effect(form, on_cluster=False) == []


def test_the_form_shows_no_default_and_says_where_an_empty_field_is_decided() -> None:
    from pydantic import TypeAdapter

    shown = TypeAdapter(Cluster).json_schema()["properties"]
    assert shown.keys() == defaults().keys()
    assert not any("default" in setting for setting in shown.values())
    assert all("as FINETUNE_CLUSTER says" in setting["description"] for setting in shown.values())


def test_the_plan_counts_the_nodes_that_finetune_cluster_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FINETUNE_CLUSTER", OF_A_SITE)
    facts = PlanFacts(
        shape=ModelShape.from_config(GPT_J_TINY),
        num_contexts=1000,
        num_train_contexts=None,
        estimated=False,
        fetches=False,
        free_gib=None,
        corrections={},
        admitted=False,
    )
    asked = load_parameters(Parameters, {"run_name": "x", "cluster": FORM})
    assert plan_with(facts, asked, on_cluster=True).nodes == 2


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("nodes: two", ["nodes should be a whole number (got 'two')."]),
        ("nodes: 2.0", ["nodes should be a whole number (got 2.0)."]),
        ("queue:", ["queue should be text (got None)."]),
        ("secrets: hf_AbCdEf012", ["secrets should be a list (got a value that is"]),
        ("secrets: [hf_AbCdEf012]", ["secrets is no name of an object of Kubernetes"]),
        ("environment: {WORLD: 1}", ["environment.WORLD should be text"]),
        ("environment: {HF_TOKEN: x}", ["environment can be read in the Job (got HF_TOKEN)"]),
        ("grace_seconds: .nan", ["grace_seconds is less than 0 (got nan)."]),
        (
            "{nodes: 0, user: 0, queue: UPPER}",
            ["nodes is less than 1 (got 0).", "user must not be root", "queue is no name"],
        ),
        (
            "{queu: gpus, xyz: 1}",
            [
                "queu is not a setting of a cluster. Did you mean queue?",
                "xyz is not a setting of a cluster.",
            ],
        ),
    ],
)
def test_a_wrong_value_is_refused_as_the_parameters_is(
    monkeypatch: pytest.MonkeyPatch, text: str, problems: list[str]
) -> None:
    monkeypatch.setenv("FINETUNE_CLUSTER", text)
    with pytest.raises(RequestError) as refused:
        cluster_settings_over({})
    assert len(refused.value.problems) == len(problems)
    for told, expected in zip(refused.value.problems, problems, strict=True):
        assert told.startswith(f"FINETUNE_CLUSTER: {expected}")
    assert "hf_AbCdEf012" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("just words", "holds no names and values"),
        ("[a, b]", "holds no names and values"),
        ("x: [", "is not YAML"),
        ("date: 2026-13-45", "is not YAML"),
        ("&a {x: *a}", "is not YAML"),
        ("/nowhere/cluster.yaml", "names a file that cannot be read"),
        ("nowhere.yaml", "names a file that cannot be read"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str, words: str
) -> None:
    monkeypatch.setenv("FINETUNE_CLUSTER", text)
    with pytest.raises(RequestError, match=f"^FINETUNE_CLUSTER {words}"):
        cluster_settings_over({})


def test_settings_come_from_text_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CLUSTER", "queue: gpus")
    assert cluster_settings_over({}) == ClusterSettings(queue="gpus")
    (tmp_path / "cluster.yaml").write_text("namespace: research\nqueue: gpus\n")
    monkeypatch.setenv("FINETUNE_CLUSTER", str(tmp_path / "cluster.yaml"))
    assert cluster_settings_over({}) == ClusterSettings(queue="gpus", namespace="research")
    longer_than_a_file_name = "{environment: {NAMES: " + "x" * 5000 + "}}"
    monkeypatch.setenv("FINETUNE_CLUSTER", longer_than_a_file_name)
    assert len(cluster_settings_over({}).environment["NAMES"]) == 5000
