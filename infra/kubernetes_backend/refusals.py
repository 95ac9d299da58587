"""What the API server's refusals mean, in the words of who has to act on them."""

import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from infra.backend import PlaceError
from trainer.contract.json_text import parse_json

# The one form in which an API server says what an account may not do, by any authorizer.
CANNOT = re.compile(r'is forbidden: User ".*" cannot ', re.DOTALL)
EXCERPT, LONGEST_BODY_BYTES = 200, 1 << 16
UNSEEN = re.compile(r"<(script|style|head)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
TAG = re.compile(r"<[^>]*>")
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
    def unauthorized(self) -> bool:
        """Whether the account may not ask this: not what an admission plugin says of an object.

        What is no Status comes from a proxy, which judges the account too.
        """
        by_account = CANNOT.search(self.message) is not None
        return self.code == 403 and (by_account or not self.reason)

    @property
    def of_namespace(self) -> bool:
        """Whether it is about the namespace, not about what is to be in it."""
        return self.details.get("kind") == "namespaces"


def refusal_of(code: int, body: bytes, retry_after: str = "") -> RefusedError:
    """Read an error's body: a Status, or whatever a proxy in between has written."""
    seconds = float(retry_after) if retry_after.isdigit() else 0.0
    try:
        status = parse_json(body)
    except (ValueError, RecursionError):
        status = None
    if not isinstance(status, dict) or not isinstance(status.get("message"), str):
        return RefusedError(code, "", excerpt(body) or _phrase(code), {}, seconds)
    reason, details = status.get("reason"), status.get("details")
    return RefusedError(
        code,
        reason if isinstance(reason, str) else "",
        status["message"],
        details if isinstance(details, dict) else {},
        seconds,
    )


def excerpt(body: bytes) -> str:
    """The beginning of a body as one line of text: a page's words without its markup."""
    text = body[:LONGEST_BODY_BYTES].decode(errors="replace")
    if text.lstrip()[:1] == "<":
        text = TAG.sub(" ", UNSEEN.sub(" ", text))
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."


def _phrase(code: int) -> str:
    try:
        return HTTPStatus(code).phrase
    except ValueError:
        return "no words"


def in_words(error: RefusedError, action: str, namespace: str) -> PlaceError:
    """The error as a person can act on it.

    Args:
        action: What was asked, as RBAC says it: "create jobs.batch".
        namespace: Where.
    """
    said = f"The API server's words: {error.message}"
    if error.code < 300:
        return PlaceError(
            f"what answers for the cluster is no Kubernetes API server (asked to {action}, got "
            f"{error.message}). Check the server's address in your kubeconfig, and proxies."
        )
    if error.code == 401:
        return PlaceError(
            f"the cluster does not accept your credentials (got {error.code} to {action}). "
            "Log in again, or renew the token in your kubeconfig."
        )
    if error.code == 403 and "exceeded quota" in error.message:
        return PlaceError(f"namespace {namespace!r} has no quota left for this. {said}")
    if error.unauthorized:
        return PlaceError(
            f"your account may not {action} in namespace {namespace!r}. Ask for that permission: "
            f"infra/cluster/rbac.yaml lists what is needed. {said}"
        )
    if error.code == 404:
        return PlaceError(
            f"namespace {namespace!r} or what is needed in it is not there (asked to {action}). "
            f"Name another, or make it. {said}"
        )
    fields = _fields(error.details.get("causes"))
    if fields:
        return PlaceError(f"the cluster refuses the object (asked to {action}): {fields}.")
    return PlaceError(f"the cluster refuses to {action} (got {error.code}). {said}")


def _fields(causes: Any) -> str:
    """What is wrong with each field; empty where a cause names none, as those of a policy."""
    if not isinstance(causes, list) or not all(isinstance(cause, dict) for cause in causes):
        return ""
    named = [f"{c['field']}: {c.get('message', '')}" for c in causes if c.get("field")]
    return "; ".join(named) if len(named) == len(causes) else ""
