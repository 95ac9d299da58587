"""What a namespace refuses before the API server looks at an object's name.

Source of the words: tests/kubernetes/recordings/responses-2.json, and the Events of quota,
limitrange and podsecurity.
"""

from dataclasses import dataclass

from tests.kubernetes_double.admission import RefusedError, violations_of_restricted
from tests.kubernetes_double.api_objects import details_of, qualified
from tests.kubernetes_double.store import Object, Store

POLICY = "jobs-have-an-owner"


@dataclass
class NamespaceRules:
    """Quotas, limits and policies of the one namespace; without any, everything is let through."""

    most: dict[str, int] | None = None  # {"jobs": 1}: a quota count/jobs.batch=1
    refuses_pods: str = ""  # the words after "is forbidden: " of a quota or LimitRange
    restricted: bool = False  # enforces Pod Security "restricted"
    needs_owner: bool = False  # a ValidatingAdmissionPolicy: a Job needs the label owner
    policy_reason: str = "Invalid"  # or "Forbidden"

    def check(self, store: Store, kind: str, namespace: str, given: Object) -> None:
        """Raise RefusedError where the object is not let in."""
        name = given["metadata"]["name"]
        if kind == "pods" and (words := self.against_pod(given)):
            raise self._forbidden(kind, name, words)
        if (
            self.needs_owner
            and kind == "jobs"
            and "owner" not in given["metadata"].get("labels", {})
        ):
            raise self._denied(kind, name)
        limit = (self.most or {}).get(kind)
        used = len(store.list(kind, namespace))
        if limit is not None and used >= limit:
            counted = f"count/{qualified(kind)}"
            words = f"exceeded quota: {kind}, requested: {counted}=1, used: {counted}={used}"
            raise self._forbidden(kind, name, f"{words}, limited: {counted}={limit}")

    def against_pod(self, pod: Object) -> str:
        """Why the Pod is refused; empty: it is not."""
        found = violations_of_restricted(pod["spec"]) if self.restricted else []
        insecure = f'violates PodSecurity "restricted:latest": {", ".join(found)}' if found else ""
        return self.refuses_pods or insecure

    def _forbidden(self, kind: str, name: str, words: str) -> RefusedError:
        words = f'{qualified(kind)} "{name}" is forbidden: {words}'
        return RefusedError(403, "Forbidden", words, details_of(kind, name))

    def _denied(self, kind: str, name: str) -> RefusedError:
        cause = (
            f"ValidatingAdmissionPolicy '{POLICY}' with binding '{POLICY}' denied request: "
            "a Job needs the label owner"
        )
        details = {"causes": [{"message": cause}], **details_of(kind, name)}
        code = 422 if self.policy_reason == "Invalid" else 403
        words = f'{qualified(kind)} "{name}" is forbidden: {cause}'
        return RefusedError(code, self.policy_reason, words, details)
