"""The embedded Prefect server, and flow runs on it that nobody runs: places for messages."""

import time
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Running

from flows.engine import patient
from flows.mailbox import Mailbox
from protocols.keys import Consortium, Identity
from protocols.messages import COORDINATOR

SITES = ("ann", "bob", "cat")
COORDINATOR_KEY = Identity.generate(COORDINATOR)
KEYS = {site: Identity.generate(site) for site in SITES}
CONSORTIUM = Consortium(COORDINATOR_KEY.public, {site: key.public for site, key in KEYS.items()})


@flow(name="place")
def place() -> None:
    """Never run."""


@pytest.fixture(scope="module")
def client() -> Iterator[SyncPrefectClient]:
    """A client of the embedded server."""
    with patient(get_client(sync_client=True)) as client:
        yield client


@pytest.fixture
def box(client: SyncPrefectClient) -> Mailbox:
    """The mailbox of a new flow run."""
    return Mailbox(client, new_run(client))


def new_run(client: SyncPrefectClient) -> UUID:
    """A flow run that seems to run."""
    return client.create_flow_run(place, state=Running()).id


def graph_nodes(client: SyncPrefectClient, run: UUID) -> dict[str, dict[str, Any]]:
    """The nodes of a flow run's graph, once no more come: the server writes task runs once a second."""
    before, nodes = None, None
    while nodes is None or nodes != before:
        before = nodes
        time.sleep(1.5)
        nodes = dict(client._client.get(f"/flow_runs/{run}/graph-v2").json()["nodes"])
    return nodes


def keys_of(box: Mailbox) -> list[str]:
    """Every key in a mailbox."""
    asked = {"prefix": "", "limit": 200, "exclude_keys": []}
    found = box.client._client.post(f"/flow_runs/{box.run}/input/filter", json=asked).json()
    return sorted(one["key"] for one in found)


def post(box: Mailbox, key: str, value: str, sender: str | None = None) -> None:
    """Put anything, as whoever can write to the Prefect API may."""
    asked = {"key": key, "value": value, "sender": sender}
    box.client._client.post(f"/flow_runs/{box.run}/input", json=asked).raise_for_status()
