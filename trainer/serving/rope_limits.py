"""At which lengths a model rotates its keys anew, so that cached ones no longer count.

`longrope` (Phi-3) changes its frequencies once, where a text becomes longer than the
model was first trained for; `dynamic` changes them with every token beyond that length.
transformers applies the frequencies of the longest row to a whole batch.
Source: transformers.modeling_rope_utils.dynamic_rope_update.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RopeLimits:
    """Lengths in tokens."""

    changes_once: frozenset[int] = frozenset()  # beyond this length: other frequencies
    changes_always: int | None = None  # beyond this length: other ones for every length

    @property
    def shortest(self) -> int | None:
        """The longest text whose frequencies are those of every shorter text; None: any."""
        lengths = {*self.changes_once, *([self.changes_always] if self.changes_always else [])}
        return min(lengths, default=None)

    def changes_between(self, before: int, after: int) -> bool:
        """Whether a text of `after` tokens has other frequencies than one of `before`."""
        if self.changes_always is not None and after > self.changes_always:
            return True
        return any(before <= length < after for length in self.changes_once)


def rope_limits(config: Any) -> RopeLimits:
    """What the config of a model says, for all of its kinds of layers."""
    text = config.get_text_config()
    once, always = set(), set()
    for settings in _settings(getattr(text, "rope_parameters", None)):
        longest = getattr(text, "max_position_embeddings", None)
        original = settings.get("original_max_position_embeddings") or longest
        if settings["rope_type"] == "longrope" and original:
            once.add(int(original))
        elif settings["rope_type"] == "dynamic" and longest:
            always.add(int(longest))
    return RopeLimits(frozenset(once), min(always, default=None))


def _settings(rope: Any) -> Iterator[dict[str, Any]]:
    """Settings of rotary positions, where each kind of layer may have its own."""
    if not isinstance(rope, dict):
        return
    if "rope_type" in rope:
        yield rope
        return
    for value in rope.values():
        yield from _settings(value)
