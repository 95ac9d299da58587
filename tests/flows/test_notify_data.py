"""`finetune notify-data`: refused where nothing on the server would start."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from prefect.automations import AutomationCore
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import EventTrigger, Posture, ResourceSpecification, RunDeployment
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli.automations.notify_data import EVENT, RESOURCE, notify_data
from flows.retrain import retrain
from trainer.contract.errors import RequestError

PVC = "finetune-data"


@pytest.fixture
def client(api_url: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as made:
        yield made
        for automation in made.read_automations():
            if automation.name == "watching":
                made.delete_automation(automation.id)


def deployment(client: SyncPrefectClient, **parameters: Any) -> UUID:
    flow_id = client.create_flow(retrain)
    return client.create_deployment(flow_id, name="watching", parameters=parameters)


def watching(client: SyncPrefectClient, started: UUID, match: str, enabled: bool = True) -> None:
    """What `prefect deploy` makes of a trigger in prefect.yaml."""
    trigger = EventTrigger(
        expect={EVENT},
        match=ResourceSpecification({"prefect.resource.id": match}),
        posture=Posture.Reactive,
        threshold=1,
    )
    action = RunDeployment(deployment_id=started)
    client.create_automation(
        AutomationCore(name="watching", trigger=trigger, actions=[action], enabled=enabled)
    )


def test_a_dataset_that_nothing_watches_is_refused_by_name(client: SyncPrefectClient) -> None:
    with pytest.raises(RequestError, match="No deployment starts when a dataset changes"):
        notify_data("west", PVC)
    west = deployment(client, dataset="west")
    watching(client, west, f"{RESOURCE}*", enabled=False)
    with pytest.raises(RequestError, match=r"watched by nothing on this server \(got 'west'"):
        notify_data("west", PVC)
    watching(client, west, f"{RESOURCE}other")
    with pytest.raises(RequestError, match="watched by nothing"):
        notify_data("west", PVC)
    watching(client, west, f"{RESOURCE}*")
    for dataset, pvc in (("east", PVC), ("west", "elsewhere")):
        with pytest.raises(RequestError, match="Watched are: west on finetune-data") as refused:
            notify_data(dataset, pvc)
    assert refused.value.exit_code == 78
    assert notify_data("west", PVC)


def test_a_deployment_that_names_no_dataset_watches_the_default_one(
    client: SyncPrefectClient,
) -> None:
    watching(client, deployment(client), f"{RESOURCE}*")
    assert notify_data("dataset", PVC)
    with pytest.raises(RequestError, match="Watched are: dataset on finetune-data"):
        notify_data("west", PVC)
