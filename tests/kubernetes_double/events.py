"""Core Events, counted where the same thing happens again."""

from tests.kubernetes_double.store import Object, Store, now


class Events:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._number = 0x18EA53F6E7004C96

    def tell(self, about: Object, kind: str, reason: str, message: str, component: str) -> None:
        """Record that `reason` happened to the object `about`."""
        metadata = about["metadata"]
        for event in self._store.list("events", metadata["namespace"]):
            same = (event["involvedObject"]["uid"], event["reason"], event["message"])
            if same == (metadata["uid"], reason, message):
                event["count"] += 1
                event["lastTimestamp"] = now()
                self._store.update("events", event)
                return
        self._number += 1
        self._store.create(
            "events",
            metadata["namespace"],
            {
                "metadata": {"name": f"{metadata['name']}.{self._number:x}"},
                "count": 1,
                "eventTime": None,
                "firstTimestamp": now(),
                "lastTimestamp": now(),
                "involvedObject": {
                    "apiVersion": about["apiVersion"],
                    "kind": about["kind"],
                    "name": metadata["name"],
                    "namespace": metadata["namespace"],
                    "resourceVersion": metadata["resourceVersion"],
                    "uid": metadata["uid"],
                },
                "message": message,
                "reason": reason,
                "reportingComponent": component,
                "reportingInstance": "",
                "source": {"component": component},
                "type": kind,
            },
        )
