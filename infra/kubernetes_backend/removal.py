"""Delete Jobs so that nobody else loses one, and none is left half-deleted."""

import asyncio
from collections.abc import Collection

from infra.kubernetes_backend import diagnosis, followers
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.contact import Object, Tell

POLL_SECONDS = 0.5


async def cancel(connection: Connection, name: str, ours: Collection[str], tell: Tell) -> bool:
    """Delete the Job unless somebody besides `ours` follows it, and return when it is gone.

    Returns:
        Whether it is gone.
    """
    job = await connection.annotate_job(name, followers.departure(ours))
    if job is not None and (others := followers.others(job, ours)):
        tell(f"Job {name} is left to who else follows it: {', '.join(others)}")
        return False
    while job is not None and not await connection.delete_job(job):
        job = await connection.read_job(name)
        if job is not None and followers.others(job, ours):
            return False  # adopted by another one between our two requests
    if job is not None:
        tell(f"Job {name} is being deleted: its step saves, then its pods end")
        await until_gone(connection, job)
    return True


async def delete(connection: Connection, name: str) -> None:
    """Begin the deletion of the Job, whatever follows it."""
    while (job := await connection.read_job(name)) is not None:
        if diagnosis.is_being_deleted(job) or await connection.delete_job(job):
            return


async def until_gone(connection: Connection, job: Object) -> None:
    """Return when neither the Job nor a pod of it is there."""
    metadata = job["metadata"]
    while True:
        found = await connection.read_job(metadata["name"])
        same = found is not None and found["metadata"]["uid"] == metadata["uid"]
        if not same and not await connection.list_pods(job):
            return
        await asyncio.sleep(POLL_SECONDS)
