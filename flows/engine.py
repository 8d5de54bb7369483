"""Prefect's engine where its server is busy or being restarted, and a training's sub-flows.

With SQLite the server turns away (503) whoever reads and then writes while another writes, and so (429) may a gateway
before it. Prefect's clients come again after two seconds, which was a third of a short round's wall time; these come
again at once.
"""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import anyio
import httpx
from prefect import Flow, Task
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
from prefect.client.schemas.objects import TaskRunResult
from prefect.context import FlowRunContext, SyncClientContext, TagsContext, TaskRunContext
from prefect.flow_engine import run_flow
from prefect.states import Pending

BUSY = frozenset({429, 503})
SOON_S = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Pauses before a busy server is asked again; then it is Prefect's turn."""
CONNECT_TRIES = 8
"""Tries to connect, with pauses of 0, 0.5, 1, 2 ... seconds between them."""

Client = TypeVar("Client", SyncPrefectClient, PrefectClient)
Result = TypeVar("Result")


class PatientTransport(httpx.BaseTransport):
    """Asks a busy server again, soon and a few times."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, again where the answer is of ``BUSY`` and does not say when to; gives the last answer."""
        for pause_s in SOON_S:
            response = self._transport.handle_request(request)
            if not _come_again(response):
                return response
            response.close()
            time.sleep(pause_s)
        return self._transport.handle_request(request)

    def close(self) -> None:
        """Close what it sends through."""
        self._transport.close()


class PatientAsyncTransport(httpx.AsyncBaseTransport):
    """``PatientTransport`` for an asynchronous client."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See ``PatientTransport.handle_request``."""
        for pause_s in SOON_S:
            response = await self._transport.handle_async_request(request)
            if not _come_again(response):
                return response
            await response.aclose()
            await anyio.sleep(pause_s)
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close what it sends through."""
        await self._transport.aclose()


def _come_again(response: httpx.Response) -> bool:
    return response.status_code in BUSY and "Retry-After" not in response.headers


def patient(client: Client) -> Client:
    """Have a client of the Prefect API send through a patient transport."""
    http: Any = client._client
    wrap = PatientTransport if isinstance(client, SyncPrefectClient) else PatientAsyncTransport
    http._transport = wrap(http._transport)
    http._mounts = {pattern: one and wrap(one) for pattern, one in http._mounts.items()}
    return client


@contextmanager
def patient_engine(connect_tries: int = CONNECT_TRIES) -> Iterator[None]:
    """Have Prefect's engine ask a busy server again soon, and wait about a minute for one that is being restarted.

    With 0 ``connect_tries`` it does not wait: an embedded server that has ended does not come back.
    """
    with SyncClientContext() as context:
        transport = context.client._client._transport_for_url(context.client.api_url)
        cast(httpx.HTTPTransport, transport)._pool._retries = connect_tries
        patient(context.client)
        yield


def run_inside(flow: Flow[..., Result], parameters: dict[str, Any]) -> Result:
    """Run a sub-flow of the flow that this runs in, under a run of its own; raises what it raises.

    As Prefect does when a flow is called, but for the client: Prefect's own is new each time, and impatient.
    """
    outer, around = FlowRunContext.get(), TaskRunContext.get()
    if outer is None or outer.flow_run is None:
        raise RuntimeError("there is no flow run around this sub-flow")
    with SyncClientContext.get_or_create() as context:
        place = context.client.create_task_run(
            Task(flow.fn, name=flow.name),
            outer.flow_run.id,
            str(uuid.uuid4()),
            name=flow.name,
            state=Pending(),
            task_inputs={"__parents__": [TaskRunResult(id=around.task_run.id)]} if around else None,
        )
        run = context.client.create_flow_run(
            flow,
            parameters=flow.serialize_parameters(parameters),
            state=Pending(),
            parent_task_run_id=place.id,
            tags=TagsContext.get().current_tags,
        )
        return cast(Callable[..., Result], run_flow)(flow, flow_run=run, parameters=parameters)
