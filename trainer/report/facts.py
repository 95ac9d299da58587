"""What a report shows, read from the run's folder: plain data for the page."""

from collections.abc import Mapping
from typing import Any

from trainer.contract import run_files
from trainer.contract.checkpoints import name_of, steps_there
from trainer.contract.files import size_of
from trainer.contract.json_files import read_lines, readable_object
from trainer.contract.run_folder import RunFolder
from trainer.contract.wording import part_words
from trainer.plan.facts import step_seconds
from trainer.planning.memory_model import BESIDE_TENSORS, GIB
from trainer.report.times import STOPPED, ledger

# What happens while the trainer's machine is held, and paid for.
ON_THE_TRAINER = (
    *("load", "compute", "data wait", "checkpoint stall", "evaluation", "final model"),
    "lost work",
)
MOST_FILES = 40
WHAT_IS_CHECKED = {
    "final": "at rate 0 final is the base model, buffers too",
    "loss": "loss and gradients are transformers' own",
    "causal": "no token sees a later one",
    "cache": "the built-in server gives what whole passes give",
    "lora": "a merged LoRA is base plus adapter",
    "processes": "two processes train as one",
    "resume": "a resumed run is the unbroken one",
    "packed": "documents packed into a context have the losses of each alone",
}
STEPS = ("fetch", "tokenize", "finetune", "evaluate", "deploy")


def exam(run: RunFolder) -> dict[str, str]:
    """The checks of the model exam and what each found; empty where fetch recorded none."""
    outcome = run.outcome("fetch")
    found = (outcome.result or {}).get("exam", {}) if outcome else {}
    return {WHAT_IS_CHECKED.get(name, name): str(said) for name, said in found.items()}


def times(run: RunFolder, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ledger of the run's time, with each part's share, and dollars where there is a price."""
    parts = ledger(run)
    whole = sum(parts.values())
    price = plan.get("dollars_per_hour") or 0.0
    return [
        {
            "name": name,
            "seconds": seconds,
            "share": seconds / whole if whole else 0.0,
            "dollars": price * seconds / 3600 if name in ON_THE_TRAINER else 0.0,
        }
        for name, seconds in parts.items()
    ]


def plan_against_fact(run: RunFolder, record: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Names, what was planned and what was measured, of what can be compared."""
    plan = record.get("plan") or {}
    if not plan:
        return []
    steps = [line for line in read_lines(run.metrics, run_files.Metric) if "loss" in line]
    parts = ledger(run)
    busy = sum(seconds for name, seconds in parts.items() if name != STOPPED)
    held = sum(parts.get(name, 0.0) for name in ON_THE_TRAINER) / 3600
    price = plan["dollars_per_hour"]
    gpu = [line["gpu_memory_gib"] for line in steps if "gpu_memory_gib" in line]
    host = [line["host_memory_gib"] for line in steps if "host_memory_gib" in line]
    tokens = _manifest(run, record)
    return [
        ("contexts", plan["num_contexts"], tokens.get("num_contexts")),
        ("contexts to train on", plan["num_train_contexts"], tokens.get("num_train_contexts")),
        ("steps", plan["steps"], steps[-1]["step"] if steps else None),
        ("contexts in a micro-batch", plan["batch_size"], run_files.trained_batch_size(record)),
        ("seconds a step", plan["seconds_per_step"], step_seconds(run.metrics)),
        ("hours of training and evaluating", plan["hours"], held or None),
        ("hours in all", None, busy / 3600 if busy else None),
        ("memory of each GPU, tensors, GiB", _of_tensors(plan) or None, max(gpu, default=None)),
        ("host memory of each node, GiB", plan["host_memory_gib"], max(host, default=None)),
        ("a checkpoint, GiB", plan.get("checkpoint_gib"), _checkpoint_gib(run)),
        ("dollars", plan["dollars"] or None, price * held if price else None),
    ]


def _of_tensors(plan: Mapping[str, Any]) -> float:
    """What is planned of a GPU for what training measures: tensors alone."""
    parts = plan.get("gpu_memory_parts_gib", {})
    return plan["gpu_memory_gib"] - sum(parts.get(name, 0.0) for name in BESIDE_TENSORS)


def _checkpoint_gib(run: RunFolder) -> float | None:
    """Of the newest checkpoint that is there."""
    there = steps_there(run.checkpoints)
    return size_of(run.checkpoints / name_of(there[-1])) / GIB if there else None


def _manifest(run: RunFolder, record: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of the run's tokens; empty where the store is gone."""
    path = run.root.parent / str(record.get("tokens", "")) / "manifest.json"
    return readable_object(path, run_files.TokenManifest) or {}


def data(run: RunFolder, record: Mapping[str, Any]) -> dict[str, Any]:
    """Where the tokens came from, as the store's manifest has it."""
    manifest = _manifest(run, record)
    sources = manifest.get("sources", [])
    columns = ["path", "bytes", "documents", "tokens", "contexts", "repeated"]
    return {
        "store": record.get("tokens", ""),
        "totals": {
            name.removeprefix("num_"): manifest[name]
            for name in "num_contexts num_train_contexts num_tokens num_padding".split()
            if name in manifest
        }
        | manifest.get("totals", {}),
        "parts": [(part["name"], part_words(part)) for part in manifest.get("parts", [])],
        "columns": columns,
        "files": [
            ([source.get(name, "") for name in columns], _dropped(source))
            for source in sources[:MOST_FILES]
        ],
        "more_files": max(0, len(sources) - MOST_FILES),
    }


def _dropped(source: Mapping[str, Any]) -> str:
    """What of a file is in no context, and why; nothing where all of it is."""
    counts = source.get("dropped", {}).items()
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts if count)


def samples(run: RunFolder) -> dict[str, list[tuple[int, str]]]:
    """What the model wrote after each prompt, by checkpoint."""
    found: dict[str, list[tuple[int, str]]] = {}
    for line in read_lines(run.samples, run_files.Sample):
        found.setdefault(line["prompt"], []).append((line["step"], line["texts"][0]))
    return found


def evaluation(run: RunFolder) -> dict[str, Any]:
    """The evaluate step's report; empty where there is none that can be read."""
    return readable_object(run.report, run_files.Evaluation) or {}
