"""The evaluate step: base against finetuned model, on text that neither was trained on.

Writes `{run_name}/evaluation.json` and, for people, `evaluation.md`: loss and perplexity
over all held-out tokens, and what both models write after the same prompts.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from trainer import checkpoints, events
from trainer.config import EvaluateConfig
from trainer.durable import write_atomically
from trainer.errors import DamagedError, RequestError
from trainer.run_folder import RunFolder
from trainer.steps import StepResult
from trainer.tokens.store import TokenStore
from trainer.volume_paths import path_on_volume, place_of

FORMAT = 1
DEFAULT_BATCH = 4
NUM_PROMPTS = 3  # beginnings of held-out contexts where no prompt_file is given
PROMPT_TOKENS = 12
LOOKED_AT = 32  # contexts, for one that begins with words


def run(config: EvaluateConfig) -> StepResult:
    """Compare the models, or find the report of the same comparison."""
    run_folder = RunFolder(config.volume, config.run_name)
    if problems := checkpoints.verify(run_folder.final):
        raise DamagedError(f"the final model can't be evaluated: {'; '.join(problems)}")
    final_digest = checkpoints.read_manifest(run_folder.final).digest
    store = TokenStore.open(path_on_volume(config.volume, "tokens", config.tokens))
    compared = {"final": final_digest, "tokens": store.digest, **_settings(config)}
    report = _read_report(run_folder.report)
    reused = report is not None and report.get("compared") == compared
    if not reused:
        report = {"format": FORMAT, "compared": compared, **_compare(config, run_folder, store)}
        write_atomically(run_folder.root / "evaluation.md", as_markdown(config.run_name, report))
        write_atomically(run_folder.report, json.dumps(report, indent=1))
    assert report is not None
    events.emit("report", title="Evaluation", markdown=as_markdown(config.run_name, report))
    names = ("base_loss", "base_perplexity", "loss", "perplexity", "contexts", "tokens")
    result = {name: report[name] for name in names}
    result["samples"] = sum(len(sample["finetuned"]) for sample in report["samples"])
    result["report"] = f"{config.run_name}/{run_folder.report.name}"
    return StepResult(result=result, message=_sentence(report), reused=reused)


def _settings(config: EvaluateConfig) -> dict[str, Any]:
    """What of the config the report depends on."""
    return {
        "model": config.model,
        "tensorizer_uri": config.tensorizer_uri,
        "prompts": _prompt_text(config),
        "random_seed": config.random_seed,
        "sampling": dataclasses.asdict(config.sampling),
    }


def _prompt_text(config: EvaluateConfig) -> str:
    if not config.prompt_file:
        return ""
    path = path_on_volume(config.volume, "prompt_file", config.prompt_file)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"prompt_file can't be read (got {config.prompt_file!r}: {error}). "
            "Name a UTF-8 text file on the volume, one prompt a line."
        ) from error


def _read_report(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _compare(config: EvaluateConfig, run_folder: RunFolder, store: TokenStore) -> dict[str, Any]:
    """Loss, perplexity and samples of both models, one model in memory at a time."""
    from trainer.generation import read_prompts
    from trainer.models import load_tokenizer
    from trainer.training.batches import trained_tokens
    from trainer.training.validation import held_out

    contexts = held_out(store)
    tokenizer = load_tokenizer(run_folder.final, config.trust_remote_code)
    text = _prompt_text(config)
    prompts = read_prompts(text) if text else beginnings(store, tokenizer)
    base_folder = path_on_volume(config.volume, "model", config.model)
    weights = place_of(config.volume, "tensorizer_uri", config.tensorizer_uri)
    base_loss, base_texts = _judge(
        config, base_folder, store, tokenizer, prompts, "base model", weights
    )
    loss, texts = _judge(config, run_folder.final, store, tokenizer, prompts, "finetuned model")
    return {
        "contexts": len(contexts),
        "tokens": trained_tokens(store.lengths[contexts]) if len(contexts) else 0,
        "base_loss": base_loss,
        "base_perplexity": _perplexity(base_loss),
        "loss": loss,
        "perplexity": _perplexity(loss),
        "samples": [
            {"prompt": prompt, "base": before, "finetuned": after}
            for prompt, before, after in zip(prompts, base_texts, texts, strict=True)
        ],
    }


def _judge(
    config: EvaluateConfig,
    folder: Path,
    store: TokenStore,
    tokenizer: Any,
    prompts: list[str],
    name: str,
    tensorizer: str = "",
) -> tuple[float | None, list[list[str]]]:
    """The held-out loss of the model in `folder`, and what it writes."""
    import torch

    from trainer.generation import sample
    from trainer.models import load_base
    from trainer.training.loss import CausalLoss
    from trainer.training.validation import held_out, held_out_loss

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
    texts = sample(model, tokenizer, prompts, config.sampling, config.random_seed)
    batch_size = config.batch_size if config.batch_size > 0 else DEFAULT_BATCH
    loss_of, total, done = CausalLoss(model), len(held_out(store)), 0

    def counted(ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        nonlocal done
        done = min(total, done + batch_size)
        events.progress(label=f"evaluate {name}", done=done, total=total, unit="contexts")
        return loss_of(ids.to(device), lengths.to(device))

    with torch.no_grad():
        return held_out_loss(counted, store, batch_size), texts


def beginnings(store: TokenStore, tokenizer: Any) -> list[str]:
    """The first words of some held-out contexts, else of training contexts."""
    manifest = store.manifest
    first = (
        manifest.num_train_contexts if manifest.num_train_contexts < manifest.num_contexts else 0
    )
    step = max(1, (manifest.num_contexts - first) // NUM_PROMPTS)
    prompts = []
    for begin in range(first, manifest.num_contexts, step)[:NUM_PROMPTS]:
        near = range(begin, min(begin + step, begin + LOOKED_AT))
        texts = [_beginning(store, tokenizer, index) for index in near]
        prompts.append(next(filter(_is_words, texts), texts[0]))
    return prompts


def _beginning(store: TokenStore, tokenizer: Any, index: int) -> str:
    length = min(PROMPT_TOKENS, int(store.lengths[index]))
    return tokenizer.decode(store.contexts[index, :length].tolist(), skip_special_tokens=True)


def _is_words(text: str) -> bool:
    """Whether a person can judge how it goes on: not of a ruled line or a table of figures."""
    return sum(map(str.isalpha, text)) > len(text) / 2


def _perplexity(loss: float | None) -> float | None:
    """exp(loss); null where there is no loss, or where it is beyond a float."""
    return math.exp(loss) if loss is not None and loss < 700 else None


def _sentence(report: dict[str, Any]) -> str:
    if report["loss"] is None:
        return "there are no held-out contexts (train_ratio=1), so no loss was measured"
    return (
        f"held-out loss {report['base_loss']:.4f} before, {report['loss']:.4f} after "
        f"({report['contexts']:,} contexts, {report['tokens']:,} tokens)"
    )


def as_markdown(run_name: str, report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"# {run_name}", "", _sentence(report).capitalize() + ".", ""]
    if report["loss"] is not None:
        lines += ["| | base | finetuned |", "| --- | ---: | ---: |"]
        for name in ("loss", "perplexity"):
            before, after = report[f"base_{name}"], report[name]
            lines.append(f"| {name} | {_shown(before)} | {_shown(after)} |")
        lines.append("")
    for sample in report["samples"]:
        lines += ["## " + _line(sample["prompt"]), ""]
        for title in ("base", "finetuned"):
            lines += [f"**{title}**", ""]
            lines += [f"> {_line(text)}\n" for text in sample[title]]
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _line(text: str) -> str:
    """Text on one line of Markdown."""
    return " ".join(text.split()) or "(nothing)"
