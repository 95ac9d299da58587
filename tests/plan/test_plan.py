"""Plans: counts, memory, time and money, and what is refused with its way out."""

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.plan.models import DEMO, GPT_2, GPT_J_6B, PYTHIA_12B
from trainer.contract.parameters import Parameters
from trainer.planning import seconds
from trainer.planning.catalogue import load_gpus, load_prices
from trainer.planning.memory_model import REFERENCE
from trainer.planning.model_shape import ModelShape
from trainer.planning.plan import Plan
from trainer.planning.planner import plan
from trainer.planning.work import Place

DEFAULTS = Parameters(run_name="run").model_dump()
GPT_J = ModelShape.from_config(GPT_J_6B)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def planned(
    config: dict[str, Any] = GPT_J_6B,
    contexts: int = 49_734,
    place: Place | None = None,
    correction: float = 1.0,
    **parameters: Any,
) -> Plan:
    return plan(
        ModelShape.from_config(config),
        contexts,
        DEFAULTS | parameters,
        catalogue=load_gpus(),
        prices=load_prices(),
        place=place,
        correction=correction,
    )


def test_the_references_published_run() -> None:
    # GPT-J 6B on one A40, 49,734 contexts of 2,048: 2,238 steps of about 66 seconds, with
    # 37 GB of GPU memory and 115 GB of host memory in use, at 2.00 dollars an hour.
    made = planned(batch_size=4, gradients=5, train_ratio=0.9, trainer_ram=128)
    assert made.num_train_contexts == 44_760
    assert made.steps == 2_238
    assert made.tokens == 44_760 * 2_048
    assert made.zero_stage == 3 and made.offload
    assert made.seconds_per_step == pytest.approx(66, rel=0.25)
    assert made.gpu_memory_gib * 2**30 == pytest.approx(37e9, rel=0.25)
    assert made.host_memory_gib * 2**30 == pytest.approx(115e9, rel=0.25)
    assert made.dollars_per_hour == pytest.approx(2.00)
    assert made.hours == pytest.approx(2_238 * 66 / 3600, rel=0.25)
    assert made.dollars == pytest.approx(made.hours * 2.00)
    assert made.problems == []


def test_the_references_own_way_takes_the_time_it_published() -> None:
    # Eager attention, every layer computed again, whole logits; ours is a little faster.
    gpu = load_gpus()["A40"]
    shape = ModelShape.from_config(GPT_J_6B)
    parts = seconds.step_seconds(shape, REFERENCE, gpu, gradients=5, cores=8)
    assert sum(parts.values()) == pytest.approx(66, rel=0.1)
    assert planned(batch_size=4).seconds_per_step < sum(parts.values())


def test_several_gpus_spend_time_on_each_other_and_less_on_work() -> None:
    one = planned(trainer_gpu="H100_NVLINK_80GB", batch_size=1)
    four = planned(trainer_gpu="H100_NVLINK_80GB", batch_size=1, trainer_gpus=4)
    assert "between processes" not in one.seconds_parts
    assert four.seconds_parts["between processes"] > 0
    assert four.steps == pytest.approx(one.steps / 4, abs=1)
    assert four.hours < one.hours


def test_several_nodes_cost_as_many_machines_and_talk_slower() -> None:
    one = planned(trainer_gpu="H100_NVLINK_80GB", batch_size=1, trainer_gpus=2)
    two = planned(
        trainer_gpu="H100_NVLINK_80GB", batch_size=1, trainer_gpus=2, cluster={"nodes": 2}
    )
    assert two.processes == 2 * one.processes
    assert two.steps == pytest.approx(one.steps / 2, abs=1)
    assert two.dollars_per_hour == pytest.approx(2 * (one.dollars_per_hour or 0))
    talk = "between processes"
    assert two.seconds_parts[talk] > 2 * one.seconds_parts[talk]


def test_worked_out_batch_is_the_references() -> None:
    assert planned(batch_size=-1).batch_size == 4


