"""What the tokenize step says of a store: its figures, and a sentence."""

import time
from pathlib import Path

from trainer.steps import StepResult
from trainer.tokens.store import Manifest, TokenStore


def step_result(volume: Path, store: TokenStore, started: float, reused: bool) -> StepResult:
    """The outcome of a store that was made, or found if `reused`."""
    manifest, seconds = store.manifest, time.monotonic() - started
    total_bytes = sum(source["bytes"] for source in manifest.sources)
    name = store.folder.relative_to(volume).as_posix()
    totals = manifest.totals
    size = f"contexts of {manifest.context:,}"
    if manifest.of_pairs:
        size = f"pairs of 2 x {manifest.context:,}"
    message = (
        f"{'Found' if reused else 'Made'} {name}: {manifest.num_contexts:,} {size} "
        f"ids from {len(manifest.sources):,} files in {seconds:.1f} s."
    )
    result = {
        "store": name,
        "digest": store.digest,
        "num_contexts": manifest.num_contexts,
        "num_train_contexts": manifest.num_train_contexts,
        "num_tokens": manifest.num_tokens,
        "num_padding": manifest.num_padding,
        "encoder": manifest.encoder,
        "files": len(manifest.sources),
        "documents": totals["documents"],
        "bytes": total_bytes,
        "seconds": round(seconds, 3),
        # Of a store that was there nothing was read: it has no speed.
        "megabytes_per_second": None if reused else round(total_bytes / 1e6 / seconds, 3),
        "repeated": totals["repeated"],
        "repeated_share": round(totals["repeated"] / max(1, manifest.num_tokens), 4),
        "dropped": _dropped(manifest),
    }
    if manifest.of_records or manifest.parts:
        result |= {name: totals[name] for name in ("trained_tokens", "masked_tokens")}
    if manifest.parts:
        result["parts"] = manifest.parts
    return StepResult(result=result, message=message, reused=reused)


def _dropped(manifest: Manifest) -> dict[str, int]:
    """What is in no context, by reason; documents and lines are counted, else tokens."""
    names = ["empty_documents", "blank_lines", "boundaries", "sampled_out"]
    if manifest.of_records:
        names += ["too_long", "cut_before_answer", "cut", "dropped_tokens", "cut_tokens"]
    return {name: manifest.totals.get(name, 0) for name in names}
