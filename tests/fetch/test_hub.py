"""Models from the hub: a double on loopback, the step as a real process."""

import json

from tests.fetch.conftest import KEPT, Step, files, folder, model_files
from tests.hub_double import COMMIT, HubDouble
from trainer.contract.events import parse_event
from trainer.fetch.weights import INDEX, SINGLE


def test_model_is_downloaded_once_without_what_is_not_wanted(step: Step, hub: HubDouble) -> None:
    ended = step.run(model="org/tiny")
    assert ended.exit_code == 0, ended.errors
    assert ended.outcome["result"]["model"] == "models/org/tiny"
    assert ended.outcome["result"]["downloaded"] is True
    assert ended.outcome["reused"] is False
    there = files(folder(step))
    marker = json.loads(there.pop(".fetched.json"))
    assert there == {**model_files(), **KEPT}
    assert marker["commit"] == COMMIT

    hub.requests.clear()
    again = step.run(model="org/tiny")
    assert again.exit_code == 0, again.errors
    assert again.outcome["result"]["downloaded"] is False
    assert again.outcome["reused"] is True
    assert hub.requests == []


def test_nothing_is_downloaded_for_a_request_that_is_refused(step: Step, hub: HubDouble) -> None:
    assert "dataset is not there" in step.refused(model="org/tiny", dataset="nothing")
    assert hub.requests == []


def test_download_reports_its_bytes(step: Step, hub: HubDouble) -> None:
    ended = step.run(model="org/tiny")
    events = [event for line in ended.output.splitlines() if (event := parse_event(line))]
    last = events[-1].fields
    total = sum(map(len, {**model_files(), **KEPT}.values()))
    assert (last["label"], last["done"], last["total"], last["unit"]) == (
        "download org/tiny",
        total,
        total,
        "bytes",
    )


def test_shards_come_with_their_index(step: Step, hub: HubDouble) -> None:
    model = hub.models["org/tiny"].files
    name = "model-00001-of-00001.safetensors"
    model[name] = model.pop(SINGLE)
    model[INDEX] = json.dumps({"weight_map": {"lm_head.weight": name}}).encode()
    ended = step.run(model="org/tiny")
    assert ended.exit_code == 0, ended.errors
    assert files(folder(step)).keys() >= {name, INDEX}


def test_pickled_weights_are_refused_before_anything_is_downloaded(
    step: Step, hub: HubDouble
) -> None:
    del hub.models["org/tiny"].files[SINGLE]
    message = step.refused(model="org/tiny")
    assert "no safetensors weights on the hub (got org/tiny)" in message
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


def test_model_that_is_nowhere_is_refused(step: Step, hub: HubDouble) -> None:
    message = step.refused(model="org/typo")
    assert "neither a folder on the volume nor a model on the hub (got 'org/typo'" in message


def test_gated_model_says_where_to_accept_its_terms(step: Step, hub: HubDouble) -> None:
    hub.models["org/tiny"].gated = True
    message = step.refused(model="org/tiny")
    assert f"Accept them at {hub.url}/org/tiny" in message
    assert "HF_TOKEN" in message


def test_private_model_is_fetched_with_the_token(step: Step, hub: HubDouble) -> None:
    hub.models["org/tiny"].token = "hf_of_this_test"
    assert "HF_TOKEN" in step.refused(model="org/tiny")
    step.environment["HF_TOKEN"] = "hf_of_this_test"
    ended = step.run(model="org/tiny")
    assert ended.exit_code == 0, ended.errors
    assert "hf_of_this_test" not in ended.output + ended.errors + json.dumps(ended.outcome)


def test_revision_has_a_folder_of_its_own(step: Step, hub: HubDouble) -> None:
    hub.models["org/tiny"].revisions += ("refs/pr/3",)
    ended = step.run(model="org/tiny@refs/pr/3")
    assert ended.exit_code == 0, ended.errors
    assert ended.outcome["result"]["model"] == "models/org/tiny@refs--pr--3"
    assert "model has no such revision (got 'v9' of org/tiny)" in step.refused(model="org/tiny@v9")


def test_code_of_the_hub_needs_a_pinned_commit(step: Step, hub: HubDouble) -> None:
    message = step.refused(model="org/tiny", trust_remote_code=True)
    assert "model is not pinned" in message
    assert "org/tiny@COMMIT" in message
    ended = step.run(model=f"org/tiny@{COMMIT}", trust_remote_code=True)
    assert ended.exit_code == 0, ended.errors
    assert "modeling.py" in files(step.volume / ended.outcome["result"]["model"])