@pytest.mark.parametrize(
    ("contexts", "changes", "setting"),
    [
        # A batch that fills the GPU, 64, would make 3 steps of 320 contexts of these.
        (1000, {"context": 128}, (9, 1)),
        (1000, {"context": 128, "gradients": 8}, (1, 8)),  # a choice, that is kept
        (1000, {"context": 128, "epochs": 20}, (64, 3)),
        (1000, {"context": 128, "trainer_gpus": 4}, (2, 1)),
        (1000, {"context": 128, "schedule": {"max_steps": 20}}, (47, 1)),
        (1000, {"context": 128, "batch_size": 64}, (64, 5)),  # both are as asked
        (49_734, {"context": 128}, (64, 5)),
        (50, {"context": 128}, (1, 1)),  # as many as the text has
    ],
)
def test_a_computed_batch_leaves_a_hundred_steps(
    contexts: int, changes: dict[str, Any], setting: tuple[int, int]
) -> None:
    made = planned(GPT_2, contexts, **changes)
    assert (made.batch_size, made.gradients) == setting
    wanted = min(100, contexts * 9 // 10, changes.get("schedule", {}).get("max_steps", 100))
    assert made.steps >= wanted or "batch_size" in changes or changes.get("gradients")
    if "gradients" not in changes and setting[1] < 5:
        assert any("gradients is" in note and "not 5" in note for note in made.notes)


def test_a_computed_batch_leaves_steps_without_a_gpu_too() -> None:
    here = Place(on_cpu=True, memory_gib=16, cores=2)
    made = planned(DEMO, 800, here, context=128)
    assert (made.batch_size, made.gradients, made.steps) == (4, 1, 180)


def test_few_steps_are_warned_of() -> None:
    few = planned(contexts=400, batch_size=4)
    assert any(note.startswith("the text gives 18 optimizer steps of 20") for note in few.notes)
    assert not planned(contexts=4000, batch_size=4).notes


def test_parts_add_up() -> None:
    made = planned()
    assert sum(made.gpu_memory_parts_gib.values()) == pytest.approx(made.gpu_memory_gib)
    assert sum(made.host_memory_parts_gib.values()) == pytest.approx(made.host_memory_gib)
    assert sum(made.seconds_parts.values()) == pytest.approx(made.seconds_per_step)


def test_small_figures_of_the_json_are_no_zeros() -> None:
    made = planned(DEMO, 100, context=16, batch_size=1, gradients=1)
    fields = made.to_dict()
    assert 0 < made.seconds_per_step < 0.0005
    assert fields["seconds_per_step"] == pytest.approx(made.seconds_per_step, rel=1e-3)
    assert fields["hours_parts"]["steps"] == pytest.approx(made.hours_parts["steps"], rel=1e-3)


@pytest.mark.parametrize(
    ("contexts", "ratio", "batch", "gradients", "gpus", "epochs", "steps"),
    [
        (100, 1.0, 1, 1, 1, 1, 100),
        (101, 1.0, 2, 5, 1, 1, 11),  # the last step of an epoch is smaller
        (101, 1.0, 2, 5, 1, 3, 33),
        (100, 0.29, 1, 1, 1, 1, 29),
        (1000, 0.9, 4, 5, 2, 1, 23),
    ],
)
def test_steps_are_those_of_the_training_plan(
    contexts: int, ratio: float, batch: int, gradients: int, gpus: int, epochs: int, steps: int
) -> None:
    made = planned(
        GPT_2,
        contexts,
        context=1024,
        train_ratio=ratio,
        batch_size=batch,
        gradients=gradients,
        trainer_gpus=gpus,
        epochs=epochs,
    )
    assert made.steps == steps


def test_split_of_a_store_goes_before_the_ratio() -> None:
    catalogue, prices = load_gpus(), load_prices()
    made = plan(GPT_J, 1000, DEFAULTS, catalogue=catalogue, prices=prices, num_train_contexts=870)
    assert made.num_train_contexts == 870
    assert planned(contexts=1000).num_train_contexts == 900


def test_earlier_runs_correct_the_time() -> None:
    once, twice = planned(), planned(correction=2.0)
    assert twice.seconds_per_step == pytest.approx(2 * once.seconds_per_step)


def test_faster_gpus_and_more_of_them_are_faster() -> None:
    seconds = [
        planned(trainer_gpu=gpu, trainer_gpus=count, batch_size=1, gradients=8 // count).hours
        for gpu, count in (("A40", 1), ("A100_NVLINK_80GB", 1), ("A100_NVLINK_80GB", 8))
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_gpu_without_bf16_is_planned_in_fp16() -> None:
    assert planned(GPT_2, context=512, trainer_gpu="Tesla_V100_PCIE").precision == "fp16"
    assert planned(force_fp16=True).precision == "fp16"
    assert planned().precision == "bf16"


def test_class_without_a_price_is_planned_without_money() -> None:
    prices = load_prices()
    unpriced = type(prices)(core=prices.core, memory_gib=prices.memory_gib, gpus={})
    made = plan(GPT_J, 1000, DEFAULTS, catalogue=load_gpus(), prices=unpriced)
    assert (made.dollars_per_hour, made.dollars, made.problems) == (None, None, [])
    assert made.hours > 0
    limited = DEFAULTS | {"budget": {"max_dollars": 5}}
    (problem,) = plan(GPT_J, 1000, limited, catalogue=load_gpus(), prices=unpriced).problems
    assert problem.startswith("budget.max_dollars can't be kept (got 5). A40 has no price")
    assert "trainer/planning/prices.yaml" in problem


def test_plan_for_a_cpu_needs_host_memory_alone() -> None:
    place = Place(on_cpu=True, memory_gib=16, cores=2)
    made = planned(GPT_2, 1000, place, context=128)
    assert (made.gpu, made.gpu_memory_gib, made.offload, made.precision) == ("", 0.0, False, "fp32")
    assert 1 < made.host_memory_gib < 16
    assert made.problems == []
    assert made.dollars == 0


def test_settings_that_need_a_gpu_are_refused_for_a_cpu_before_anything_starts() -> None:
    place = Place(on_cpu=True, memory_gib=16, cores=2)
    asked = {"force_fp16": True, "kernels": {"liger": True, "compile": True}, "trainer_gpus": 2}
    problems = planned(GPT_2, 1000, place, context=128, **asked).problems
    names = ["force_fp16 asks for fp16", "kernels.liger needs a GPU", "kernels.compile can't"]
    assert [p.startswith(name) for p, name in zip(problems, names, strict=True)] == [True] * 3
    on_gpus = planned(context=128, force_fp16=True, kernels={"liger": True, "compile": False})
    assert on_gpus.problems == []


@pytest.mark.parametrize(
    ("changes", "gib"),
    [
        ({"batch_size": 16}, 0.66),  # `make demo`
        # Peaks of whole steps: python -m tests.training.host_peaks, docs/log.md
        ({}, 0.51),
        ({"trainer_gpus": 2}, 1.10),
        ({"n_embd": 512, "n_layer": 8}, 1.28),
        ({"n_embd": 512, "n_layer": 8, "trainer_gpus": 2}, 2.98),
        ({"n_embd": 512, "n_layer": 8, "trainer_gpus": 2, "zero_stage": 1}, 2.57),
        ({"n_embd": 512, "n_layer": 8, "trainer_gpus": 2, "zero_stage": 2}, 2.45),
        ({"n_embd": 1024, "n_layer": 7}, 3.04),
        ({"n_embd": 1024, "n_layer": 7, "trainer_gpus": 2, "zero_stage": 1}, 6.17),
        ({"n_embd": 1024, "n_layer": 7, "trainer_gpus": 2}, 7.20),
    ],
)
def test_host_memory_on_a_cpu_is_what_was_measured(changes: dict[str, Any], gib: float) -> None:
    model = {name: changes.pop(name) for name in ("n_embd", "n_layer") if name in changes}
    place = Place(on_cpu=True, memory_gib=24, cores=2)
    made = planned(DEMO | model, 1000, place, **{"context": 128, "batch_size": 4, **changes})
    assert made.host_memory_gib == pytest.approx(gib, rel=0.25)


def test_the_demo_takes_the_time_it_took() -> None:
    # README.md: 159 steps on two idle cores at 11,400 tokens/s, finetune 36 s, evaluate 6 s.
    place = Place(on_cpu=True, memory_gib=24, cores=2)
    changes = {"context": 128, "batch_size": 16, "gradients": 1, "save_steps": 50}
    made = planned(DEMO, 2827, place, **changes)
    assert made.steps == 159
    assert made.seconds_per_step == pytest.approx(16 * 128 / 11_400, rel=0.25)
    assert made.hours * 3600 == pytest.approx(36 + 6, rel=0.25)


def test_hours_are_those_of_the_machine_from_start_to_evaluation() -> None:
    made = planned()
    assert sum(made.hours_parts.values()) == pytest.approx(made.hours)
    one_pass = made.hours_parts["validation"]  # a checkpoint each 500 of 2,238 steps
    assert made.hours_parts["evaluation"] > 2 * one_pass / 5
    time = dict(made.rows())["time"]
    assert "evaluation " in time and "start 2:24 min" in time
    assert " 0 s" not in dict(planned(DEMO, 1000, context=128).rows())["time"]


def test_machine_is_named_and_nothing_is_said_of_one_that_is_not_known() -> None:
    nodes = planned(trainer_gpus=2, cluster={"nodes": 2}).rows()
    assert ("machine", "2 nodes, each with 2 x A40, 8 cores, 192.0 GiB of memory") in nodes
    unknown = planned(trainer_gpu="A500", budget={"max_hours": 0.001, "max_dollars": 0.001})
    assert [name for name, _ in unknown.rows()] == ["contexts", "model", "machine", "refused"]


def test_base_model_that_is_not_there_takes_room_too() -> None:
    catalogue, prices = load_gpus(), load_prices()
    both = [
        plan(GPT_J, 1000, DEFAULTS, catalogue=catalogue, prices=prices, fetches=fetches)
        for fetches in (False, True)
    ]
    assert both[1].disk_gib - both[0].disk_gib == pytest.approx(4 * both[0].parameters / 2**30)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"context": 4096}, ["context is larger than the model takes (got 4096)", "context=2048"]),
        ({"trainer_gpu": "A100"}, ["trainer_gpu is no class", "Did you mean A100_PCIE_40GB or"]),
        ({"trainer_gpu": "RTX_A5000", "trainer_gpus": 5}, ["trainer_gpus", "The most is 4"]),
        (
            {"trainer_gpu": "RTX_A4000"},
            ["does not fit the memory of RTX_A4000", "larger", " lora,"],
        ),
        ({"batch_size": 64}, ["does not fit", "batch_size=1 or -1"]),
        ({"zero_stage": 0}, ["does not fit", "zero_stage=3"]),
        ({"trainer_ram": 64}, ["trainer_ram is too little (got 64 GiB)", "Set trainer_ram="]),
        ({"budget": {"max_dollars": 5}}, ["budget.max_dollars is too little (got 5)"]),
        ({"budget": {"max_hours": 0.5}}, ["budget.max_hours is too little (got 0.5)", " hours ("]),
        ({"budget": {"deadline": "2030-01-02"}}, ["budget.deadline is too early", "2030-01-0"]),
        ({"budget": {"deadline": "2030-01-02T00:00:00+02:00"}}, ["budget.deadline"]),
    ],
)
def test_what_cannot_work_is_said_with_its_way_out(
    parameters: dict[str, Any], words: list[str]
) -> None:
    problems = planned(place=Place(now=NOON), **parameters).problems
    assert len(problems) == 1
    assert all(word in problems[0] for word in words), problems


