"""`{NEW}/certificate.json`: what was left out of a run, from where, and what came of it.

Every field is computed from what is on the volume, so that `check` computes it again and
compares. The text itself is not in it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.files import write_atomically
from trainer.contract.json_files import read_object, readable_object
from trainer.contract.json_text import parse_json
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest, verify
from trainer.contract.topics import SkipConfig
from trainer.evaluation.held_out_loss import loss_of_model
from trainer.forgetting import elsewhere
from trainer.forgetting.recorded import checkpoint_digest, job_of, store_of
from trainer.forgetting.steps import steps_with
from trainer.tokens.left_out import document_names, left_out, of_documents
from trainer.tokens.store import TokenStore
from trainer.tokens.text.document_digests import document_digests
from trainer.training.save.records import MEASURED

FORMAT = 1
NAME = "certificate.json"
ROUNDING = 1e-4  # of losses: on another machine sums come in another order


def certify(volume: Path, new: RunFolder) -> dict[str, Any]:
    """Compute the certificate of the run `new`, which `finetune forget` made, and write it."""
    return _write(new, compute(volume, new))


def certify_and_purge(volume: Path, new: RunFolder) -> dict[str, Any]:
    """Write the certificate with what is removed, then remove it; again after a kill."""
    body = read_object(new.root / NAME) or {}
    if not body.get("purged"):
        body = compute(volume, new)
        found = [elsewhere.Trace(**trace) for trace in body["elsewhere"]]
        gone, stay = elsewhere.to_purge(body["run"], found)
        body["purged"] = {"removed": gone, "left": stay}
        body["elsewhere"] = [t._asdict() for t in found if t.where not in gone]
        body = _write(new, body)
    elsewhere.remove_all(volume, body["purged"]["removed"])
    return body


def _write(new: RunFolder, body: dict[str, Any]) -> dict[str, Any]:
    sealed = _sealed(body)
    write_atomically(new.root / NAME, json.dumps(sealed, indent=1) + "\n")
    return sealed


def compute(volume: Path, new: RunFolder) -> dict[str, Any]:
    """The certificate's fields, all from what is on the volume.

    Raises:
        RequestError: The run was not made by `finetune forget`, or its data are gone.
        DamagedError: Its final model is not whole.
    """
    record = new.record() or {}
    forgets = _forgets(new)
    run = RunFolder(volume, forgets["run"])
    if problems := verify(new.final):
        raise DamagedError(f"{new.root.name}/final: {'; '.join(problems)}")
    store = store_of(new)
    documents = _documents(store, record["request"], forgets, volume)
    omitted = of_documents(store, documents)
    plan = job_of(new).plan
    # As the first run trained: its own plan, with what it left out already.
    steps = steps_with(_plan_before(plan, store, record, forgets, volume), omitted.contexts)
    first = min(steps, default=None)
    traced = elsewhere.Traces(
        run.root.name, new.root.name, store, record["request"]["dataset"], documents, first
    )
    return {
        "format": FORMAT,
        "run": run.root.name,
        "new": new.root.name,
        "created": record["created"],
        "requested": forgets["requested"],
        "documents": _listed(store, documents, volume, record["request"]["dataset"]),
        "tokens": {"store": record["tokens"], "digest": store.digest},
        "contexts": omitted.contexts.tolist(),
        "held_out_contexts": omitted.held_out.tolist(),
        "left_out": omitted.figures,
        "order": {
            "seed": plan.seed,
            "shuffle": plan.shuffle,
            "num_contexts": plan.num_contexts,
            "global_batch": plan.global_batch,
            "epochs": plan.epochs,
            "steps": plan.steps,
        },
        "steps": {str(step): contexts for step, contexts in steps.items()},
        "first_step": first,
        "started_from": _start(run, forgets, first),
        "versions": record["versions"],
        "result": _result(new),
        "losses": _losses(run, new, store),
        "elsewhere": [trace._asdict() for trace in elsewhere.traces(volume, traced)],
        "purged": None,
    }


def _forgets(new: RunFolder) -> dict[str, Any]:
    forgets = (new.record() or {}).get("forgets")
    if not forgets:
        raise RequestError(
            f"{new.root.name} was not made by `finetune forget`, so nothing is certified of it."
        )
    return forgets


def _documents(
    store: TokenStore, request: dict[str, Any], forgets: dict[str, Any], volume: Path
) -> list[tuple[int, int]]:
    """What the new run leaves out and the first one did not."""
    before, now = (
        left_out(store, SkipConfig(**skip), volume, request["dataset"])
        for skip in (forgets["skip_before"], request["skip"])
    )
    assert now is not None
    return sorted(set(now.documents) - set(before.documents if before else ()))


def _plan_before(
    plan: Any, store: TokenStore, record: dict[str, Any], forgets: dict[str, Any], volume: Path
) -> Any:
    from dataclasses import replace

    skip = SkipConfig(**forgets["skip_before"])
    before = left_out(store, skip, volume, record["request"]["dataset"])
    return replace(plan, left_out=before.ranges if before else ())


def _listed(
    store: TokenStore, documents: list[tuple[int, int]], volume: Path, dataset: str
) -> list[dict[str, str]]:
    digests = document_digests(volume, store, dataset)
    rows = {(int(r["file"]), int(r["number"])): r for r in digests}
    names = document_names(store, documents)
    return [
        {
            "document": name,
            "sha256": rows[document]["text"].tobytes().hex(),
            "sanitized_sha256": rows[document]["sanitized"].tobytes().hex(),
            "file_sha256": store.manifest.sources[document[0]]["sha256"],
        }
        for name, document in zip(names, documents, strict=True)
    ]


def _start(run: RunFolder, forgets: dict[str, Any], first: int | None) -> dict[str, Any]:
    """Where the new run began; the checkpoint's digest is compared while it is there."""
    from trainer.contract.checkpoints import name_of

    step, digest = forgets["step"], forgets["checkpoint"]
    if first is not None and step >= first:
        raise DamagedError(
            f"it began after step {step}, and step {first} had trained on the documents"
        )
    place = run.checkpoints / name_of(step)
    if step and place.is_dir():
        digest = checkpoint_digest(place)
    return {"run": run.root.name, "step": step, "checkpoint": digest}


