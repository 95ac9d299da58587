"""The evaluate step: base against finetuned model, on text that neither was trained on.

Writes `{run_name}/evaluation.json` and, for people, `evaluation.md`: loss and perplexity
over all held-out tokens, and what both models write after the same prompts.
"""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.contract import checkpoints, events, part_losses, run_files
from trainer.contract.checkpoints import name_of
from trainer.contract.errors import DamagedError, StepError
from trainer.contract.files import short_digest, write_atomically
from trainer.contract.json_files import read_bytes, readable_object
from trainer.contract.json_text import parse_json
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import EvaluateConfig
from trainer.contract.volume import path_on_volume, place_of
from trainer.contract.wording import as_markdown_text
from trainer.evaluation import pairs, parts, tasks
from trainer.evaluation.held_out import Judged, on_held_out
from trainer.evaluation.prompts import Prompt, prompt_text, prompts_of
from trainer.steps import StepResult
from trainer.tokens.store import TokenStore

FORMAT = 1
DEFAULT_BATCH = 4
# By which the loss of `final` may differ from training's: sums in another order, or 16 bits.
EXACT_SHARE, ROUNDED_SHARE = 1e-4, 1e-2
# Of pairs in 16 bits: rounding adds up over an answer, not measured on a GPU yet.
ROUNDED_PAIRS_SHARE = 0.1
PROGRESS_SECONDS = 0.5  # between two events while samples are written


def run(config: EvaluateConfig) -> StepResult:
    """Compare the models, or find the report of the same comparison."""
    run_folder = RunFolder(config.volume, config.run_name)
    if problems := checkpoints.verify(run_folder.final):
        raise DamagedError(f"the final model can't be evaluated: {'; '.join(problems)}")
    final_digest = checkpoints.read_manifest(run_folder.final).digest
    if config.inputs.get("final", final_digest) != final_digest:
        raise StepError(
            f"{config.run_name}/final is another model than the one to be evaluated "
            f"(got {final_digest[:16]} instead of {config.inputs['final'][:16]}). "
            "Another run of the same name replaced it. Run it again."
        )
    store = TokenStore.open(path_on_volume(config.volume, "tokens", config.tokens))
    compared = {"final": final_digest, "tokens": store.digest, **_settings(config)}
    if store.manifest.of_pairs:
        compared["beta"] = config.preference.beta
    report = readable_object(run_folder.report, run_files.Evaluation)
    reused = report is not None and report["compared"] == compared
    if not reused:
        report = {"format": FORMAT, "compared": compared, **_compare(config, run_folder, store)}
    assert report is not None
    text = as_markdown(config.run_name, report)
    _write_text(run_folder.root / "evaluation.md", text)
    if not reused:
        write_atomically(run_folder.report, json.dumps(report, indent=1))
    refuse_other_loss(run_folder, store.digest, report["loss"])
    events.emit("report", title="Evaluation", markdown=text)
    names = ("base_loss", "base_perplexity", "loss", "perplexity", "contexts", "tokens")
    result = {name: report[name] for name in names}
    result["samples"] = sum(len(sample["finetuned"]) for sample in report["samples"])
    result["report"] = f"{config.run_name}/{run_folder.report.name}"
    if (forgot := part_losses.forgotten(report.get("parts", []))) is not None:
        result["forgot"] = forgot
    result["digests"] = {"report": short_digest(run_folder.report)}
    return StepResult(result=result, message=_sentence(report), reused=reused)


def refuse_other_loss(run_folder: RunFolder, tokens_digest: str, loss: float | None) -> None:
    """Hold the final model's loss to the one that training ended with.

    They are the same model on the same text. Where they differ, `final` is not what was trained.

    Args:
        tokens_digest: Of the store that `loss` was measured on.
        loss: Held-out loss of `final`; None: there is no held-out text.
    Raises:
        DamagedError: They differ by more than rounding.
    """
    about = checkpoints.read_manifest(run_folder.final).about
    trained = about.get("figures", {}).get("eval_loss")
    same_text = (run_folder.record() or {}).get("tokens_digest") == tokens_digest
    if loss is None or trained is None or not same_text:
        return
    share = _rounding(run_folder)
    if not abs(loss - trained) <= share * max(1.0, abs(trained)):
        raise DamagedError(
            f"the final model is not the one that was trained (got a held-out loss of {loss:.4f}, "
            f"and {trained:.4f} at the end of training). Do not use {run_folder.root.name}/final. "
            "The run's checkpoints are intact. Report this with the model's config.json."
        )


