"""Kubernetes objects of a service: plain data in, plain data out, no client.

    inference_service(spec, settings)   KServe's kind, with canary traffic
    deployment(spec, settings)          the same server without KServe, one for each revision
    service(spec, settings, revision)   the address that points at one revision

What decides about a revision is constant while it is tried and after: KServe hands the
annotations on to Knative, which makes a new revision of whatever changes.
Source: https://kserve.github.io/website/docs/reference/crd-api; the reference's workflow
for GPU class, region, scaling and resources.
"""

from typing import Any

from infra.kubernetes_backend.manifests_pod import (
    GPU_CLASS_LABEL,
    GPU_RESOURCE,
    PREFIX,
    REGION_LABEL,
    maintenance_labels,
)
from infra.serving_place import (
    API_KEY_VARIABLE,
    MODEL_FOLDER,
    PORT,
    ServingSpec,
    server_config,
)
from trainer.contract.cluster_settings import ClusterSettings

Object = dict[str, Any]
FIELD_MANAGER = PREFIX
SERVING_ANNOTATION = f"{PREFIX}/serving"  # the ServingSpec it was made from
KSERVE_CONTAINER = "kserve-container"  # KServe knows the model's container by this name
REQUEST_SECONDS = 600  # the longest answer, and the longest that Knative allows
STOP_SECONDS = REQUEST_SECONDS + 30  # what is running is finished
LEAVING_SECONDS = 10  # until no node sends clients to a pod that is to go
REVISION_LABEL = f"{PREFIX}/revision"


def labels_of(spec: ServingSpec) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "finetune",
        "app.kubernetes.io/component": "serve",
        "app.kubernetes.io/part-of": PREFIX,
        "app.kubernetes.io/managed-by": PREFIX,
        "app.kubernetes.io/instance": spec.run_name,
    }


def inference_service(
    spec: ServingSpec, settings: ClusterSettings, *, trial: bool = False
) -> Object:
    """The InferenceService whose newest revision is `spec`; in a trial it gets no traffic."""
    annotations = {
        # Traffic for one revision and no servers when nobody asks: both need Knative.
        "serving.kserve.io/deploymentMode": "Serverless",
        "serving.kserve.io/enable-tag-routing": "true",
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period": f"{spec.retention_minutes}m",
        "serving.knative.dev/progress-deadline": f"{int(spec.ready_seconds)}s",
        SERVING_ANNOTATION: spec.to_json(),
    }
    predictor: Object = {
        "timeout": REQUEST_SECONDS,
        "minReplicas": spec.min_replicas,
        "maxReplicas": spec.max_replicas,
        "containers": [kserve_container(spec, settings)],
        "volumes": [scratch(settings)],
        **_labels(maintenance_labels(settings)),
        **placement(spec, settings),
    }
    if trial:
        predictor["canaryTrafficPercent"] = 0
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": spec.name,
            **namespace_of(settings),
            "labels": labels_of(spec),
            "annotations": annotations,
        },
        "spec": {"predictor": predictor},
    }


def deployment(spec: ServingSpec, settings: ClusterSettings) -> Object:
    """The Deployment of one revision, for clusters without KServe."""
    labels = {**labels_of(spec), REVISION_LABEL: str(spec.revision)}
    container = _container(spec, settings)
    container["env"].append({"name": "PORT", "value": str(PORT)})
    # A pod is asked to stop while it is still being taken from its Service; Knative sees to it.
    container["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", f"{LEAVING_SECONDS}"]}}}
    container["volumeMounts"].append(
        {"name": "model", "mountPath": MODEL_FOLDER, "subPath": spec.model, "readOnly": True}
    )
    claim = {"claimName": spec.volume, "readOnly": True}
    pod: Object = {
        "securityContext": {"fsGroup": settings.user, "fsGroupChangePolicy": "OnRootMismatch"},
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "containers": [container],
        "volumes": [scratch(settings), {"name": "model", "persistentVolumeClaim": claim}],
        **placement(spec, settings),
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": revision_name(spec),
            **namespace_of(settings),
            "labels": labels,
            "annotations": {SERVING_ANNOTATION: spec.to_json()},
        },
        "spec": {
            # There is no scaling to zero here: a service that is wanted has a server.
            "replicas": max(1, spec.min_replicas),
            "progressDeadlineSeconds": int(spec.ready_seconds),
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": {**labels, **maintenance_labels(settings)}},
                "spec": pod,
            },
        },
    }


