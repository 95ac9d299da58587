"""Plans of what is on a volume: the user's own catalogue, and what earlier runs measured."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers

from flows import plan_request as plan_request_module
from flows.cli.main import cli
from flows.plan_request import gather, plan_request, plan_with
from tests.plan.models import GPT_2
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.validation import load_parameters
from trainer.devices import Device
from trainer.plan.facts import step_seconds
from trainer.planning.plan import Plan
from trainer.retention import space
from trainer.retraining.series import Series

FIELDS = (  # DESIGN 8.1, and the room that there is
    "num_contexts num_train_contexts steps tokens batch_size zero_stage offload gpu_memory_gib "
    "host_memory_gib checkpoint_gib seconds_per_step hours dollars_per_hour dollars problems "
    "disk_gib free_gib"
).split()
ASKED = {"model": "models/gpt2", "context": 512, "batch_size": 1}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    model = tmp_path / "finetune-data/models/gpt2"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(GPT_2))
    return tmp_path


def planned(home: Path, on_cluster: bool = False, **parameters: Any) -> Plan:
    asked = Parameters(run_name="run", **ASKED, **parameters)
    return plan_request(asked, home, num_contexts=1000, on_cluster=on_cluster)


def a_token_a_byte(folder: Path) -> None:
    """Put a tokenizer into a model's folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_the_command_prints_a_table_or_json_and_leaves_no_trace(home: Path) -> None:
    volume = home / "finetune-data"
    (volume / "dataset").mkdir()
    (volume / "dataset/a.txt").write_text("Once upon a time.\n" * 20_000)
    a_token_a_byte(volume / "models/gpt2")
    before = tree(home)
    words = [word for item in ASKED.items() for word in ("-p", "=".join(map(str, item)))]
    command = ["plan", *words, "--home", str(home), "--backend", "local"]
    table = CliRunner().invoke(cli, command)
    assert table.exit_code == 0, table.output
    fields = json.loads(CliRunner().invoke(cli, [*command, "--json"]).output)
    assert fields.keys() >= set(FIELDS)
    # Contexts begin after a line's end, so that they repeat a part of a line.
    assert fields["num_contexts"] == pytest.approx(20_000 * 18 / 512, rel=0.05)
    assert fields["problems"] == []
    shown = dict(line.split("  ", 1) for line in table.output.splitlines())
    assert shown["contexts"].strip().startswith(f"{fields['num_contexts']:,} (estimated)")
    free = float(shown["disk"].removesuffix(" GiB are free").split()[-1])
    assert free == pytest.approx(fields["free_gib"], abs=2)  # others write meanwhile
    wrong = CliRunner().invoke(cli, [*command, "-p", "context=4096"])
    assert wrong.exit_code == 78
    assert "refused" in wrong.output and "context is larger than the model takes" in wrong.output
    assert tree(home) == before


