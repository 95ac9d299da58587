"""Make a step's Job with what it needs beside it: all of it, or nothing."""

import asyncio
import time

from infra.backend import PlaceError, StepSpec
from infra.kubernetes_backend import followers, removal
from infra.kubernetes_backend import manifests_job as manifests
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.contact import Object
from infra.kubernetes_backend.refusals import RefusedError
from trainer.contract.cluster_settings import ClusterSettings

# A Service of a Job that is gone is collected within seconds; a person's own stays.
LEFTOVER_SECONDS = 300.0
POLL_SECONDS = 0.5


async def create(
    connection: Connection, spec: StepSpec, settings: ClusterSettings, follower: str
) -> Object | None:
    """The new Job, or None where one of that name has appeared meanwhile."""
    job, *services = manifests.objects(spec, settings)
    job["metadata"]["annotations"] |= followers.heartbeat(follower)
    try:
        created = await connection.create_job(job)
    except RefusedError as error:
        if error.reason == "AlreadyExists":
            return None
        raise
    except PlaceError:
        # Admission comes before the name is looked at: where an answer was lost, the Job that
        # we made has filled the quota that now refuses it.
        if await connection.read_job(job["metadata"]["name"]) is not None:
            return None
        raise
    try:
        await create_services(connection, created, services)
    except PlaceError:
        # Without its Service the pods would wait for each other, a GPU each.
        await removal.delete(connection, created["metadata"]["name"])
        raise
    return created


async def create_services(connection: Connection, job: Object, services: list[Object]) -> None:
    """What the Job needs beside it, made or found; it is deleted with the Job."""
    metadata = job["metadata"]
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": metadata["name"],
        "uid": metadata["uid"],
    }
    for service in services:
        service["metadata"]["ownerReferences"] = [owner]
        began = time.monotonic()
        while not await connection.create_service(service):
            found = await connection.read_service(service["metadata"]["name"])
            if found is not None and not await _goes_away(connection, job, found):
                break
            if found is not None and time.monotonic() - began > LEFTOVER_SECONDS:
                raise PlaceError(_in_the_way(found))
            await asyncio.sleep(POLL_SECONDS)


async def _goes_away(connection: Connection, job: Object, service: Object) -> bool:
    """Whether the Service belongs to a Job of that name that is gone, so that it goes, too."""
    metadata = job["metadata"]
    owners = [owner["uid"] for owner in service["metadata"].get("ownerReferences", [])]
    if not owners or metadata["uid"] in owners:  # one without an owner: kubectl applied it
        return False
    current = await connection.read_job(metadata["name"])
    # Else it is our own Job that is gone, and the Service another one's.
    return current is not None and current["metadata"]["uid"] == metadata["uid"]


def _in_the_way(service: Object) -> str:
    name, (owner, *_) = service["metadata"]["name"], service["metadata"]["ownerReferences"]
    return (
        f"Service {name} exists and belongs to something else (got "
        f"{owner['kind']} {owner['name']}). The pods of several nodes find each other by it. "
        f"Delete it, or take another run_name: kubectl delete service {name}"
    )
