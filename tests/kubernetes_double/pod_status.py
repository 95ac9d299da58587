"""A Pod's status at each station of its life, field by field as the recordings have it."""

from typing import Any

from tests.kubernetes_double.store import Object, now

NODE, NODE_IP, POD_IP = "node-1", "10.88.0.1", "10.88.0.9"


def condition(kind: str, status: bool, reason: str = "", message: str = "") -> Object:
    made: Object = {"lastProbeTime": None, "lastTransitionTime": now()}
    made |= {"status": str(status), "type": kind}
    return made | ({"reason": reason} if reason else {}) | ({"message": message} if message else {})


def unschedulable(message: str) -> Object:
    return {
        "conditions": [condition("PodScheduled", False, "Unschedulable", message)],
        "phase": "Pending",
        "qosClass": "BestEffort",
    }


def scheduled() -> Object:
    return {
        "conditions": [condition("PodScheduled", True)],
        "phase": "Pending",
        "qosClass": "BestEffort",
    }


def waiting(pod: Object, reason: str, message: str = "", *, network: bool = True) -> Object:
    """On its node, its container not started yet."""
    state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}
    return _on_node(pod, "Pending", state, "ContainersNotReady", network=network)


def running(pod: Object, container_id: str) -> Object:
    state = {"running": {"startedAt": now()}}
    return _on_node(pod, "Running", state, "", container_id=container_id)


def terminated(
    pod: Object, phase: str, exit_code: int, reason: str, message: str, *, network: bool
) -> Object:
    """Its container has ended; the phase follows a moment later, without the network."""
    container = pod["status"]["containerStatuses"][0]
    began = container["state"].get("running", container["state"].get("terminated", {}))
    ended: Object = {
        "containerID": container.get("containerID", ""),
        "exitCode": exit_code,
        "finishedAt": now(),
        "reason": reason,
        "startedAt": began.get("startedAt", now()),
    }
    if message:
        ended["message"] = message
    unready = "PodCompleted" if exit_code == 0 else "PodFailed"
    return _on_node(
        pod,
        phase,
        {"terminated": ended},
        unready,
        container_id=container.get("containerID", ""),
        network=network,
    )


def _on_node(
    pod: Object,
    phase: str,
    state: Object,
    unready: str,
    *,
    container_id: str = "",
    network: bool = True,
) -> Object:
    container = pod["spec"]["containers"][0]
    ready = "running" in state
    words = f"containers with unready status: [{container['name']}]"
    words = words if unready == "ContainersNotReady" else ""
    completed = unready if unready == "PodCompleted" else ""
    kept = [c for c in pod["status"].get("conditions", []) if c["type"] == "DisruptionTarget"]
    status: dict[str, Any] = {
        "conditions": [
            *kept,
            condition("PodReadyToStartContainers", network),
            condition("Initialized", True, completed),
            condition("Ready", ready, unready, words),
            condition("ContainersReady", ready, unready, words),
            condition("PodScheduled", True),
        ],
        "containerStatuses": [
            {
                "image": container["image"],
                "imageID": "sha256:92416038" if container_id else "",
                "lastState": {},
                "name": container["name"],
                "ready": ready,
                "restartCount": 0,
                "started": ready,
                "state": state,
            }
            | ({"containerID": container_id} if container_id else {})
        ],
        "hostIP": NODE_IP,
        "hostIPs": [{"ip": NODE_IP}],
        "phase": phase,
        "qosClass": "BestEffort",
        "startTime": pod["status"].get("startTime") or now(),
    }
    if container_id:
        status |= {"podIP": POD_IP, "podIPs": [{"ip": POD_IP}]}
    return status
