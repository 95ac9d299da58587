"""What the API server's refusals mean, in the words of who has to act on them."""

import json
from dataclasses import dataclass, field
from typing import Any

from infra.backend import PlaceError

TRANSIENT_CODES = frozenset({408, 429})  # and all of 500 and more: proxies have their own


@dataclass
class RefusedError(Exception):
    """A request was answered with an error."""

    code: int
    reason: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)
    retry_after_seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.code} {self.reason}: {self.message}"

    @property
    def transient(self) -> bool:
        """Whether the same request may be answered otherwise in a while."""
        return self.code in TRANSIENT_CODES or self.code >= 500

    @property
    def of_namespace(self) -> bool:
        """Whether it is about the namespace, not about what is to be in it."""
        return self.details.get("kind") == "namespaces"


def refusal_of(code: int, body: bytes, retry_after: str = "") -> RefusedError:
    """Read an error's body: a Status, or whatever a proxy in between has written."""
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if not isinstance(status, dict) or "message" not in status:
        status = {"reason": "", "message": body[:200].decode(errors="replace").strip()}
    seconds = float(retry_after) if retry_after.isdigit() else 0.0
    return RefusedError(
        code, status.get("reason", ""), status["message"], status.get("details") or {}, seconds
    )


def in_words(error: RefusedError, action: str, namespace: str) -> PlaceError:
    """The error as a person can act on it.

    Args:
        action: What was asked, as RBAC says it: "create jobs.batch".
        namespace: Where.
    """
    said = f"The API server's words: {error.message}"
    if error.code == 401:
        return PlaceError(
            f"the cluster does not accept your credentials (got {error.code} to {action}). "
            "Log in again, or renew the token in your kubeconfig."
        )
    if error.code == 403 and "exceeded quota" in error.message:
        return PlaceError(f"namespace {namespace!r} has no quota left for this. {said}")
    if error.code == 403:
        return PlaceError(
            f"your account may not {action} in namespace {namespace!r}. Ask for that permission: "
            f"infra/cluster/rbac.yaml lists what is needed. {said}"
        )
    if error.code == 404:
        return PlaceError(
            f"namespace {namespace!r} or what is needed in it is not there (asked to {action}). "
            f"Name another, or make it. {said}"
        )
    causes = error.details.get("causes") or []
    if causes:
        fields = "; ".join(f"{cause['field']}: {cause['message']}" for cause in causes)
        return PlaceError(f"the cluster refuses the object (asked to {action}): {fields}.")
    return PlaceError(f"the cluster refuses to {action} (got {error.code}). {said}")