def _rounding(run_folder: RunFolder) -> float:
    """How far the two losses may be apart, as a share."""
    place = run_folder.checkpoints
    steps = checkpoints.steps_there(place)
    precision = "bf16"
    if steps:
        path = place / name_of(steps[-1])
        precision = checkpoints.read_manifest(path).about.get("precision", precision)
    stored = parse_json((run_folder.final / "config.json").read_text(encoding="utf-8"))
    exact = (stored.get("dtype") or stored.get("torch_dtype") or "float32") == "float32"
    if exact and precision == "fp32":
        return EXACT_SHARE
    of_pairs = "preference" in (run_folder.record() or {}).get("config", {})
    return ROUNDED_PAIRS_SHARE if of_pairs else ROUNDED_SHARE


def _write_text(path: Path, text: str) -> None:
    """Write the page, unless the file holds it."""
    with contextlib.suppress(DamagedError):
        if read_bytes(path) == text.encode():
            return
    write_atomically(path, text)


def _settings(config: EvaluateConfig) -> dict[str, Any]:
    """What of the config the report depends on."""
    settings = {} if not config.evaluation.tasks else _task_settings(config)
    return settings | {
        "model": config.model,
        "model_files": config.inputs.get("model", ""),  # of that name may be others by now
        "tensorizer_uri": config.tensorizer_uri,
        "prompts": prompt_text(config),
        "random_seed": config.random_seed,
        "sampling": dataclasses.asdict(config.sampling),
    }


def _task_settings(config: EvaluateConfig) -> dict[str, Any]:
    asked = dataclasses.asdict(config.evaluation)  # type: ignore[call-overload]
    known = {name: asked[name] for name in ("tasks", "limit", "include_path")}
    known["files"] = tasks.digest_of_tasks(config.evaluation, config.volume)
    return {"evaluation": known}


def _compare(config: EvaluateConfig, run_folder: RunFolder, store: TokenStore) -> dict[str, Any]:
    """Loss, perplexity and samples of both models, one model in memory at a time."""
    from trainer.models import load_tokenizer
    from trainer.training.data.validation import held_out

    contexts = held_out(store)
    tokenizer = load_tokenizer(run_folder.final, config.trust_remote_code)
    prompts = prompts_of(config, store, tokenizer) if config.sampling.writes else []
    base_folder = path_on_volume(config.volume, "model", config.model)
    weights = place_of(config.volume, "tensorizer_uri", config.tensorizer_uri)
    base = _judge(config, base_folder, store, tokenizer, prompts, "base model", weights)
    final = _judge(config, run_folder.final, store, tokenizer, prompts, "finetuned model")
    losses: dict[str, Any] = {"base_loss": base.loss, "loss": final.loss}
    if base.answers is not None and final.answers is not None:
        losses = pairs.compared_pairs(base.answers, final.answers, config.preference.beta)
    rows = tasks.compared_scores(base.scores[0], *final.scores)
    folders = parts.compared_parts(store, base.by_part, final.by_part)
    more = {"tasks": rows, "parts": folders}
    return {name: found for name, found in more.items() if found} | {
        "contexts": len(contexts),
        "tokens": store.trained_tokens(contexts),
        **losses,
        # The loss of pairs is none of tokens.
        "base_perplexity": None if store.manifest.of_pairs else _perplexity(base.loss),
        "perplexity": None if store.manifest.of_pairs else _perplexity(final.loss),
        "samples": [
            {"prompt": prompt.text, "base": before, "finetuned": after}
            for prompt, before, after in zip(prompts, base.texts, final.texts, strict=True)
        ],
    }