def _result(new: RunFolder) -> dict[str, Any]:
    manifest = read_manifest(new.final)
    lines = [parse_json(line) for line in new.metrics.read_text(encoding="utf-8").splitlines()]
    kept = [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]
    return {
        "final": manifest.digest,
        "weights": {n: f["sha256"] for n, f in manifest.files.items() if ".safetensors" in n},
        "metrics": hashlib.sha256(json.dumps(kept).encode()).hexdigest(),
    }


def _losses(run: RunFolder, new: RunFolder, store: TokenStore) -> dict[str, Any]:
    """Both models on the same held-out text; None of the first where it is gone by now."""
    code = bool((new.record() or {}).get("trust_remote_code"))
    held = np.arange(store.manifest.num_train_contexts, store.manifest.num_contexts)
    known = readable_object(new.root / NAME)
    before = known["losses"]["run"] if known and not run.final.exists() else None
    if run.final.exists():
        before = loss_of_model(run.final, store, f"evaluate {run.root.name}", code)
    return {
        "held_out_contexts": len(held),
        "run": before,
        "new": loss_of_model(new.final, store, f"evaluate {new.root.name}", code),
    }


# --- checking ---------------------------------------------------------------------------


def check(volume: Path, new: RunFolder) -> tuple[list[str], list[str]]:
    """Compute the certificate again; what differs, and what can't be computed any more."""
    written = read_object(new.root / NAME)
    if written is None:
        raise RequestError(f"{new.root.name} has no {NAME}. `finetune forget` writes one.")
    if written != _sealed(written):
        return [f"{NAME} was altered: its digest is not its own"], []
    purged = written.get("purged")
    # A claim that the text was purged has to be right: where it is there, all is computed.
    if isinstance(purged, dict) and not (volume / written["tokens"]["store"]).exists():
        return _check_after_purge(volume, new, written, purged)
    now = parse_json(json.dumps(compute(volume, new)))
    return _differences(written, now), []


def _check_after_purge(
    volume: Path, new: RunFolder, written: dict[str, Any], purged: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """The text is gone, and with it what the contexts were computed from."""
    back = [where for where in purged["removed"] if (volume / where).exists()]
    found = [f"{where} was removed, and is there again" for where in back]
    forgets, record = _forgets(new), new.record() or {}
    run = RunFolder(volume, forgets["run"])
    if problems := verify(new.final):
        return [*found, *problems], []
    now = {
        "run": run.root.name,
        "new": new.root.name,
        "created": record["created"],
        "requested": forgets["requested"],
        "started_from": _start(run, forgets, written["first_step"]),
        "versions": record["versions"],
        "result": _result(new),
    }
    same = {name: written.get(name) for name in now}
    left = sorted({*written} - {*now} - {"sha256", "format", "purged"})
    return [*found, *_differences(same, parse_json(json.dumps(now)))], left


def _differences(written: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One phrase for each field that came out otherwise."""
    found = []
    for name in sorted(({*written} | {*now}) - {"sha256"}):
        before, after = written.get(name), now.get(name)
        if name == "losses" and _alike(before, after):
            continue
        if before != after:
            found.append(f"{name} is {_short(after)}, the certificate says {_short(before)}")
    return found


def _alike(before: Any, after: Any) -> bool:
    if not isinstance(before, dict) or {*before} != {*after}:
        return False
    return all(
        before[n] == after[n]
        or (
            isinstance(before[n], float)
            and isinstance(after[n], float)
            and abs(before[n] - after[n]) <= ROUNDING * abs(after[n])
        )
        for n in after
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:200]}... ({len(text)} characters)"


def _sealed(body: dict[str, Any]) -> dict[str, Any]:
    """The certificate with a digest of itself."""
    rest = {name: value for name, value in body.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return {**rest, "sha256": digest}
