"""The flow's parameters: names, defaults and ranges, and how a bad one is refused."""

from pathlib import Path

import pytest

from flows.cli.options import given_parameters
from flows.without_effect import without_effect
from trainer.contract.errors import RequestError
from trainer.contract.image_reference import image_of
from trainer.contract.parameters import Parameters
from trainer.contract.topics import LoraConfig
from trainer.contract.validation import load_parameters

# Section 4 of the design: name=default. Users of the reference know these.
DESIGNED = """
run_name pvc=finetune-data region= logs=logs project_id=huggingface random_seed=42
no_resume=False
model=EleutherAI/gpt-neo-2.7B tokenizer= trust_remote_code=False tensorizer_uri=
dataset=dataset retokenize=False sanitize=True reorder= no_shuffle=False sampling=100 eot_token=
pad_token= boundary_token=\\n boundary_index=-1 context=2048 train_ratio=0.9
prompt_file= prompt_every=0 prompt_tokens=200 prompt_samples=5 top_k=50 top_p=0.95
temperature=1.0 repetition_penalty=1.1
learn_rate=5e-05 warmup_ratio=0.1 epochs=1 batch_size=-1 batch_size_divisor=1.0 gradients=5
zero_stage=3 force_fp16=False save_steps=500
run_inference=False inference_only=False inference_gpu=RTX_A5000
trainer_gpu=A40 trainer_gpus=1 trainer_cores=8 trainer_ram=192
""".split()

OUT_OF_RANGE = {
    "random_seed": ["-1", str(2**32)],
    "sampling": ["-1", "101"],
    "boundary_index": ["-2"],
    "context": ["0", "-5", "many"],
    "train_ratio": ["-0.1", "1.1"],
    "prompt_every": ["-1"],
    "prompt_tokens": ["-1"],
    "prompt_samples": ["-1"],
    "top_k": ["-1"],
    "top_p": ["1.5"],
    "temperature": ["0"],
    "repetition_penalty": ["0"],
    "learn_rate": ["-1e-5"],
    "warmup_ratio": ["2"],
    "epochs": ["0", "1.5"],
    "batch_size": ["0", "-2"],
    "batch_size_divisor": ["0"],
    "gradients": ["0"],
    "zero_stage": ["-1", "4"],
    "save_steps": ["-1"],
    "reorder": ["alphabetical"],
    "sanitize": ["perhaps"],
    "trainer_gpus": ["0"],
    "run_name": ["", "Upper", "under_score", "-dash", "dash-", "a" * 41, "a.b", "../up"],
    "pvc": ["", "/absolute", ".."],
    "model": [""],
}


def load(**given: object) -> Parameters:
    return load_parameters(Parameters, {"run_name": "run", **given})


def test_names_and_defaults_are_the_designs() -> None:
    defaults = load().model_dump()
    shown = {"run_name", *(f"{name}={value}" for name, value in list(defaults.items())[1:])}
    assert set(DESIGNED) <= shown


def test_the_texts_key_is_part_of_what_defines_a_run_and_not_empty() -> None:
    assert load().text_field == "text"
    assert load(text_field="story").request != load().request
    with pytest.raises(RequestError, match="text_field"):
        load(text_field="")


def test_a_topic_is_taken_as_an_object_or_as_text_and_refuses_unknown_keys() -> None:
    assert load(checkpoints='{"keep_last": 3}').checkpoints.keep_last == 3
    assert load(lora={"rank": 4}).lora == LoraConfig(rank=4)
    with pytest.raises(RequestError) as refused:
        load(lora='{"ranks": 4}', checkpoints={"keep_last": 0})
    assert any(problem.startswith("lora.ranks") for problem in refused.value.problems)
    assert any(problem.startswith("checkpoints.keep_last") for problem in refused.value.problems)


@pytest.mark.parametrize("value", ["rank=8", "8", 8, [8], ""])
def test_a_topic_that_is_no_object_is_refused_with_what_it_takes(value: object) -> None:
    with pytest.raises(RequestError, match=r"lora is no JSON object .*any of rank, alpha, dropout"):
        load(lora=value)


def test_the_key_nearest_to_a_topics_wrong_one_is_named() -> None:
    with pytest.raises(RequestError, match=r"lora\.rnk is not .* Did you mean lora\.rank\?"):
        load(lora='{"rnk": 8}')


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_a_value_out_of_range_is_refused_by_name_and_value(name: str, value: str) -> None:
    with pytest.raises(RequestError) as refused:
        load(**{name: value})
    (problem,) = refused.value.problems
    assert problem.startswith(name)
    assert f"(got {value!r})" in problem
    assert refused.value.exit_code == 78


def test_every_problem_is_told_at_once_with_the_nearest_known_name() -> None:
    with pytest.raises(RequestError) as refused:
        load(epochs=0, learning_rate=1e-4, context="x")
    assert len(refused.value.problems) == 3
    assert "learning_rate is not a parameter. Did you mean learn_rate?" in refused.value.problems


