"""Adapters of several runs on one base: in one batch, by name over HTTP, replaced while asked."""

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model

from infra.local import service as local_service
from infra.local.service import Service
from infra.local.service_client import Address
from tasks.cluster_deployment import serving_spec
from tasks.local_adapters import (
    adapters_of,
    hosts_of,
    problems_of,
    refused_adapters,
    replace_everywhere,
)
from tests.serving import tiny_models, trained
from tests.serving.asking import Told, running
from trainer.contract.adapters_record import Wanted
from trainer.contract.errors import RequestError, StepError
from trainer.contract.parameter_types import NO_GPU
from trainer.contract.topics import ServingConfig
from trainer.models import load_model
from trainer.serving.engine.adapters import AdapterRows
from trainer.serving.engine.engine import Engine
from trainer.serving.engine.sequences import Event, SequenceRequest

PROMPT = (5, 6, 7)


def finish(volume: Path, run: str, seed: int, **given: Any) -> Path:
    """A run's final folder, its adapter in it, as the finetune step leaves it; the one before
    goes."""
    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj", "fc_in"], **given}
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    adapted: Any = get_peft_model(load_model(volume / "models/base"), config)
    adapted.peft_config["default"].base_model_name_or_path = str(volume / "models/base")
    final, part = volume / run / "final", volume / run / "part"
    shutil.rmtree(final, ignore_errors=True)
    adapted.save_pretrained(part / "adapter")
    merged = adapted.merge_and_unload().eval()
    merged.save_pretrained(part)
    tiny_models.tokenizer().save_pretrained(part)
    return trained.seal_with_golden(part, final, merged)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with a base model and three runs of adapters."""
    volume = tmp_path_factory.mktemp("volume")
    tiny_models.save(volume / "models/base")
    finish(volume, "town", 1)
    finish(volume, "sea", 2, r=2, use_rslora=True)
    finish(volume, "moon", 3, target_modules=["out_proj"])
    return volume


@pytest.fixture(scope="module")
def service(volume: Path) -> Any:
    """The run `town`, served with the adapters of the two others."""
    adapters = {name: f"{name}/final" for name in ("town", "sea", "moon")}
    config = {"adapters": adapters}
    yield local_service.start(
        volume,
        "town",
        "town/final",
        config=config,
        check=lambda s: problems_of(s, volume, adapters),
    )
    local_service.stop(volume, "town")


def asked(engine: Engine, names: list[str]) -> list[list[int]]:
    """The greedy ids that each adapter answers PROMPT with, all asked at once."""
    told, done = [Told() for _ in names], threading.Semaphore(0)
    request = SequenceRequest(prompt_ids=PROMPT, max_new_tokens=30, top_logprobs=0)
    for number, name in enumerate(names):

        def sink(events: list[Event], number: int = number) -> None:
            for event in events:
                told[number].ids += [event.token_id] if event.token_id is not None else []
                if event.finish:
                    done.release()

        engine.submit([request], sink, name)
    for _ in names:
        assert done.acquire(timeout=240)
    return [each.ids for each in told]


def of_merged(folder: Path) -> list[int]:
    with running(load_model(folder)) as engine:
        return asked(engine, [""])[0]


def completed(service: Service, name: str, **more: Any) -> httpx.Response:
    body = {"model": name, "prompt": list(PROMPT), "max_tokens": 30, "temperature": 0, **more}
    return httpx.post(
        f"{service.url}/v1/completions", json={**body, "return_token_ids": True}, timeout=240
    )


def ids_of(service: Service, name: str) -> list[int]:
    response = completed(service, name)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == name
    return response.json()["choices"][0]["token_ids"]


def test_adapters_mixed_in_a_batch_answer_as_their_merged_models(volume: Path) -> None:
    model = load_model(volume / "models/base")
    rows = AdapterRows(model)
    for name in ("town", "sea", "moon"):
        rows.put(name, rows.load(volume / name / "final/adapter", str(volume / "models/base")))
    expected = {
        "": of_merged(volume / "models/base"),
        **{name: of_merged(volume / name / "final") for name in ("town", "sea", "moon")},
    }
    assert len({tuple(ids) for ids in expected.values()}) == 4
    with running(model) as engine:
        engine.adapters = rows
        mixed = ["sea", "", "town", "moon", "sea"]
        assert asked(engine, mixed) == [expected[name] for name in mixed]
        assert asked(engine, ["moon"]) == [expected["moon"]]
        with pytest.raises(ValueError, match="'gone' is not served any more"):
            asked(engine, ["gone"])


def test_a_server_answers_each_adapter_by_its_name(service: Service, volume: Path) -> None:
    listed = httpx.get(f"{service.url}/v1/models").json()
    assert listed["models"] == ["final", "town", "sea", "moon"]
    assert len({model["digests"]["model"] for model in listed["data"]}) == 3
    for name in ("town", "sea", "moon"):
        assert ids_of(service, name) == of_merged(volume / name / "final")
    assert ids_of(service, "final") == ids_of(service, "town")
    predict = {"instances": ["The sheriff"], "parameters": {"max_new_tokens": 12}}
    said = [
        httpx.post(f"{service.url}/v1/models/{name}:predict", json=predict, timeout=240).json()
        for name in ("town", "sea")
    ]
    assert said[0] != said[1]
    assert httpx.get(f"{service.url}/v2/models/sea").json()["name"] == "sea"


@pytest.mark.parametrize("path", ["/v1/models/mars", "/v2/models/mars", "/v2/models/mars/ready"])
def test_an_unknown_model_is_refused_by_name(service: Service, path: str) -> None:
    for response in (httpx.get(service.url + path), completed(service, "mars")):
        assert response.status_code == 404
        assert "mars" in response.text
        assert "'sea'" in response.text


def test_the_command_line_finds_the_server_of_an_adapter(service: Service, volume: Path) -> None:
    from flows.cli.runs.ask import _service

    assert _service(volume, "sea") == Address(service.url, "sea")
    with pytest.raises(RequestError, match="mars is not served"):
        _service(volume, "mars")


def test_a_new_version_replaces_an_adapter_while_the_server_answers(
    service: Service, volume: Path
) -> None:
    before, stop, seen = ids_of(service, "sea"), threading.Event(), set()
    town = ids_of(service, "town")

    def keep_asking() -> None:
        while not stop.is_set():
            seen.add(tuple(ids_of(service, "sea")))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        after = of_merged(finish(volume, "sea", 7))
        said: list[str] = []
        replace_everywhere(volume, "sea", said.append)
    finally:
        stop.set()
        asking.join()
    assert said == ["the service of town answers sea with sea/final now"]
    assert ids_of(service, "sea") == after
    assert seen <= {tuple(before), tuple(after)}, "an answer was of neither version"
    assert ids_of(service, "town") == town
    now = local_service.running(volume, "town")
    assert now is not None
    assert now.pid == service.pid
    listed = httpx.get(f"{service.url}/v1/models").json()
    assert listed["models"] == ["final", "town", "sea", "moon"], "a trial was left"


def test_an_adapter_that_fails_the_gate_leaves_the_one_before(
    service: Service, volume: Path
) -> None:
    before = ids_of(service, "moon")
    final = finish(volume, "moon", 8, target_modules=["out_proj"])
    golden = json.loads((final / "golden.json").read_text())
    golden["prompts"][0]["next_log_prob"] -= 1
    (final / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(StepError, match=r"moon of town's service was not replaced: adapter moon@"):
        replace_everywhere(volume, "moon", print)
    assert ids_of(service, "moon") == before
    finish(volume, "moon", 9, target_modules=["wte"])
    with pytest.raises(StepError, match="changes what is no linear layer"):
        replace_everywhere(volume, "moon", print)
    assert ids_of(service, "moon") == before
    while "refused" in httpx.get(f"{service.url}/v1/models").json():
        time.sleep(0.2)  # until the server has read that the trial is over


@pytest.mark.parametrize(
    ("given", "base", "words"),
    [
        ({"use_dora": True}, "", r"can't be served beside others \(got use_dora\)"),
        ({}, "models/other", "is of another base model"),
        ({"modules_to_save": ["lm_head"]}, "", "modules_to_save"),
    ],
)
def test_other_kinds_of_adapters_are_refused(
    volume: Path, given: dict[str, Any], base: str, words: str
) -> None:
    folder = finish(volume, "odd", 4, **given) / "adapter"
    with pytest.raises(RequestError, match=words):
        AdapterRows(load_model(volume / "models/base")).load(folder, base)


def test_runs_that_cannot_be_beside_others_are_named(volume: Path) -> None:
    trained.save(volume / "plain/final")
    with pytest.raises(RequestError) as refused:
        adapters_of(volume, ["sea", "plain", "ghost"])
    assert "'plain'" in refused.value.problems[0]
    assert "'ghost'" in refused.value.problems[1]
    champion = volume / "retrain/tides/champion.json"
    champion.parent.mkdir(parents=True)
    champion.write_text(json.dumps({"run": "sea", "since": "now", "tokenizer_digest": ""}))
    found = adapters_of(volume, ["tides"])["tides"]
    assert found == Wanted(model="sea/final", digest=adapters_of(volume, ["sea"])["sea"].digest)
    assert hosts_of(volume, "tides") == {}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"adapters": ["sea"], "engine": "vllm"}, "can't be combined with engine='vllm'"),
        ({"adapters": ["sea"], "engine": "auto"}, "can't be combined with engine='auto'"),
        ({"adapters": ["sea", "sea"]}, "names a run twice"),
        ({"adapters": ["final"]}, "can't have the name 'final'"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServingConfig(**given)


def test_a_plan_names_what_stands_in_the_way(volume: Path) -> None:
    assert refused_adapters(["sea"], volume, is_lora=True) == []
    (problem,) = refused_adapters(["sea"], volume, is_lora=False)
    assert problem.startswith("serving.adapters needs a run with lora (got sea)")
    assert refused_adapters([], volume, is_lora=False) == []
    spec = {"serving": {"adapters": ["sea"]}, "inference_gpu": NO_GPU}
    with pytest.raises(RequestError, match="can't be served on Kubernetes"):
        serving_spec(spec, {})
