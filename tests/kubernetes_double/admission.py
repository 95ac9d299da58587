"""What a request must satisfy before it is stored, with the words of a real API server.

Unknown and wrong fields come from Kubernetes' published schemas (kubernetes-validate).
Source of the words: tests/kubernetes/recordings/responses.json.
"""

import functools
import json
import re
from importlib import resources
from typing import Any

import jsonschema
import kubernetes_validate

from tests.kubernetes_double import kserve_schema
from tests.kubernetes_double.store import KINDS, Object

VERSION = "1.36"
SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
NOT_A_SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    f"for validation is '{SUBDOMAIN}')"
)
# Of a Service's name, up to Kubernetes 1.35.
SERVICE_NAME = r"[a-z]([-a-z0-9]*[a-z0-9])?"
NOT_A_SERVICE_NAME = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
    "alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', "
    f"regex used for validation is '{SERVICE_NAME}')"
)
LABEL_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")


class RefusedError(Exception):
    """A request is answered with a Status of failure."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.details = code, reason, message, details


@functools.cache
def _definitions() -> dict[str, Any]:
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    path = folder / f"v{VERSION}.0-local-strict" / "_definitions.json"
    return json.loads(path.read_text())["$defs"]


def unknown_fields(kind: str, given: Object) -> list[str]:
    """Paths of the fields that the schema does not have: `spec.nosuchfield`."""
    group, name = KINDS[kind]
    package = group.rpartition("/")[0] or "core"
    return list(_unknown(f"io.k8s.api.{package}.v1.{name}", given, ""))


def _unknown(definition: str, value: Any, path: str) -> Any:
    schema = _definitions()[definition]
    if not isinstance(value, dict) or "properties" not in schema:
        return
    for name, inner in value.items():
        where = f"{path}.{name}" if path else name
        found = schema["properties"].get(name)
        if found is None:
            yield where
            continue
        if "$ref" in found:
            yield from _unknown(found["$ref"].rpartition("/")[2], inner, where)
        reference = found.get("items", {}).get("$ref") if isinstance(inner, list) else None
        for index, item in enumerate(inner if reference else []):
            yield from _unknown(reference.rpartition("/")[2], item, f"{where}[{index}]")


def check_fields(kind: str, given: Object, *, strict: bool) -> None:
    """Raise 400 for unknown fields (if strict) and for values of a wrong type."""
    group, name = KINDS[kind]
    if kind == "inferenceservices":
        if wrong := kserve_schema.problems(given):
            raise RefusedError(400, "BadRequest", "; ".join(wrong))
        return
    unknown = unknown_fields(kind, given)
    cannot = f'{name} in version "{group.rpartition("/")[2]}" cannot be handled as a {name}: '
    if unknown and strict:
        fields = ", ".join(f'unknown field "{field}"' for field in unknown)
        raise RefusedError(400, "BadRequest", f"{cannot}strict decoding error: {fields}")
    try:
        complete = {"apiVersion": group, "kind": name, **given}
        kubernetes_validate.validate(complete, VERSION, strict=False)
    except jsonschema.ValidationError as error:
        raise RefusedError(400, "BadRequest", cannot + error.message) from error


def check_create(kind: str, given: Object) -> None:
    """Raise 422 with every cause for an object that can't be."""
    causes = list(_metadata_causes(given.get("metadata", {})))
    if kind == "jobs":
        causes += _job_causes(given["spec"])
    name = given.get("metadata", {}).get("name", "")
    if kind == "services" and not (re.fullmatch(SERVICE_NAME, name) and len(name) <= 63):
        words = f'Invalid value: "{name}": {NOT_A_SERVICE_NAME}'
        causes.append(("FieldValueInvalid", "metadata.name", words))
    if causes:
        raise invalid(kind, given["metadata"].get("name", ""), causes)


def check_update(kind: str, before: Object, after: Object) -> None:
    """Raise 422 where a field changes that may not."""
    if kind != "jobs":
        return
    for field in ("template", "selector", "completions", "completionMode"):
        if before["spec"].get(field) != after["spec"].get(field):
            words = f"Invalid value: {json.dumps(after['spec'].get(field))}: field is immutable"
            causes = [("FieldValueInvalid", f"spec.{field}", words)]
            raise invalid(kind, before["metadata"]["name"], causes)