def service(spec: ServingSpec, settings: ClusterSettings, name: str) -> Object:
    """The Service of that name, which sends clients to the revision `spec`."""
    labels = labels_of(spec)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            **namespace_of(settings),
            "labels": labels,
            "annotations": {SERVING_ANNOTATION: spec.to_json()},
        },
        "spec": {
            "selector": {**labels, REVISION_LABEL: str(spec.revision)},
            "ports": [{"name": "http", "port": 80, "targetPort": PORT}],
        },
    }


def _labels(labels: dict[str, str]) -> Object:
    return {"labels": labels} if labels else {}


def revision_name(spec: ServingSpec) -> str:
    """The name of what belongs to one revision alone."""
    return f"{spec.name}-{spec.revision}"


def placement(spec: ServingSpec, settings: ClusterSettings) -> Object:
    """What both kinds say about the pod besides its container and volumes."""
    made: Object = {"automountServiceAccountToken": False, "enableServiceLinks": False}
    wanted = {REGION_LABEL: spec.region, GPU_CLASS_LABEL: spec.gpu if spec.gpus else ""}
    expressions = [
        {"key": label, "operator": "In", "values": [value]}
        for label, value in wanted.items()
        if value
    ]
    if expressions:
        terms = [{"matchExpressions": expressions}]
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        made["affinity"] = {"nodeAffinity": required}
    optional: Object = {
        "serviceAccountName": settings.service_account,
        "imagePullSecrets": [{"name": secret} for secret in settings.image_pull_secrets],
        "nodeSelector": settings.node_selector,
        "tolerations": settings.tolerations,
    }
    return made | {key: value for key, value in optional.items() if value}


def kserve_container(spec: ServingSpec, settings: ClusterSettings) -> Object:
    container = _container(spec, settings)
    container["name"] = KSERVE_CONTAINER
    uri = f"pvc://{spec.volume}/{spec.model}"
    container["env"].append({"name": "STORAGE_URI", "value": uri})
    return container


def _container(spec: ServingSpec, settings: ClusterSettings) -> Object:
    variables = {"PYTHONUNBUFFERED": "1", "HOME": "/tmp", **settings.environment}
    return {
        "name": "server",
        "image": spec.image,
        # `$(NAME)` in a command is Kubernetes' own; a doubled dollar is a plain one.
        "command": ["python", "-m", "trainer", "serve", server_config(spec).replace("$", "$$")],
        "env": [
            *({"name": key, "value": value} for key, value in variables.items()),
            *_api_key(spec),
        ],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {
            "httpGet": {"path": "/v2/health/ready", "port": PORT},
            "periodSeconds": 10,
            "timeoutSeconds": 10,
        },
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": PORT},
            # Loading takes as long as it may; what hangs after that is started again.
            "initialDelaySeconds": int(spec.ready_seconds),
            "periodSeconds": 30,
            "timeoutSeconds": 10,
        },
        "resources": _resources(spec),
        # All of it here: Knative takes no security context of the pod by default.
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.user,
            "runAsGroup": settings.user,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _api_key(spec: ServingSpec) -> list[Object]:
    """The key that clients must send: of its Secret this one entry, and no more."""
    if not spec.api_key:
        return []
    source = {"secretKeyRef": {"name": spec.api_key, "key": API_KEY_VARIABLE}}
    return [{"name": API_KEY_VARIABLE, "valueFrom": source}]


def _resources(spec: ServingSpec) -> Object:
    gpus = {GPU_RESOURCE: str(spec.gpus)} if spec.gpus else {}
    return {
        "requests": {"cpu": str(spec.cores), "memory": f"{spec.memory_gib}Gi", **gpus},
        "limits": {"cpu": str(spec.max_cores), "memory": f"{spec.max_memory_gib}Gi", **gpus},
    }


def scratch(settings: ClusterSettings) -> Object:
    return {"name": "tmp", "emptyDir": {"sizeLimit": f"{settings.scratch_gib}Gi"}}


def namespace_of(settings: ClusterSettings) -> Object:
    return {"namespace": settings.namespace} if settings.namespace else {}
