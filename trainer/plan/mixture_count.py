"""How many contexts a mixture makes: from the counts of its parts, exact where it is there.

Importing this loads nothing heavy.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.contract.errors import DamagedError
from trainer.contract.step_configs import TokenizeConfig

if TYPE_CHECKING:
    from trainer.plan.context_count import ContextCount
    from trainer.tokens.mixture.shares import Wanted
    from trainer.tokens.store import Manifest


def count_mixture(
    config: TokenizeConfig,
    count: Callable[[TokenizeConfig], "ContextCount"],
    store_of: Callable[[TokenizeConfig], Path | None],
) -> tuple[dict[str, Any], "Manifest | None"]:
    """The figures of a ContextCount, and the mixture's manifest where it is there.

    Args:
        count: Counts the contexts of a part.
        store_of: The finished store of a part.
    Raises:
        RequestError: A part is missing or can't be read.
    """
    from trainer.tokens.mixture.parts import part_configs

    pairs = part_configs(config)
    parts, configs = [part for part, _ in pairs], [asked for _, asked in pairs]
    made = [store_of(asked) for asked in configs]
    stores = [folder for folder in made if folder]
    manifest = _finished(config, parts, stores) if len(stores) == len(made) else None
    return ({} if manifest else _estimated(parts, configs, [count(c) for c in configs])), manifest


def _finished(
    config: TokenizeConfig, parts: Sequence["Wanted"], folders: Sequence[Path]
) -> "Manifest | None":
    """The manifest of the mixture that these stores make, if it is there."""
    from trainer.tokens.mixture.making import mixture_key
    from trainer.tokens.step import store_name
    from trainer.tokens.store import TokenStore, read_manifest

    try:
        key = mixture_key(parts, [TokenStore.open(f) for f in folders], config.random_seed)
        folder = Path(config.volume) / "tokens" / f"{store_name(config.dataset)}-{key}"
        return read_manifest(folder)[0]
    except DamagedError:  # the tokenize step makes it
        return None


def _estimated(
    parts: Sequence["Wanted"], configs: Sequence[TokenizeConfig], counts: Sequence["ContextCount"]
) -> dict[str, Any]:
    from trainer.tokens.mixture.shares import epoch_tokens

    to_train = [
        max(1.0, c.num_contexts * asked.train_ratio)
        if c.num_train_contexts is None
        else float(c.num_train_contexts)
        for c, asked in zip(counts, configs, strict=True)
    ]
    held = [c.num_contexts - trained for c, trained in zip(counts, to_train, strict=True)]
    own = sum(h for h, part in zip(held, parts, strict=True) if not part.is_replay)
    held = [min(h, own) if part.is_replay else h for h, part in zip(held, parts, strict=True)]
    tokens = [
        float(c.trained_tokens or trained * asked.context)
        for c, trained, asked in zip(counts, to_train, configs, strict=True)
    ]
    epoch = epoch_tokens(parts, tokens)
    taken = [part.share * epoch for part in parts]
    rows = [want / there * n for want, there, n in zip(taken, tokens, to_train, strict=True)]
    in_all = sum(rows) + sum(held)
    pads = [c.padding_share or 0.0 for c in counts]
    padding = sum(n * pad for n, pad in zip(rows, pads, strict=True)) / max(1.0, sum(rows))
    return {
        "num_contexts": max(1, round(in_all)),
        "num_train_contexts": max(1, round(sum(rows))),
        "estimated": True,
        "trained_tokens": round(epoch),
        "padding_share": padding if any(c.padding_share is not None for c in counts) else None,
        "parts": [
            {
                "name": part.name,
                "share": part.share,
                "replay": part.is_replay,
                "tokens": round(there),
                "taken": round(want),
                "repeated": round(max(0.0, want - there)),
                "left_out": round(max(0.0, there - want)),
            }
            for part, there, want in zip(parts, tokens, taken, strict=True)
        ],
    }
