"""The pod of a step: where it runs, with what, and with how few rights.

Passes Pod Security "restricted"; the step's root file system is read-only, what it
writes goes to the volume, to /tmp and to /dev/shm.
"""

import dataclasses
import json
from typing import Any

from infra.backend import Resources, StepSpec
from trainer.contract.cluster_settings import ClusterSettings

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
MAINTENANCE_LABEL = "qos.coreweave.com/graceful-interruptible"
# What NCCL needs on CoreWeave's InfiniBand nodes, where several nodes train together.
# Source: https://docs.coreweave.com/products/networking/hpc-interconnect/use-gpudirect-rdma
INFINIBAND_RESOURCE = "rdma/ib"
INFINIBAND = {
    "NCCL_SOCKET_IFNAME": "eth0",
    "NCCL_IB_HCA": "ibp",
    "UCX_TLS": "tcp",
    "UCX_NET_DEVICES": "eth0",
}
# Source: https://docs.coreweave.com/security/tutorials/cks-object-storage-authentication/manual
IDENTITY_FOLDER = "/var/run/secrets/finetune-identity"
IDENTITY_SECONDS = 3600  # the kubelet renews it before that
CONTAINER_URI = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
RANK_FIELD = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def config_text(spec: StepSpec) -> str:
    """The step's config as its pod reads it."""
    return json.dumps({**spec.config, "volume": f"/{spec.volume}"}, indent=1)


def pod_spec(spec: StepSpec, settings: ClusterSettings, name: str) -> Object:
    """The pod's spec; `name` is the Job's."""
    spec = dataclasses.replace(spec, resources=resources_of(spec, settings))
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


def resources_of(spec: StepSpec, settings: ClusterSettings) -> Resources:
    """What the step asks of its node: a light step as the cluster's settings say."""
    if not spec.resources.light:
        return spec.resources
    return dataclasses.replace(
        spec.resources, cores=settings.light_cores, memory_gib=settings.light_memory_gib
    )


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
            *identity_mounts(settings),
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
        **_infiniband(spec, settings),
        **identity_variables(settings),
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


def _infiniband(spec: StepSpec, settings: ClusterSettings) -> dict[str, str]:
    several = spec.resources.nodes > 1 and _wants_gpu(spec.resources)
    return INFINIBAND if several and INFINIBAND_RESOURCE in settings.device_resources else {}


def identity_variables(settings: ClusterSettings) -> dict[str, str]:
    """Where the AWS clients find the token of workload identity."""
    if not settings.identity_audience:
        return {}
    token = f"{IDENTITY_FOLDER}/token"
    if CONTAINER_URI in settings.environment:
        return {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": token}
    return {"AWS_WEB_IDENTITY_TOKEN_FILE": token}


def identity_volumes(settings: ClusterSettings) -> list[Object]:
    """The projected token, in a pod that gets no token for Kubernetes itself."""
    if not settings.identity_audience:
        return []
    token = {
        "path": "token",
        "audience": settings.identity_audience,
        "expirationSeconds": IDENTITY_SECONDS,
    }
    return [{"name": "identity", "projected": {"sources": [{"serviceAccountToken": token}]}}]


def identity_mounts(settings: ClusterSettings) -> list[Object]:
    if not settings.identity_audience:
        return []
    return [{"name": "identity", "mountPath": IDENTITY_FOLDER, "readOnly": True}]


def maintenance_labels(settings: ClusterSettings) -> dict[str, str]:
    """Of pods that CoreWeave's node maintenance may evict, after their grace period.

    Source: https://docs.coreweave.com/products/cks/clusters/scheduling/workload-scheduling
    """
    return {MAINTENANCE_LABEL: "true"} if settings.evicted_for_maintenance else {}


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
        *identity_volumes(settings),
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