def test_a_cluster_without_gpus_is_planned_on_its_cpus_with_their_price(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CLUSTER", "{nodes: 2, light_cores: 1, light_memory_gib: 2}")
    machine = {"trainer_gpu": "none", "trainer_gpus": 1, "trainer_cores": 4, "trainer_ram": 16}
    asked = Parameters(**{"run_name": "run", **ASKED, **machine})
    made = plan_request(asked, home, num_contexts=1000, on_cluster=True)
    assert made.problems == []
    assert (made.gpu, made.on_cpu, made.nodes, made.processes, made.cores) == ("", True, 2, 2, 4)
    assert made.dollars_per_hour == pytest.approx(2 * (4 * 0.01 + 16 * 0.005))
    assert made.dollars == pytest.approx(made.hours * made.dollars_per_hour)
    assert (made.gpu_memory_gib, made.spot_dollars) == (0, None)
    rows = dict(made.rows())
    assert rows["machine"] == "2 nodes, each with CPUs of the cluster: 4 cores, 16.0 GiB of memory"
    assert rows["steps without a trainer"] == "1 cores, 2 GiB each"
    small = asked.model_copy(update={"trainer_ram": 1, "trainer_gpus": 4})
    (problem,) = plan_request(small, home, num_contexts=1000, on_cluster=True).problems
    assert "does not fit trainer_ram" in problem and "a larger trainer_ram" in problem


def test_both_prices_are_shown_where_the_class_has_a_spot_price(home: Path) -> None:
    asked = Parameters(**{"run_name": "run", **ASKED, "trainer_gpu": "H200"})
    made = plan_request(asked, home, num_contexts=100_000, on_cluster=True)
    assert made.dollars_per_hour is not None and made.spot_dollars_per_hour is not None
    difference = made.dollars_per_hour - made.spot_dollars_per_hour
    assert difference == pytest.approx(6.31 - 2.62)
    assert f"; on spot nodes ${made.spot_dollars:,.2f} at " in dict(made.rows())["cost"]
    assert made.to_dict()["spot_dollars"] > 0


def test_room_is_compared_where_the_volume_is(home: Path) -> None:
    asked = Parameters(run_name="run", **ASKED)
    facts = replace(gather(asked, home / "finetune-data", 1000), free_gib=0.5)
    for on_cluster in (True, False):
        made = plan_with(facts, asked, on_cluster=on_cluster)
        (problem,) = made.problems
        assert problem.startswith("pvc has too little room (got 0.5 GiB free)")
        assert "0.50 GiB are free" in dict(made.rows())["disk"]
    # A laptop's disk says nothing of the claim.
    assert planned(home, on_cluster=True).free_gib is None
    assert (planned(home).free_gib or 0) > 0


def leave_a_run(home: Path, name: str, plan: Plan, seconds_per_step: float) -> None:
    folder = home / "finetune-data" / name
    folder.mkdir()
    record = {"created": name, "request": {}, "plan": plan.to_dict()}
    (folder / "run.json").write_text(json.dumps(record))
    # Validation stands between steps 2 and 3; a line may be half written.
    times = [(1, 1.0), (2, 2.0), (3, 50.0), (4, 51.0), (5, 52.0)]
    lines = [
        json.dumps({"step": s, "loss": 1.0, "seconds": t * seconds_per_step}) for s, t in times
    ]
    lines.insert(2, json.dumps({"step": 2, "eval_loss": 1.0}))
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 6, "lo']))


def test_what_earlier_runs_measured_corrects_the_time_once(home: Path) -> None:
    first = planned(home)
    leave_a_run(home, "one", first, 3 * first.seconds_per_step)
    second = planned(home)
    assert second.correction == pytest.approx(3, rel=1e-3)
    assert second.seconds_per_step == pytest.approx(3 * first.seconds_per_step, rel=1e-3)
    assert "3.00 times" in dict(second.rows())["time"]
    leave_a_run(home, "two", second, second.seconds_per_step)
    assert planned(home).correction == pytest.approx(3, rel=1e-3)
    assert planned(home, on_cluster=True).correction == 1


def test_a_run_planned_by_other_formulas_corrects_nothing(home: Path) -> None:
    first = planned(home)
    leave_a_run(home, "one", first, 3 * first.seconds_per_step)
    path = home / "finetune-data/one/run.json"
    record = json.loads(path.read_text())
    del record["plan"]["on_cpu"]  # as earlier versions left it
    path.write_text(json.dumps(record))
    assert planned(home).correction == 1


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ('{"max_dollars": 0.001}', "budget.max_dollars is too little (got 0.001)"),
        ('{"max_hours": 0.001}', "budget.max_hours is too little (got 0.001)"),
        ('{"deadline": "2020-01-01"}', "budget.deadline is too early (got 2020-01-01)"),
    ],
)
def test_a_run_beyond_its_budget_is_refused(home: Path, budget: str, told: str) -> None:
    (problem,) = planned(home, on_cluster=True, budget=budget).problems
    assert problem.startswith(told)
    enough = '{"max_dollars": 1000, "max_hours": 1000, "deadline": "2999-01-01T00:00"}'
    assert planned(home, on_cluster=True, budget=enough).problems == []


@pytest.mark.parametrize(
    "budget", ['{"deadline": "soon"}', '{"max_hours": -1}', '{"max_euros": 5}']
)
def test_a_budget_that_says_nothing_sensible_is_refused(budget: str) -> None:
    with pytest.raises(RequestError, match=r"^budget\."):
        load_parameters(Parameters, {"run_name": "run", "budget": budget})


def test_a_step_takes_what_most_took(home: Path) -> None:
    leave_a_run(home, "one", planned(home), 2.0)
    assert step_seconds(home / "finetune-data/one/metrics.jsonl") == 2.0
    assert step_seconds(home / "finetune-data/none/metrics.jsonl") is None


