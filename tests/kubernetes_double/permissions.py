"""Role-based access control: what a service account's token may do, by the manifests applied.

Source: https://kubernetes.io/docs/reference/access-authn-authz/rbac/
"""

from collections.abc import Iterable

from tests.kubernetes_double.faults import Request
from tests.kubernetes_double.store import Object

TOKEN_PREFIX = "token-of-"


def token_of(account: str) -> str:
    """The token that a pod of the service account is given."""
    return TOKEN_PREFIX + account


class Permissions:
    """Rights of the service accounts among `manifests`, from Roles and RoleBindings."""

    def __init__(self, manifests: Iterable[Object]) -> None:
        made = list(manifests)
        roles = {m["metadata"]["name"]: m["rules"] for m in made if m["kind"] == "Role"}
        accounts = [m["metadata"]["name"] for m in made if m["kind"] == "ServiceAccount"]
        self._rules: dict[str, list[Object]] = {name: [] for name in accounts}
        for binding in (m for m in made if m["kind"] == "RoleBinding"):
            for subject in binding["subjects"]:
                self._rules[subject["name"]] += roles[binding["roleRef"]["name"]]

    @property
    def accounts(self) -> list[str]:
        return sorted(self._rules)

    @property
    def tokens(self) -> set[str]:
        return {token_of(account) for account in self._rules}

    def allow(self, token: str, asked: Request) -> bool:
        """Whether the account of this token may do that; others than service accounts may."""
        if token not in self.tokens:
            return True
        return any(
            asked.group in rule["apiGroups"]
            and asked.resource in rule["resources"]
            and asked.verb in rule["verbs"]
            and asked.name in rule.get("resourceNames", [asked.name])
            for rule in self._rules[token.removeprefix(TOKEN_PREFIX)]
        )
