"""The key of a step's work: a digest of everything that the step reads.

Two requests with one key are the same work: a running step is adopted, and a finished Job's
outcome may be taken. So a key names each value of the config that can change what the step
does, and `inputs`: digests of what it reads on the volume.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trainer.contract.later_keys import without_later_defaults

# Who asks and when. `listing` names a shared listing; its content is in `inputs`.
BOOKKEEPING = frozenset({"flow_began", "asked", "listing"})
NOT_DEFINING: Mapping[str, frozenset[str]] = {
    "tokenize": frozenset({"workers"}),  # a store is the same for any number of them
    # For run.json alone; and `no_resume`: see the backends, which start over once for each caller.
    "finetune": frozenset({"no_resume", "attempt", "earlier_outcomes", "plan", "grace_seconds"}),
}


def work_key(step: str, config: Mapping[str, Any]) -> str:
    """The key of the step with that config, 16 hex digits."""
    canonical = json.dumps(_defining(step, config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differing(step: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what makes two configs of a step different work; `inputs.NAME` for an input."""
    one, other = (_flat(_defining(step, config)) for config in (before, now))
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _defining(step: str, config: Mapping[str, Any]) -> dict[str, Any]:
    without = BOOKKEEPING | NOT_DEFINING.get(step, frozenset())
    values = {name: value for name, value in config.items() if name not in without}
    if "request" in values:
        values["request"] = without_later_defaults(values["request"] or {})
    return without_later_defaults(values)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """With each parameter of `request` and each of `inputs` under a name of its own."""
    inputs = {f"inputs.{name}": value for name, value in config.get("inputs", {}).items()}
    rest = {name: value for name, value in config.items() if name not in ("inputs", "request")}
    return {**config.get("request", {}), **rest, **inputs}
