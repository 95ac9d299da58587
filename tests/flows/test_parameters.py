"""The flow's parameters: names, order, defaults and ranges, and how a bad one is refused."""

import pytest

from flows.parameters import Parameters
from flows.without_effect import without_effect
from trainer.errors import RequestError
from trainer.parsing import load_parameters
from trainer.topics import LoraConfig

# Section 4 of the design: groups in its order, name=default. Users of the reference know these.
DESIGNED = """
run_name pvc=finetune-data region=ORD1 logs=logs project_id=huggingface random_seed=42
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
    "prompt_tokens": ["0"],
    "prompt_samples": ["0"],
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


def test_names_order_and_defaults_are_the_designs() -> None:
    defaults = load().model_dump()
    shown = ["run_name", *(f"{name}={value}" for name, value in list(defaults.items())[1:])]
    assert [item for item in shown if not item.startswith("finetuner_")][
        : len(DESIGNED)
    ] == DESIGNED


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