def invalid(kind: str, name: str, causes: list[tuple[str, str, str]]) -> RefusedError:
    """A 422 with its causes: (reason, field, words)."""
    group, kind_name = KINDS[kind]
    group = group.rpartition("/")[0]
    listed = ", ".join(f"{field}: {words}" for _, field, words in causes)
    listed = f"[{listed}]" if len(causes) > 1 else listed
    qualified = f"{kind_name}.{group}" if group else kind_name
    details = {
        "causes": [{"field": f, "message": w, "reason": r} for r, f, w in causes],
        "kind": kind_name,
        "name": name,
        **({"group": group} if group else {}),
    }
    return RefusedError(422, "Invalid", f'{qualified} "{name}" is invalid: {listed}', details)


def _metadata_causes(metadata: Object) -> Any:
    name = metadata.get("name") or metadata.get("generateName", "").rstrip("-")
    if not re.fullmatch(SUBDOMAIN, name) or len(name) > 253:
        yield "FieldValueInvalid", "metadata.name", f'Invalid value: "{name}": {NOT_A_SUBDOMAIN}'
    for key, value in metadata.get("labels", {}).items():
        if len(value) > 63 or not LABEL_VALUE.match(value):
            words = (
                f'Invalid value: "{value}": must be a valid label value of at most 63 characters'
            )
            yield "FieldValueInvalid", f"metadata.labels[{key}]", words
    if sum(len(k) + len(v) for k, v in metadata.get("annotations", {}).items()) > 256 * 1024:
        words = "Too long: may not be more than 262144 bytes"
        yield "FieldValueTooLong", "metadata.annotations", words


def _job_causes(spec: Object) -> list[tuple[str, str, str]]:
    pod = spec["template"]["spec"]
    causes = []
    if pod.get("restartPolicy") not in ("OnFailure", "Never"):
        words = 'Required value: valid values: "OnFailure", "Never"'
        causes.append(("FieldValueRequired", "spec.template.spec.restartPolicy", words))
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for index, container in enumerate(pod.get("containers", [])):
        for number, mount in enumerate(container.get("volumeMounts", [])):
            if mount["name"] not in volumes:
                field = f"spec.template.spec.containers[{index}].volumeMounts[{number}].name"
                causes.append(("FieldValueNotFound", field, f'Not found: "{mount["name"]}"'))
    if "podFailurePolicy" in spec and spec.get("podReplacementPolicy", "Failed") != "Failed":
        words = 'Unsupported value: supported values: "Failed"'
        causes.append(("FieldValueNotSupported", "spec.podReplacementPolicy", words))
    if spec.get("completionMode") == "Indexed" and "completions" not in spec:
        causes.append(("FieldValueRequired", "spec.completions", "Required value"))
    return causes + list(_metadata_causes({"name": "x", **spec["template"].get("metadata", {})}))


def violations_of_restricted(pod: Object) -> list[str]:
    """What Pod Security "restricted" finds in a pod's spec.

    Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    """
    found = []
    shared = pod.get("securityContext", {})
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            found.append("allowPrivilegeEscalation != false")
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            found.append("unrestricted capabilities")
        if not own.get("runAsNonRoot", shared.get("runAsNonRoot")):
            found.append("runAsNonRoot != true")
        if own.get("runAsUser", shared.get("runAsUser")) == 0:
            found.append("runAsUser=0")
        profile = own.get("seccompProfile", shared.get("seccompProfile", {}))
        if profile.get("type") not in ("RuntimeDefault", "Localhost"):
            found.append("seccompProfile")
        if own.get("privileged"):
            found.append("privileged")
    allowed = (
        "name configMap csi downwardAPI emptyDir ephemeral persistentVolumeClaim projected secret"
    )
    for volume in pod.get("volumes", []):
        found += [f"volume type {key}" for key in volume if key not in allowed.split()]
    found += [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    return found
