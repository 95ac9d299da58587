"""Who follows a Job, kept in its annotations: a cancel leaves a Job that others wait for.

Each follower writes the time at which it was last alive; one that was killed is
forgotten after a while.
"""

import contextlib
import hashlib
import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from infra.kubernetes_backend.manifests_pod import PREFIX

Object = dict[str, Any]
MARK = f"{PREFIX}/follower-"
HEARTBEAT_SECONDS = 60.0
FORGOTTEN_AFTER = timedelta(seconds=5 * HEARTBEAT_SECONDS)
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9-]{0,38}[A-Za-z0-9]$")


def follower_name(attempt: str) -> str:
    """`attempt` as part of an annotation's key."""
    if _NAME.match(attempt):
        return attempt
    return hashlib.sha256(attempt.encode()).hexdigest()[:16]


def heartbeat(follower: str) -> dict[str, str | None]:
    """The annotation that says: alive now."""
    return {MARK + follower: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


def departure(ours: Collection[str]) -> dict[str, str | None]:
    """The annotations' removal."""
    return {MARK + follower: None for follower in ours}


def last_alive(job: Object, follower: str) -> str | None:
    """When the follower was last alive, or None for one that never was."""
    return (job["metadata"].get("annotations") or {}).get(MARK + follower)


def others(job: Object, ours: Collection[str]) -> list[str]:
    """Followers besides `ours` who were alive a moment ago."""
    now, found = datetime.now(UTC), []
    for key, value in (job["metadata"].get("annotations") or {}).items():
        if key.startswith(MARK) and key.removeprefix(MARK) not in ours:
            with contextlib.suppress(TypeError, ValueError):  # somebody else has edited it
                alive = datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
                if now - alive < FORGOTTEN_AFTER:
                    found.append(key.removeprefix(MARK))
    return found