def test_a_key_of_a_topic_is_given_by_a_name_with_a_dot(tmp_path: Path) -> None:
    file = tmp_path / "request.yaml"
    file.write_text("run_name: run\noptimizer: {beta2: 0.95}\n")
    assignments = ("optimizer.weight_decay=0.1", "lora.rank=4", "schedule.kind=cosine")
    request = load(**given_parameters(assignments, file))
    assert (request.optimizer.beta2, request.optimizer.weight_decay) == (0.95, 0.1)
    assert request.lora == LoraConfig(rank=4) and request.schedule.kind == "cosine"
    after = ('optimizer={"beta2": 0.9}', "optimizer.clip=0", "budget.deadline=2030-01-01")
    request = load(**given_parameters(after, file))
    assert (request.optimizer.beta2, request.optimizer.clip) == (0.9, 0.0)
    assert request.budget.deadline == "2030-01-01"
    for wrong in ("optimizer.x=1", "nothing.x=1", "epochs.x=1"):
        with pytest.raises(RequestError, match=f"^{wrong.partition('.')[0]}"):
            load(**given_parameters((wrong,), None))


@pytest.mark.parametrize(
    ("upstream", "hint"),
    [
        ("inference_image", "finetuner_image and finetuner_tag"),
        ("tokenizer_image", "finetuner_image and finetuner_tag"),
        ("tokenizer_tag", "finetuner_image and finetuner_tag"),
        ("model_downloader_image", "finetuner_image and finetuner_tag"),
        ("download_dataset", "dataset=s3://"),
        ("hf_key", "name that Secret in FINETUNE_CLUSTER"),
        ("lr", "Did you mean learn_rate?"),
        ("bs", "Did you mean batch_size?"),
        ("bs-divisor", "Did you mean batch_size_divisor?"),
        ("seed", "Did you mean random_seed?"),
        ("fp16", "Did you mean force_fp16?"),
        ("context-size", "Did you mean context?"),
        ("batch_size_max", "batch_size_divisor divides it"),
        ("prompt-samples", "Did you mean prompt_samples?"),
    ],
)
def test_an_upstream_name_gets_its_hint_not_the_nearest_word(upstream: str, hint: str) -> None:
    with pytest.raises(RequestError) as refused:
        load(**{upstream: "hf_AbCdEf"})
    (problem,) = refused.value.problems
    assert problem.startswith(f"{upstream} is not a parameter. ") and hint in problem
    assert "hf_AbCdEf" not in problem


DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("given", "image"),
    [
        ({}, "finetune-steps:0.2.0"),
        ({"finetuner_image": "mine"}, "mine:0.2.0"),
        ({"finetuner_image": "mine:7"}, "mine:7"),
        # A form sends the default of the tag, which is no choice.
        ({"finetuner_image": "mine:7", "finetuner_tag": "0.2.0"}, "mine:7"),
        ({"finetuner_image": "mine:7", "finetuner_tag": "7"}, "mine:7"),
        ({"finetuner_image": "registry:5000/mine"}, "registry:5000/mine:0.2.0"),
        ({"finetuner_image": "registry:5000/a/mine:v1"}, "registry:5000/a/mine:v1"),
        ({"finetuner_image": "registry:5000/mine", "finetuner_tag": "2"}, "registry:5000/mine:2"),
        ({"finetuner_image": f"ghcr.io/a/mine@{DIGEST}"}, f"ghcr.io/a/mine@{DIGEST}"),
        ({"finetuner_image": f"ghcr.io/a/mine:v1@{DIGEST}"}, f"ghcr.io/a/mine@{DIGEST}"),
    ],
)
def test_an_image_may_have_its_tag_in_its_name(given: dict[str, str], image: str) -> None:
    made = load(**given)
    assert image_of(made.finetuner_image, made.finetuner_tag) == image
    again = load_parameters(Parameters, made.model_dump())
    assert again == made


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"finetuner_image": "mine:7", "finetuner_tag": "8"}, "got 'mine:7' and '8'"),
        ({"finetuner_image": "mine:"}, "finetuner_tag is no tag"),
        ({"finetuner_image": "Mine:7"}, "finetuner_image is no name of an image (got 'Mine:7')"),
        ({"finetuner_image": "a b"}, "finetuner_image is no name of an image (got 'a b')"),
        ({"finetuner_image": "mine@sha256:12"}, "finetuner_image is no name of an image"),
        ({"finetuner_image": f"mine@{DIGEST}", "finetuner_tag": "8"}, "beside a digest (got '8')"),
        ({"finetuner_image": "mine", "finetuner_tag": "a:b"}, "finetuner_tag is no tag"),
    ],
)
def test_an_image_that_no_cluster_can_pull_is_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        load(**given)
    (problem,) = refused.value.problems
    assert words in problem


def test_strings_of_a_command_line_and_ids_of_tokens_are_taken() -> None:
    given = load(epochs="3", learn_rate="1e-4", sanitize="false", eot_token=50256, context="128")
    assert (given.epochs, given.learn_rate, given.sanitize) == (3, 1e-4, False)
    assert (given.eot_token, given.context) == ("50256", 128)


def test_what_defines_a_run_leaves_out_where_it_runs_and_what_is_done_with_it() -> None:
    assert load(trainer_gpus=2, run_inference=True).request == load().request
    assert load(epochs=2).request != load().request
    assert load(random_seed=1).request != load().request


