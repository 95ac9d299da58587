"""`finetune diff A B`: what two runs were asked, made from, and came to."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.contract import run_files
from trainer.contract.errors import RequestError, StepError
from trainer.contract.json_files import read_lines, readable_object
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest
from trainer.report.facts import evaluation

MOST_FILES = 20  # named one by one


def compare(one: RunFolder, other: RunFolder) -> str:
    """What differs, by kind, as text; says so where nothing does."""
    records = [run.record() or {} for run in (one, other)]
    kinds = {
        "parameters": _differing(*(_asked(record) for record in records)),
        "data": data_differences(*(_sources(run) for run in (one, other))),
        "versions": _differing(*(record.get("versions", {}) for record in records)),
        "code": _differing(*(_code(record) for record in records)),
        "made from": _differing(*(_digests(record) for record in records)),
        "losses": _losses(one, other),
    }
    lines = [f"{one.root.name} against {other.root.name}"]
    for kind, found in kinds.items():
        lines += ["", f"{kind}:", *(f"  {line}" for line in found or ["the same"])]
    return "\n".join(lines)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    names = [*one, *(name for name in other if name not in one)]
    return [
        f"{name}: {one.get(name, 'not set')!r} | {other.get(name, 'not set')!r}"
        for name in names
        if one.get(name) != other.get(name)
    ]


def _asked(record: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that define the run, and how many processes made its batches."""
    config = record.get("config", {})
    processes = {
        "trainer_gpus": config.get("processes", 1),
        "cluster.nodes": config.get("nodes", 1),
    }
    return {**record.get("request", {}), **processes}


def _digests(record: Mapping[str, Any]) -> dict[str, Any]:
    names = ("model", "tokens_digest", "tokenizer_digest", "sizing")
    return {name: record[name] for name in names if name in record}


def _code(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of the model's own code, which trust_remote_code ran: its commit, and a digest by file."""
    code = record.get("code", {})
    return {**{name: code.get(name) for name in ("id", "commit")}, **code.get("files", {})}


def other_digests(one: RunFolder, other: RunFolder) -> list[str]:
    """Which digests of what a run is made from are not the same: tokens, tokenizer."""
    records = [run.record() or {} for run in (one, other)]
    names = ("tokens_digest", "tokenizer_digest")
    return [name for name in names if records[0].get(name) != records[1].get(name)]


def _sources(run: RunFolder) -> dict[str, tuple[int, str]] | None:
    """Bytes and digest of each source file, by path; None where the tokens are gone."""
    tokens = (run.record() or {}).get("tokens", "")
    path = run.root.parent / tokens / "manifest.json"
    if not tokens or not path.is_file():
        return None
    sources = (readable_object(path, run_files.TokenManifest) or {}).get("sources")
    if sources is None:
        return None
    return {source["path"]: (source["bytes"], source.get("sha256", "")) for source in sources}


def _folders(run: RunFolder, dataset: str) -> list[tuple[str, str]]:
    """The folders of a run's text, and what the paths of each begin with in its manifest."""
    path = run.root.parent / (run.record() or {}).get("tokens", "") / "manifest.json"
    parts = (readable_object(path, run_files.TokenManifest) or {}).get("parts")
    return [(part["name"], f"{part['name']}/") for part in parts] if parts else [(dataset, "")]


def data_differences(
    one: Mapping[str, tuple[int, str]] | None, other: Mapping[str, tuple[int, str]] | None
) -> list[str]:
    """One line a file that only one has, or that differs in content."""
    if one is None or other is None:
        return ["not known: the tokens of one of them were pruned, or are damaged"]
    lines = [f"{path}: only in the first" for path in one if path not in other]
    lines += [f"{path}: only in the second" for path in other if path not in one]
    lines += [
        f"{path}: {size:,} bytes | {other[path][0]:,} bytes, other content"
        for path, (size, digest) in one.items()
        if path in other and (size, digest) != other[path]
    ]
    return _first(lines)


def _losses(one: RunFolder, other: RunFolder) -> list[str]:
    reports = [evaluation(run) for run in (one, other)]
    lines = [
        f"{title}: {_shown(reports[0].get(name))} | {_shown(reports[1].get(name))}"
        for title, name in (("held-out loss before", "base_loss"), ("held-out loss after", "loss"))
        if reports[0].get(name) != reports[1].get(name)
    ]
    step = first_difference(one, other)
    return lines if step is None else [*lines, f"training differs from step {step} on"]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def first_difference(one: RunFolder, other: RunFolder) -> int | None:
    """The first step whose loss is another one, or that only one run did."""
    curves = [
        {m["step"]: m["loss"] for m in read_lines(run.metrics, run_files.Metric) if "loss" in m}
        for run in (one, other)
    ]
    steps = sorted({*curves[0], *curves[1]})
    return next((s for s in steps if curves[0].get(s) != curves[1].get(s)), None)


def same_model(one: RunFolder, other: RunFolder) -> bool:
    """Whether the final weights are the same bytes."""
    files = [read_manifest(run.final).files for run in (one, other)]
    weights = [
        {name: record for name, record in found.items() if name.endswith(".safetensors")}
        for found in files
    ]
    return bool(weights[0]) and weights[0] == weights[1]


def dataset_changes(one: RunFolder, volume: Path, dataset: str) -> list[str]:
    """Files of the dataset that are not as the run had them, or that it had not.

    Of files elsewhere than on the volume the size alone is compared.
    """
    from trainer.tokens.text.sources import list_sources

    sources = _sources(one)
    if sources is None:
        return ["its tokens were pruned: whether the text is the same is not known"]
    try:
        there = {
            f"{before}{source.path}": source
            for name, before in _folders(one, dataset)
            for source in list_sources(str(volume), name)
        }
    except (RequestError, StepError) as error:
        return [str(error)]
    lines = [f"{path} is gone" for path in sources if path not in there]
    lines += [f"{path} is new" for path in there if path not in sources]
    for path, (size, digest) in sources.items():
        if path not in there:
            continue
        now = there[path]
        if now.size != size:
            lines.append(f"{path} had {size:,} bytes, has {now.size:,}")
        elif digest and not now.remote and _digest_of(now.location) != digest:
            lines.append(f"{path} has other content, of the same size")
    return _first(lines)


def _digest_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_FILES
    return lines if more <= 0 else [*lines[:MOST_FILES], f"and {more} more files"]
