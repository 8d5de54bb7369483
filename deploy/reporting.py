"""Where a training in local mode is reported: at the Prefect server that is named, or at one that ends with the run."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectHTTPStatusError
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from deploy import home, machine
from deploy.embedded import embedded_server
from deploy.entries import INTERRUPTED
from flows.checkpoint import Checkpoint

DRAINED_S = 5.0
"""Seconds that Prefect's client has to send the log lines that it holds."""
SETTLED_S, RECORDED_S = 30.0, 1.1
"""Seconds that a server has to write down the ends of a training's tasks, and within which it writes some if any."""


@contextmanager
def prefect_server() -> Iterator[Callable[[], None]]:
    """Reach the Prefect server that is named, or start one that ends with this run.

    Yields:
        What waits until it answers, and raises ``Unfit`` where it does not.

    Raises:
        Unfit: Prefect's settings, or the server that they name, cannot be used.
    """
    named = machine.named_server()
    if named is None:
        with embedded_server(home() / "server.log") as server, temporary_settings({PREFECT_API_URL: server.url}):
            try:
                yield server.wait
            finally:
                APILogWorker.drain_all(timeout=DRAINED_S)  # or it would miss its server, and say so
        return
    machine.check_server(named)
    if named.origin != machine.VARIABLE:
        print(f"This is reported to the Prefect server at {named.url} ({named.origin}).", file=sys.stderr)
    yield lambda: None


def settle(training: str) -> None:
    """Wait until the server has every end of a training's task runs: an embedded one forgets what it has yet to write.

    A server that does not get there in ``SETTLED_S`` keeps what it has.
    """
    EventsWorker.drain_all(timeout=SETTLED_S)
    ends, before = time.monotonic() + SETTLED_S, -1
    runs = {"tags": {"all_": [training]}}
    living = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}}
    with suppress(httpx.HTTPError, PrefectHTTPStatusError), get_client(sync_client=True) as client:
        while time.monotonic() < ends:
            left, known = (
                client._client.post("/task_runs/count", json={"task_runs": wanted}).json()
                for wanted in (runs | living, runs)
            )
            if left == 0 and known == before:
                return
            before = known
            time.sleep(RECORDED_S)


def tell_interrupted(training: str) -> None:
    """Tell the server that a training and its round were cut off: nobody else would."""
    living = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                tags=FlowRunFilterTags(all_=[training]), state=FlowRunFilterState(type=living)
            )
        )
        for run in found:
            client.set_flow_run_state(
                run.id, Crashed(name=INTERRUPTED, message="It was interrupted; it can be resumed."), force=True
            )


def way_out(checkpoint: Checkpoint, folder: Path) -> str:
    """How the model of a training that ends here can be taken out, to be put behind why it ends."""
    return f"; its model after {checkpoint.rounds} rounds: fedseal export {folder}" if checkpoint.rounds else ""