def _batch_size(config: EvaluateConfig) -> int:
    """That of training, so that a run made again with it has the same sums, to the last digit."""
    if config.batch_size > 0:
        return config.batch_size
    record = RunFolder(config.volume, config.run_name).record() or {}
    return run_files.trained_batch_size(record) or DEFAULT_BATCH


def _judge(
    config: EvaluateConfig,
    folder: Path,
    store: TokenStore,
    tokenizer: Any,
    prompts: list[Prompt],
    name: str,
    tensorizer: str = "",
) -> Judged:
    """The held-out loss of the model in `folder`, what it writes, and how it does at tasks."""
    import torch

    from trainer.models import load_base
    from trainer.models.generation import most_new_tokens, sample

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else None
    model = load_base(
        folder,
        tensorizer=tensorizer,
        num_ids=store.manifest.vocab_size,
        seed=config.random_seed,
        dtype=dtype,
        trust_remote_code=config.trust_remote_code,
    ).to(device)
    asked = config.sampling.prompt_tokens
    if (most := most_new_tokens(model, asked)) < asked:
        events.say(f"prompt_tokens={asked} exceeds the {name}'s positions: using {most}")
    told = _told_of_samples(f"samples of the {name}")
    asked_with = [prompt.ids for prompt in prompts]
    texts = sample(model, tokenizer, asked_with, config.sampling, config.random_seed, on_token=told)
    batch_size = _batch_size(config)
    judged = on_held_out(model, store, batch_size, f"evaluate {name}")
    judged = dataclasses.replace(judged, texts=texts)
    if not config.evaluation.tasks:
        return judged
    how = {"batch_size": batch_size, "seed": config.random_seed}
    scores = tasks.run_tasks(model, tokenizer, config.evaluation, config.volume, **how)
    tasks.say_scores(name, scores[0])
    return dataclasses.replace(judged, scores=scores)


def _told_of_samples(label: str) -> Callable[[int, int], None]:
    """Reports how much of the samples is written, a few times a second at most."""
    next_time = 0.0

    def told(done: int, total: int) -> None:
        nonlocal next_time
        if time.monotonic() >= next_time or done == total:
            next_time = time.monotonic() + PROGRESS_SECONDS
            events.progress(label=label, done=done, total=total, unit="tokens")

    return told


def _perplexity(loss: float | None) -> float | None:
    """exp(loss); null where there is no loss, or where it is beyond a float."""
    return math.exp(loss) if loss is not None and loss < 700 else None


def _sentence(report: dict[str, Any]) -> str:
    if report["loss"] is None:
        return "there are no held-out contexts (train_ratio=1), so no loss was measured"
    more = part_losses.forgetting_words(report.get("parts", []))
    size = f"{report['contexts']:,} contexts, {report['tokens']:,} tokens"
    if "pairs" in report:
        more, size = pairs.in_words(report["pairs"]), f"{report['contexts']:,} pairs"
    return (
        f"held-out loss {report['base_loss']:.4f} before, {report['loss']:.4f} after ({size})"
    ) + (f"; {more}" if more else "")


def as_markdown(run_name: str, report: dict[str, Any]) -> str:
    """The report for people."""
    sentence = _sentence(report)  # a folder's name in it stays as it is
    lines = [f"# {run_name}", "", sentence[0].upper() + sentence[1:] + ".", ""]
    if report["loss"] is not None:
        lines += ["| figure | base | finetuned |", "| --- | ---: | ---: |"]
        for name in ("loss", "perplexity"):
            before, after = report[f"base_{name}"], report[name]
            if name == "loss" or "pairs" not in report:
                lines.append(f"| {name} | {_shown(before)} | {_shown(after)} |")
        lines += pairs.rows(report["pairs"]) if "pairs" in report else []
        lines.append("")
    lines += parts.table(report.get("parts", []))
    lines += tasks.table(report.get("tasks", []))
    for sample in report["samples"]:
        lines += ["## " + _line(sample["prompt"]), ""]
        for title in ("base", "finetuned"):
            lines += [f"**{title}**", ""]
            lines += [f"> {_line(text)}\n" for text in sample[title]]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _line(text: str) -> str:
    """Text on one line of Markdown, none of which is markup."""
    return as_markdown_text(text) or "(nothing)"
