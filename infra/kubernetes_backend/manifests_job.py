"""Kubernetes objects for a step: plain data in, plain data out, no client.

    objects(spec, settings)   the Job, and with several nodes its headless Service
    render(specs, settings)   the same as YAML for `kubectl apply -f -`

The step's config travels in an annotation of the pod, which the pod reads as a file
through the downward API: `kubectl describe` shows it, so it holds no secret.
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml

from infra.backend import StepSpec
from infra.kubernetes_backend.manifests_pod import (
    CONFIG_ANNOTATION,
    CONTAINER,
    PREFIX,
    config_text,
    maintenance_labels,
    pod_spec,
    service_name,
)
from trainer.contract.cluster_settings import ClusterSettings

Object = dict[str, Any]
KEY_ANNOTATION = f"{PREFIX}/key"
ATTEMPT_ANNOTATION = f"{PREFIX}/attempt"
SETTLED_ANNOTATION = f"{PREFIX}/settled"  # the run of the flow that the Job was for is over
RAN_ANNOTATION = f"{PREFIX}/ran"  # every pod that the Job wants has run at some time
SETTLED_DONE, SETTLED_FAILED = "done", "failed"
EXIT_REFUSED = 78  # of a step: the request is wrong, so another try ends the same way
EXIT_INCOMPLETE = 70  # of a step: its image lacks a package, at each try
EXIT_LOST_NODE = 75  # of a node that is well, but trains with another one that ended
NAME_LENGTH = 63  # of a label value, which the Job's name becomes
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
# A pod of an Indexed Job has the host name `{job}-{index}`, a DNS label too.
LONGEST_INDEX = len("-9999")
DIGITS_OF_KEY = 8


def job_name(step: str, run_name: str, key: str) -> str:
    """The one name that this piece of work has on the cluster, at most 63 characters.

    It is made of nothing but the work, so that a second request for the same work meets
    the same Job: creating it is the lock.
    """
    tail = f"-{step}-{key[:DIGITS_OF_KEY]}"
    room = NAME_LENGTH - LONGEST_INDEX - len(tail)
    head = re.sub(r"[^a-z0-9-]+", "-", run_name.lower())[:room].strip("-")
    return f"{head}{tail}" if head else tail.lstrip("-")


def name_of(spec: StepSpec) -> str:
    """The name of the step's Job."""
    return job_name(spec.step, spec.run_name, spec.key)


def labels_of(spec: StepSpec) -> dict[str, str]:
    """Labels of everything made for the step.

    Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/
    """
    labels = {
        "app.kubernetes.io/name": "finetune",
        "app.kubernetes.io/component": spec.step,
        "app.kubernetes.io/part-of": PREFIX,
        "app.kubernetes.io/managed-by": PREFIX,
    }
    if spec.run_name:
        labels["app.kubernetes.io/instance"] = spec.run_name
    tag = spec.image.rpartition(":")[2]
    if LABEL_VALUE.fullmatch(tag):
        labels["app.kubernetes.io/version"] = tag
    return labels


def run_selector(run_name: str) -> str:
    """Label selector of everything that belongs to a run."""
    return f"app.kubernetes.io/managed-by={PREFIX},app.kubernetes.io/instance={run_name}"


def objects(spec: StepSpec, settings: ClusterSettings) -> list[Object]:
    """What the step needs on the cluster, in the order in which it is to be made."""
    made = [job(spec, settings)]
    if spec.resources.nodes > 1:
        made.append(service(spec, settings))
    return made


def job(spec: StepSpec, settings: ClusterSettings) -> Object:
    """The Job that does the step."""
    name = name_of(spec)
    labels = labels_of(spec)
    queue = {"kueue.x-k8s.io/queue-name": settings.queue} if settings.queue else {}
    config = {CONFIG_ANNOTATION: config_text(spec)}
    limits: Object = {
        "backoffLimit": settings.backoff_limit,
        "ttlSecondsAfterFinished": settings.ttl_seconds,
    }
    if settings.deadline_seconds:
        limits["activeDeadlineSeconds"] = settings.deadline_seconds
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            **_namespace(settings),
            "labels": {**labels, **queue},
            "annotations": {KEY_ANNOTATION: spec.key, ATTEMPT_ANNOTATION: spec.attempt},
        },
        "spec": {
            **limits,
            # A second pod starts only when the first has ended for good: never two writers.
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules(spec)},
            **_group(spec),
            "template": {
                "metadata": {
                    "labels": {**labels, **maintenance_labels(settings)},
                    "annotations": config,
                },
                "spec": pod_spec(spec, settings, name),
            },
        },
    }


def _failure_rules(spec: StepSpec) -> list[Object]:
    """Evictions are not the step's fault; a wrong request or image stays wrong at each try."""
    rules: list[Object] = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": _exit_codes(EXIT_INCOMPLETE, EXIT_REFUSED)},
    ]
    if spec.resources.nodes > 1:
        # One node's end ends all: only its own counts as a failure.
        rules.append({"action": "Ignore", "onExitCodes": _exit_codes(EXIT_LOST_NODE)})
    return rules


def _exit_codes(*codes: int) -> Object:
    return {"containerName": CONTAINER, "operator": "In", "values": list(codes)}


def _group(spec: StepSpec) -> Object:
    """One pod, or one for each node with a rank of its own."""
    nodes = spec.resources.nodes
    if nodes == 1:
        return {"completions": 1, "parallelism": 1}
    return {"completions": nodes, "parallelism": nodes, "completionMode": "Indexed"}


def service(spec: StepSpec, settings: ClusterSettings) -> Object:
    """The headless Service by which the pods of several nodes find the first."""
    name = name_of(spec)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service_name(name), **_namespace(settings), "labels": labels_of(spec)},
        "spec": {
            "clusterIP": "None",
            # Ranks meet before any of them is ready.
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": name},
        },
    }


def _namespace(settings: ClusterSettings) -> Object:
    return {"namespace": settings.namespace} if settings.namespace else {}


def render(specs: Iterable[StepSpec], settings: ClusterSettings) -> str:
    """The objects of several steps as YAML documents."""
    return as_yaml([made for spec in specs for made in objects(spec, settings)])


def as_yaml(documents: Iterable[Object]) -> str:
    """Objects as YAML documents, for people and for `kubectl apply`."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Shows text of several lines as it is, and repeats what is used twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