def test_a_users_files_replace_gpus_and_prices(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = (
        "LAB_CARD: {memory_gib: 24, peak_tflops: 100, bandwidth_gbs: 800, host_gbs: 20, "
        "peer_gbs: 20, bf16: true, most_per_node: 2}"
    )
    (tmp_path / "gpus.yaml").write_text(gpus)
    (tmp_path / "prices.yaml").write_text("{core: 0, memory_gib: 0, gpus: {LAB_CARD: 3}}")
    monkeypatch.setenv("FINETUNE_GPUS", str(tmp_path / "gpus.yaml"))
    monkeypatch.setenv("FINETUNE_PRICES", str(tmp_path / "prices.yaml"))
    made = planned(home, on_cluster=True, trainer_gpu="LAB_CARD")
    assert (made.gpu, made.dollars_per_hour, made.problems) == ("LAB_CARD", 3, [])
    assert "Known are LAB_CARD" in planned(home, on_cluster=True).problems[0]
    monkeypatch.setenv("FINETUNE_GPUS", str(tmp_path / "none.yaml"))
    with pytest.raises(RequestError, match=r"none.yaml can't be read .*FINETUNE_GPUS"):
        planned(home, on_cluster=True)


def test_a_model_that_is_still_to_come_takes_room_of_the_volume(home: Path) -> None:
    to_come = planned(home)
    (home / "finetune-data/models/gpt2/model.safetensors").touch()
    there = planned(home)
    assert to_come.disk_gib - there.disk_gib == pytest.approx(4 * there.parameters / 2**30)
    streamed = planned(home, tensorizer_uri="s3://models/gpt2.tensors")
    assert streamed.disk_gib == pytest.approx(there.disk_gib)


def test_a_gpu_of_this_machine_is_planned_with_and_costs_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (problem,) = planned(home, force_fp16=True).problems
    assert problem.startswith("force_fp16 asks for fp16")
    assert planned(home, on_cluster=True, force_fp16=True).problems == []
    card = Device("NVIDIA A40", 44.4, True)
    monkeypatch.setattr(plan_request_module, "devices", lambda: (card, card))
    made = planned(home, force_fp16=True, kernels={"liger": True}, trainer_gpus=2)
    assert made.problems == []
    assert (made.gpu, made.gpu_memory_limit_gib, made.dollars) == ("NVIDIA A40", 44.4, 0.0)
    (problem,) = planned(home, trainer_gpus=3).problems
    assert problem.startswith("trainer_gpus is more than this machine has (got 3). It has 2 GPUs.")


def test_the_plan_of_a_night_says_when_the_volume_is_full(home: Path) -> None:
    series = Series(home / "finetune-data", "nightly")
    free = shutil.disk_usage(home).free
    line: space.Space = {
        "time": "2026-11-30T00:00:00+00:00",
        "free_bytes": free,
        "series_bytes": 0,
        "night_bytes": free // 2,
        "final_bytes": free // 4,
        "finals": 0,
    }
    space.keep_line(series, line)
    for name in ("nightly", "nightly-20261130", "nightly-20261130-2"):
        made = plan_request(
            Parameters(run_name=name, **ASKED), home, num_contexts=1000, on_cluster=False
        )
        assert made.nights_left in (2, 3)
        assert f"full after {made.nights_left} more nights" in str(made.rows())
    assert planned(home).nights_left is None


@pytest.mark.parametrize(("asked", "most"), [(1023, None), (1024, 1023), (5000, 1023)])
def test_samples_that_the_positions_cut_short_are_said(
    home: Path, asked: int, most: int | None
) -> None:
    made = planned(home, prompt_tokens=asked)
    if most is None:
        assert made.notes == []
        return
    [note] = made.notes
    assert f"(got {asked}): samples have {most} tokens at most" in note
    assert ("note", note) in made.rows() and made.to_dict()["notes"] == [note]
    assert made.problems == []
    assert planned(home, prompt_tokens=asked, prompt_samples=0).notes == []


@pytest.mark.parametrize(("engine", "said"), [("builtin", True), ("auto", True), ("vllm", False)])
@pytest.mark.parametrize("on_cluster", [False, True])
def test_that_only_vllm_serves_the_model_is_said_before_training(
    home: Path, engine: str, said: bool, on_cluster: bool
) -> None:
    asked = Parameters(run_name="run", **ASKED, serving={"engine": engine})
    facts = replace(gather(asked, home / "finetune-data", 1000), builtin_wrong="off by 2")
    facts = type(facts).from_dict(json.loads(json.dumps(facts.to_dict())))
    notes = plan_with(facts, asked, on_cluster=on_cluster).notes
    assert len(notes) == said
    assert not said or "the built-in server can't serve it (off by 2). Only vLLM may" in notes[0]
    stays = asked.model_copy(update={"run_inference": True})
    problems = plan_with(facts, stays, on_cluster=on_cluster).problems
    assert any("Only vLLM may" in problem for problem in problems) == (engine == "builtin")
