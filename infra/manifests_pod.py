"""The pod of a step: where it runs, with what, and with how few rights.

Passes Pod Security "restricted"; the step's root file system is read-only, what it
writes goes to the volume, to /tmp and to /dev/shm.
"""

import json
from typing import Any

from infra.backend import Resources, StepSpec
from infra.manifests_settings import ClusterSettings

Object = dict[str, Any]
PREFIX = "finetune-pipeline"
CONTAINER = "step"
CONFIG_ANNOTATION = f"{PREFIX}/config"
CONFIG_FOLDER = "/etc/finetune"
GPU_CLASS_LABEL = "gpu.nvidia.com/class"
REGION_LABEL = "topology.kubernetes.io/region"
GPU_RESOURCE = "nvidia.com/gpu"
# The trainer's default for saving at SIGTERM, and what its outcome takes after that.
SAVE_SECONDS, OUTCOME_SECONDS = 120.0, 10
RENDEZVOUS_PORT = 29500  # torchrun's default
RANK_FIELD = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def config_text(spec: StepSpec) -> str:
    """The step's config as its pod reads it."""
    return json.dumps({**spec.config, "volume": f"/{spec.volume}"}, indent=1)


def pod_spec(spec: StepSpec, settings: ClusterSettings, name: str) -> Object:
    """The pod's spec; `name` is the Job's."""
    made: Object = {
        "restartPolicy": "Never",  # a new pod may run on a better node; the Job counts them
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _grace_seconds(spec),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.user,
            "runAsGroup": settings.user,
            "fsGroup": settings.user,
            # A volume of terabytes is not walked through at each start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(spec, settings, name)],
        "volumes": _volumes(spec, settings),
    }
    if affinity := _affinity(spec):
        made["affinity"] = affinity
    if spec.resources.nodes > 1:
        made["subdomain"] = service_name(name)
    optional: Object = {
        "serviceAccountName": settings.service_account,
        "imagePullSecrets": [{"name": secret} for secret in settings.image_pull_secrets],
        "nodeSelector": settings.node_selector,
        "tolerations": settings.tolerations,
        "priorityClassName": settings.priority_class,
    }
    return made | {key: value for key, value in optional.items() if value}


def service_name(job_name: str) -> str:
    """Of the headless Service of a Job's pods: up to Kubernetes 1.35 it begins with a letter.

    A run_name, and so a Job's name, may begin with a digit. At most 63 characters, as the
    Job's own name leaves room for the index of a pod.
    """
    return f"node-{job_name}"


def _grace_seconds(spec: StepSpec) -> int:
    return int(spec.config.get("grace_seconds", SAVE_SECONDS)) + OUTCOME_SECONDS


def _container(spec: StepSpec, settings: ClusterSettings, name: str) -> Object:
    made: Object = {
        "name": CONTAINER,
        "image": spec.image,
        "command": ["python", "-m", "trainer", spec.step, f"{CONFIG_FOLDER}/config.json"],
        "env": _environment(spec, settings, name),
        "resources": _resources(spec.resources, settings),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "volume", "mountPath": f"/{spec.volume}"},
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    if secrets := [*settings.secrets, *spec.secrets]:
        made["envFrom"] = [{"secretRef": {"name": secret}} for secret in secrets]
    return made


def _environment(spec: StepSpec, settings: ClusterSettings, name: str) -> list[Object]:
    cache = f"/{spec.volume}/cache"
    variables = {
        "PYTHONUNBUFFERED": "1",
        "HOME": "/tmp",
        "HF_HOME": f"{cache}/huggingface",
        # Compiled once for all pods.
        "TORCH_EXTENSIONS_DIR": f"{cache}/torch_extensions",
        **settings.environment,
    }
    listed: list[Object] = [{"name": key, "value": value} for key, value in variables.items()]
    nodes = spec.resources.nodes
    if nodes > 1:
        listed += [
            {"name": "FINETUNE_NODES", "value": str(nodes)},
            {"name": "FINETUNE_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": RANK_FIELD}}},
            {"name": "MASTER_ADDR", "value": f"{name}-0.{service_name(name)}"},
            {"name": "MASTER_PORT", "value": str(RENDEZVOUS_PORT)},
        ]
    return listed


def _resources(resources: Resources, settings: ClusterSettings) -> Object:
    """Requests equal limits, so that the pod is among the last to be evicted."""
    amounts = {
        "cpu": str(resources.cores),
        "memory": f"{resources.memory_gib}Gi",
        "ephemeral-storage": f"{settings.scratch_gib}Gi",
    }
    if _wants_gpu(resources):
        amounts[GPU_RESOURCE] = str(resources.gpus)
        amounts |= {name: str(count) for name, count in settings.device_resources.items()}
    return {"requests": amounts, "limits": amounts}


def _volumes(spec: StepSpec, settings: ClusterSettings) -> list[Object]:
    config = {"path": "config.json", "fieldRef": {"fieldPath": _field(CONFIG_ANNOTATION)}}
    # Counts towards the pod's memory; the default of 64 MiB is too little for data loaders.
    shared_memory = f"{max(1, spec.resources.memory_gib // 4)}Gi"
    return [
        {"name": "volume", "persistentVolumeClaim": {"claimName": spec.volume}},
        {"name": "config", "downwardAPI": {"items": [config]}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}},
        {"name": "tmp", "emptyDir": {"sizeLimit": f"{settings.scratch_gib}Gi"}},
    ]


def _affinity(spec: StepSpec) -> Object:
    """Nodes of the region, and of the GPU class where the step uses a GPU."""
    wanted = {REGION_LABEL: spec.region}
    if _wants_gpu(spec.resources):
        wanted[GPU_CLASS_LABEL] = spec.resources.gpu
    expressions = [
        {"key": label, "operator": "In", "values": [value]}
        for label, value in wanted.items()
        if value
    ]
    if not expressions:
        return {}
    terms = [{"matchExpressions": expressions}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"nodeAffinity": required}


def _wants_gpu(resources: Resources) -> bool:
    return bool(resources.gpu) and resources.gpus > 0


def _field(annotation: str) -> str:
    return f"metadata.annotations['{annotation}']"