def test_tokenizer_of_the_hub_comes_without_weights(step: Step, hub: HubDouble) -> None:
    ended = step.run(tokenizer="org/tiny")
    assert ended.exit_code == 0, ended.errors
    assert ended.outcome["result"]["model"] == "models/tiny"
    assert ended.outcome["result"]["tokenizer"] == "models/org/tiny--tokenizer"
    assert hub.gets(SINGLE) == []
    # It is not taken for the model.
    assert step.run(model="org/tiny").exit_code == 0
    assert hub.gets(SINGLE) == [""]


def test_model_that_is_here_serves_as_tokenizer_too(step: Step, hub: HubDouble) -> None:
    assert step.run(model="org/tiny").exit_code == 0
    hub.requests.clear()
    ended = step.run(tokenizer="org/tiny")
    assert ended.exit_code == 0, ended.errors
    assert ended.outcome["result"]["tokenizer"] == "models/org/tiny"
    assert hub.requests == []


def test_downloaded_model_is_checked_with_everything_else(step: Step, hub: HubDouble) -> None:
    assert step.run(model="org/tiny").exit_code == 0
    message = step.refused(model="org/tiny", context=33, dataset="nothing", check_only=True)
    assert "context is larger" in message
    assert "dataset is not there" in message


def test_downloaded_model_is_checked_like_one_on_the_volume(step: Step, hub: HubDouble) -> None:
    hub.models["org/tiny"].files["tokenizer.json"] = model_files(66)["tokenizer.json"]
    assert "more tokens than the model has embeddings" in step.refused(model="org/tiny")


def test_the_plan_step_reads_the_models_config_and_brings_nothing(
    step: Step, hub: HubDouble
) -> None:
    step.name = "plan"
    known = json.loads(hub.models["org/tiny"].files["config.json"])
    layers = json.dumps(known | {"n_layer": 2, "n_head": 2}).encode()
    hub.models["org/tiny"].files["config.json"] = layers
    hub.failures["config.json"] = 1  # the hub is asked again
    before = files(step.volume)
    asked = {"model": "org/tiny", "context": 16, "dataset": "dataset"}
    ended = step.run(model="org/tiny", request=asked)
    assert ended.exit_code == 0, ended.errors
    facts = ended.outcome["result"]["plan_facts"]
    assert (facts["shape"]["layers"], facts["num_contexts"]) == (2, 1)
    assert facts["free_gib"] > 0
    assert [path for _, path, _ in hub.requests if path.endswith(SINGLE)] == []
    assert "org/other" in step.refused(model="org/other")
    del hub.models["org/tiny"].files[SINGLE]
    assert "no safetensors weights" in step.refused(model="org/tiny")
    del hub.models["org/tiny"].files["config.json"]
    hub.models["org/tiny"].files[SINGLE] = b"weights"
    assert "model has no config.json on the hub (got org/tiny)" in step.refused(model="org/tiny")
    hub.requests.clear()
    assert "dataset is not there" in step.refused(model="org/tiny", dataset="nothing")
    assert hub.requests == []
    assert files(step.volume) == before


def test_offline_mode_is_respected(step: Step, hub: HubDouble) -> None:
    step.environment["HF_HUB_OFFLINE"] = "1"
    assert "HF_HUB_OFFLINE" in step.refused(model="org/tiny")
    assert hub.requests == []


def test_token_goes_to_the_hub_alone(step: Step, hub: HubDouble) -> None:
    with HubDouble(hub.models) as elsewhere:
        hub.elsewhere = elsewhere.url
        step.environment["HF_TOKEN"] = "hf_of_this_test"
        ended = step.run(model="org/tiny")
        assert ended.exit_code == 0, ended.errors
        assert elsewhere.gets(SINGLE) == [""]
        assert set(elsewhere.tokens.values()) == {""}
        sent = {token for path, token in hub.tokens.items() if "org/tiny" in path}
        assert sent == {"Bearer hf_of_this_test"}
        assert hub.gets(SINGLE) == []


def test_two_at_once_download_once(step: Step, hub: HubDouble) -> None:
    hub.stalls = {SINGLE: 10_000}
    first = step.start(model="org/tiny", run_name="one")
    assert hub.stalled.wait(240)
    second = step.start(model="org/tiny", run_name="two")
    assert second.stdout is not None
    assert "waiting for another run that downloads org/tiny" in second.stdout.readline()
    hub.go_on.set()
    ends = [step.end(first), step.end(second)]
    assert [end.exit_code for end in ends] == [0, 0], [end.errors for end in ends]
    assert [end.outcome["result"]["downloaded"] for end in ends] == [True, False]
    assert hub.gets(SINGLE) == [""]


def test_model_that_a_user_put_in_its_place_is_taken(step: Step, hub: HubDouble) -> None:
    folder(step).parent.mkdir()
    (step.volume / "models/tiny").rename(folder(step))
    ended = step.run(model="org/tiny")
    assert ended.exit_code == 0, ended.errors
    assert ended.outcome["reused"] is True
    assert hub.requests == []