def test_budget_that_is_enough_is_no_problem() -> None:
    budget = {"max_dollars": 500, "max_hours": 100, "deadline": "2030-01-09"}
    assert planned(place=Place(now=NOON), budget=budget).problems == []


def test_dataset_smaller_than_a_step_is_refused() -> None:
    (problem,) = planned(contexts=10, batch_size=4).problems
    assert "dataset is too small (got 9 contexts to train on). One step takes 20" in problem
    (problem,) = planned(contexts=10, batch_size=4, trainer_gpus=2, cluster={"nodes": 3}).problems
    assert "One step takes 120: " in problem and "x trainer_gpus 2 x cluster.nodes 3." in problem


def test_disk_holds_the_kept_checkpoints_and_one_more() -> None:
    default = planned()
    final, tokens = default.parameters * 4, 49_734 * 2048 * 2  # stored in fp32
    kept = 4 * default.checkpoint_gib  # two last ones, the best, and the one being written
    assert default.disk_gib == pytest.approx(kept + (final + tokens) / 2**30)
    lean = planned(checkpoints={"keep_last": 1, "keep_best": False})
    assert default.disk_gib - lean.disk_gib == pytest.approx(2 * default.checkpoint_gib)
    half = planned(GPT_J_6B | {"torch_dtype": "float16"})
    assert default.disk_gib - half.disk_gib == pytest.approx(final / 2 / 2**30)
    (problem,) = planned(place=Place(free_gib=default.disk_gib - 1)).problems
    assert "pvc has too little room" in problem
    assert "not known here" in dict(default.rows())["disk"]
    assert planned(place=Place(free_gib=default.disk_gib + 1)).problems == []


def test_all_problems_are_said_at_once() -> None:
    made = planned(PYTHIA_12B, 5, Place(free_gib=1), context=4096, trainer_gpu="RTX_A5000")
    assert len(made.problems) == 4


def test_config_that_says_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="does not say the model's hidden_size"):
        planned({"model_type": "gptj"})


def test_checkpoints_for_replays_are_counted_and_what_they_save_is_said() -> None:
    default, kept = planned(), planned(checkpoints={"keep_every": 1000})
    number = default.steps // 1000
    assert kept.replay_checkpoints == number > 1
    assert kept.disk_gib - default.disk_gib == pytest.approx(number * default.checkpoint_gib)
    step = kept.seconds_per_step / 3600
    assert kept.mean_replay_hours == pytest.approx((kept.steps + 1000) / 2 * step)
    assert default.mean_replay_hours == pytest.approx(default.steps * step)  # from the base model
    assert f"{number} checkpoints stay for them" in dict(kept.rows())["replays"]
    assert "replays" not in dict(default.rows())
    rare = planned(checkpoints={"keep_every": 10}, save_steps=500)  # no more than there are
    assert rare.replay_checkpoints == rare.steps // 500
