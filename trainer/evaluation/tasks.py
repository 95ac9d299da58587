"""lm-eval's tasks on a model that is loaded here; its library is an extra, `tasks`.

Tasks of one's own are YAML files in the folder `evaluation.include_path` of the volume. Paths of
data in them (`data_files`) are relative to the volume's root.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.contract.errors import RequestError, StepError
from trainer.contract.events import say
from trainer.contract.files import short_digest
from trainer.contract.topics import EvaluationConfig
from trainer.contract.volume import path_on_volume

Scores = dict[str, dict[str, float]]
"""Metric by metric of each task."""
_NO_METRICS = ("alias", "name", "sample_len", "sample_count")


def refuse_tasks(evaluation: EvaluationConfig, volume: str | Path) -> None:
    """Raise RequestError where the tasks asked for could not be run.

    Raises:
        RequestError: lm-eval is not installed, or there is no such folder or task.
    """
    if not evaluation.tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise RequestError(
            "evaluation.tasks needs the package lm-eval, which is not installed where steps run "
            f"(got {evaluation.tasks}). Install the extra `tasks` "
            "(pip install 'finetune-pipeline[tasks]'), or leave evaluation.tasks empty."
        )
    with _on(volume):
        known = _manager(evaluation, volume).all_tasks
    if unknown := [name for name in evaluation.tasks if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=3)
        raise RequestError(
            f"evaluation.tasks names no task of lm-eval (got {', '.join(unknown)}). "
            + (f"Near it: {', '.join(near)}. " if near else "")
            + "One of your own needs evaluation.include_path, the folder of its YAML file."
        )


def digest_of_tasks(evaluation: EvaluationConfig, volume: str | Path) -> str:
    """Of the files of one's own tasks; '' where there are none. Data elsewhere is not read."""
    if not evaluation.include_path:
        return ""
    folder = path_on_volume(volume, "evaluation.include_path", evaluation.include_path)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = [f"{path.relative_to(folder)} {short_digest(path)}" for path in files]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()[:16]


def run_tasks(
    model: Any, tokenizer: Any, evaluation: EvaluationConfig, volume: str | Path, **how: Any
) -> tuple[Scores, dict[str, dict[str, bool]]]:
    """The scores of a model that is loaded, and for each metric whether more is better.

    Args:
        model: As transformers loads it, on its device.
        how: `batch_size` and `seed`.
    Raises:
        StepError: A task's data can't be had.
    """
    os.environ.setdefault("HF_DATASETS_CACHE", str(Path(volume) / "cache/datasets"))
    with _on(volume):
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        seed = how["seed"]
        try:
            found = simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=how["batch_size"]),
                tasks=list(evaluation.tasks),
                limit=evaluation.limit or None,
                task_manager=_manager(evaluation, volume),
                bootstrap_iters=0,
                log_samples=False,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except (OSError, ValueError) as error:
            raise StepError(
                f"evaluation.tasks can't be run ({error}). Data of lm-eval's own tasks is fetched "
                "from the hub; put it on the volume and name it in a task of your own."
            ) from error
    better = {task: dict(metrics) for task, metrics in found["higher_is_better"].items()}
    return {task: _metrics(row) for task, row in found["results"].items()}, better


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    """`acc,none` of lm-eval is `acc` here; a filter other than none stays in the name."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in row.items()
        if name not in _NO_METRICS and "_stderr" not in name
        if isinstance(value, int | float) and math.isfinite(value)
    }


def compared_scores(
    before: Scores, after: Scores, better: dict[str, dict[str, bool]]
) -> list[dict[str, Any]]:
    """A row for each metric: task, metric, base, finetuned, higher_is_better (null: not known)."""
    return [
        {
            "task": task,
            "metric": metric,
            "base": before[task][metric],
            "finetuned": value,
            "higher_is_better": better.get(task, {}).get(metric.split(",")[0]),
        }
        for task, metrics in sorted(after.items())
        for metric, value in sorted(metrics.items())
        if metric in before.get(task, {})
    ]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows for people, in Markdown; none where there are none."""
    if not rows:
        return []
    lines = ["## Tasks", "", "| task | metric | base | finetuned |", "| --- | --- | ---: | ---: |"]
    for row in rows:
        figures = f"{row['base']:.4f} | {row['finetuned']:.4f}"
        lines.append(f"| {row['task']} | {row['metric']} | {figures} |")
    return [*lines, ""]


def _manager(evaluation: EvaluationConfig, volume: str | Path) -> Any:
    from lm_eval.tasks import TaskManager

    folder = None
    if evaluation.include_path:
        path = path_on_volume(volume, "evaluation.include_path", evaluation.include_path)
        if not path.is_dir():
            raise RequestError(
                f"evaluation.include_path is no folder on the volume (got "
                f"{evaluation.include_path!r}). It holds the YAML files of your own tasks."
            )
        folder = str(path)
    return TaskManager(include_path=folder)


@contextlib.contextmanager
def _on(volume: str | Path) -> Iterator[None]:
    """With the volume as the current folder, which data_files are relative to."""
    with contextlib.chdir(volume):
        yield


def say_scores(name: str, scores: Scores) -> None:
    """One line for each task."""
    for task, metrics in scores.items():
        figures = ", ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
        say(f"{name}, {task}: {figures}")
