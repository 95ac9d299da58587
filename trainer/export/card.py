"""The model card that is pushed: the run's own, with its evaluation and its data ledger."""

import json
from typing import Any

from trainer.contract.wording import as_markdown_text
from trainer.export.finished import FinishedRun
from trainer.fetch.hub import MARKER, parse_hub_id
from trainer.tokens.store import Manifest

MOST_FILES = 50
_FRONT = "---"


def model_card(finished: FinishedRun) -> str:
    """Markdown with the metadata that a hub reads from a card's head.

    Source of the names: https://huggingface.co/docs/hub/model-cards#model-card-metadata
    """
    own = (finished.run.final / "README.md").read_text(encoding="utf-8")
    parts = [_with_metadata(own, finished).rstrip("\n"), "", *_evaluation(finished)]
    parts += [*_ledger(finished), *_digests(finished)]
    return "\n".join(parts).rstrip("\n") + "\n"


def _with_metadata(card: str, finished: FinishedRun) -> str:
    """The run's card, its head with the base model where that is one of a hub."""
    more = ["tags:", "- finetuned"]
    if base := _base_on_hub(finished):
        more += [f"base_model: {json.dumps(base)}", "base_model_relation: finetune"]
    head, _, rest = card.removeprefix(f"{_FRONT}\n").partition(f"\n{_FRONT}\n")
    return "\n".join([_FRONT, head, *more, _FRONT, rest])


def _base_on_hub(finished: FinishedRun) -> str:
    """The hub's id of the base model; '' where it came from nowhere but the volume."""
    hub_id = parse_hub_id(str(finished.record.get("request", {}).get("model", "")))
    if hub_id is None:
        return ""
    folder = finished.run.root.parent / hub_id.folder(tokenizer_only=False)
    return hub_id.id if (folder / MARKER).is_file() else ""


def _evaluation(finished: FinishedRun) -> list[str]:
    report = finished.evaluation
    if report is None or report["loss"] is None:
        return []
    lines = ["## Evaluation", "", f"On held-out text of the training data ({_size(report)}).", ""]
    lines += ["| figure | base | finetuned |", "| --- | ---: | ---: |"]
    for name in ("loss",) if "pairs" in report else ("loss", "perplexity"):
        lines.append(f"| {name} | {_shown(report[f'base_{name}'])} | {_shown(report[name])} |")
    return [*lines, ""]


def _size(report: dict[str, Any]) -> str:
    return f"{report['contexts']:,} contexts, {report['tokens']:,} tokens"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _ledger(finished: FinishedRun) -> list[str]:
    """Per source file: what it gave, and what of it was left out."""
    manifest = finished.tokens
    if manifest is None:
        return []
    lines = ["## Training data", "", _sums(manifest), ""]
    lines += ["| file | SHA-256 | documents | tokens | held out | left out |"]
    lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
    lines += [_row(source) for source in manifest.sources[:MOST_FILES]]
    if more := manifest.sources[MOST_FILES:]:
        tokens = sum(source.get("tokens", 0) for source in more)
        lines.append(f"| ... and {len(more):,} files more | | | {tokens:,} | | |")
    return [*lines, ""]


def _sums(manifest: Manifest) -> str:
    contexts, held_out = manifest.num_contexts, manifest.num_contexts - manifest.num_train_contexts
    words = (
        f"{len(manifest.sources):,} files, {manifest.num_tokens:,} tokens in {contexts:,} contexts "
        f"of {manifest.context:,}; {held_out:,} contexts were held out."
    )
    unread = [f"{kind} ({entry['files']:,})" for kind, entry in manifest.left_out.items()]
    return f"{words} Not read: {', '.join(unread)}." if unread else words


def _row(source: dict[str, Any]) -> str:
    dropped = sum(n for n in source.get("dropped", {}).values() if isinstance(n, int))
    name, digest = as_markdown_text(source["path"]), str(source.get("sha256", ""))[:16]
    columns = ("documents", "tokens", "held_out_tokens")
    figures = " | ".join(f"{source.get(column, 0):,}" for column in columns)
    return f"| {name} | {f'`{digest}`' if digest else ''} | {figures} | {dropped:,} |"


def _digests(finished: FinishedRun) -> list[str]:
    """What proves that these weights are those of the run."""
    weights = {n: f for n, f in finished.manifest.files.items() if n.endswith(".safetensors")}
    lines = ["## Files", "", f"Digest of the run's final model: `{finished.manifest.digest}`.", ""]
    return lines + [f"- `{n}`, SHA-256 `{f['sha256']}`" for n, f in sorted(weights.items())]