def test_what_was_set_and_chooses_nothing_is_known() -> None:
    given = load(
        trainer_gpu="H100",
        epochs=2,
        serving={"max_regression": 1, "gpus": 2, "ready_minutes": 5},
        prompt_every=5,
        prompt_tokens=20,  # of the evaluation's samples, too
    )
    anywhere = ["prompt_every (without prompt_file)"]
    here = ["trainer_gpu", "serving.gpus", "serving.ready_minutes", *anywhere]
    assert without_effect(given, on_cluster=False) == here
    assert without_effect(given, on_cluster=True) == anywhere
    tracked = load(prompt_every=5, prompt_file="p.txt", project_id="mine", wandb_key="KEY")
    assert without_effect(tracked, on_cluster=False) == []


def test_a_project_has_effect_where_the_environment_names_a_tracker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Parameters(run_name="a", project_id="westerns")
    assert without_effect(asked, on_cluster=False) == ["project_id (without wandb_key)"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert without_effect(asked, on_cluster=False) == []


@pytest.mark.parametrize("key", ["4f" * 20, "wandb_v1_" + "aB3" * 20, "two words", "a=b"])
def test_a_key_where_a_name_belongs_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(RequestError, match="wandb_key looks like a key") as refused:
        load(wandb_key=key)
    assert key not in str(refused.value)
    assert load(wandb_key="wandb-token-secret").wandb_key == "wandb-token-secret"


@pytest.mark.parametrize(
    "name", ["dataset", "model", "tokenizer", "tensorizer_uri", "prompt_file", "logs"]
)
@pytest.mark.parametrize("path", ["/etc", "../outside", "a/../../b"])
def test_a_path_that_leaves_the_volume_is_refused_by_name(name: str, path: str) -> None:
    with pytest.raises(RequestError, match=rf"^{name} leads out of the volume \(got "):
        load(**{name: path})


CREDENTIALS = [
    "https://user:s3cret@host/x.txt",
    "https://s3cret@host/x.txt",
    "s3://AKIA:s3cret@bucket/west",
    "simplecache::https://user:s3cret@host/x.txt",
    "https://host/x.txt?X-Amz-Signature=s3cret&X-Amz-Expires=60",
    "https://host/x.txt?a=1&sig=s3cret",
    "https://host/x.txt?Token=s3cret",
]


@pytest.mark.parametrize("name", ["dataset", "model", "tokenizer", "prompt_file", "tensorizer_uri"])
@pytest.mark.parametrize("url", CREDENTIALS)
def test_credentials_in_an_address_are_refused_and_not_shown(name: str, url: str) -> None:
    with pytest.raises(RequestError, match=rf"^{name} holds a password or signature") as refused:
        load(**{name: url})
    assert "s3cret" not in str(refused.value) and "Secret that cluster.secrets" in str(
        refused.value
    )


def test_credentials_in_a_topics_address_are_refused_and_not_shown() -> None:
    with pytest.raises(RequestError, match="holds a password or signature") as refused:
        load(serving={"tensorizer_uri": CREDENTIALS[0]})
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["https://host/a@b.txt", "s3://texts/west?versionId=3", "org/name@main"]
)
def test_an_address_without_credentials_is_taken(url: str) -> None:
    assert load(model=url).model == url


@pytest.mark.parametrize("dataset", [".", "./", "././", "file://", "file:///", "s3://", "x::"])
def test_an_address_of_nothing_is_refused(dataset: str) -> None:
    with pytest.raises(RequestError, match="dataset names no file or folder"):
        load(dataset=dataset)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("run_name: 0123", {"run_name": "0123"}),
        ("run_name: 2026-11-30", {"run_name": "2026-11-30"}),
        ("run_name: 123\nlearn_rate: 1e-5", {"run_name": "123", "learn_rate": 1e-5}),
        ("run_name: 1e3", {"run_name": "1e3"}),
        ("run_name: on", {"run_name": "on"}),
        ("run_name: a\nno_shuffle: true\nepochs: 2", {"no_shuffle": True, "epochs": 2}),
        ('{"run_name": "a", "lora": {"rank": 4, "dropout": 1e-1}}', {}),
        ("run_name: a\nlora: {rank: 4, dropout: 0.1}", {}),
        ("run_name: a\nlora:", {"lora": None}),
    ],
)
def test_a_file_of_parameters_is_read_as_p_reads_them(
    text: str, values: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "request.yaml").write_text(text)
    given = given_parameters((), tmp_path / "request.yaml")
    parameters = load_parameters(Parameters, given)
    assert {name: getattr(parameters, name) for name in values} == values
    if not values:
        assert parameters.lora is not None
        assert (parameters.lora.rank, parameters.lora.dropout) == (4, 0.1)


@pytest.mark.parametrize("text", ["- a", "a", "a: [", "", "[" * 5000])
def test_a_file_without_parameters_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "request.yaml").write_text(text)
    with pytest.raises(RequestError, match=r"^--params "):
        given_parameters((), tmp_path / "request.yaml")
