"""A busy server is asked again at once; a sub-flow stands where Prefect's own would."""

import asyncio

import httpx
import pytest
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client

from flows import engine
from flows.engine import SOON_S, PatientAsyncTransport, PatientTransport, patient, patient_engine, run_inside
from tests.flows.server import client, graph_nodes

__all__ = ["client"]


class Busy(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A server that is busy for the first requests."""

    def __init__(self, times: int, status: int = 503) -> None:
        self.times, self.status = times, status
        self.bodies: list[bytes] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(request.read())
        return self.answer()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(await request.aread())
        return self.answer()

    def answer(self) -> httpx.Response:
        return httpx.Response(self.status if len(self.bodies) <= self.times else 201)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SOON_S", (0.0,) * len(SOON_S))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("times", [0, 1, len(SOON_S)])
def test_a_busy_server_is_asked_the_same_again_until_it_answers(times: int, status: int) -> None:
    busy = Busy(times, status)
    with httpx.Client(transport=PatientTransport(busy)) as http:
        assert http.post("http://server/", content=b"the same").status_code == 201
    assert busy.bodies == [b"the same"] * (times + 1)


@pytest.mark.parametrize(("times", "status"), [(0, 201), (2, 201), (len(SOON_S), 201), (1000, 503)])
def test_an_asynchronous_client_asks_a_busy_server_again_likewise(times: int, status: int) -> None:
    busy = Busy(times)

    async def ask() -> int:
        async with httpx.AsyncClient(transport=PatientAsyncTransport(busy)) as http:
            return (await http.post("http://server/", content=b"the same")).status_code

    assert asyncio.run(ask()) == status
    assert busy.bodies == [b"the same"] * (min(times, len(SOON_S)) + 1)


def test_a_server_that_says_when_to_come_again_is_left_to_whoever_asked() -> None:
    answers = httpx.MockTransport(lambda request: httpx.Response(503, headers={"Retry-After": "60"}))
    with httpx.Client(transport=PatientTransport(answers)) as http:
        assert http.get("http://server/").headers["Retry-After"] == "60"


def test_a_server_that_stays_busy_is_left_to_whoever_asked() -> None:
    busy = Busy(1000)
    with httpx.Client(transport=PatientTransport(busy)) as http:
        assert http.get("http://server/").status_code == 503
    assert len(busy.bodies) == len(SOON_S) + 1


def test_a_client_of_the_server_sends_through_it_by_proxies_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    with patient(get_client(sync_client=True)) as one:
        for url in (one.api_url, "https://elsewhere/"):
            assert isinstance(one._client._transport_for_url(httpx.URL(url)), PatientTransport)


@flow(persist_result=False, flow_run_name="inner {number}")
def inner(number: int) -> int:
    """Fail if the number is odd."""
    if number % 2:
        raise LookupError("odd")
    return number // 2


@task(task_run_name="around", persist_result=False, cache_policy=NO_CACHE)
def around(number: int) -> int:
    """Run the sub-flow in a task."""
    return run_inside(inner, {"number": number})


@flow(persist_result=False)
def outer() -> tuple[int, str]:
    """Run the sub-flow twice, in a task and alone."""
    half = around(8)
    with pytest.raises(LookupError):
        run_inside(inner, {"number": 3})
    return half, "raised"


def test_a_sub_flow_gives_and_raises_and_is_shown_in_the_run_around_it(client: SyncPrefectClient) -> None:
    with patient_engine():
        state = outer(return_state=True)
    assert state.result() == (4, "raised")
    nodes = graph_nodes(client, state.state_details.flow_run_id)
    labels = {one: node["label"] for one, node in nodes.items()}
    inside = {labels[one]: [labels[out["id"]] for out in node["encapsulating"]] for one, node in nodes.items()}
    assert inside == {"around": [], "inner / inner 8": ["around"], "inner / inner 3": []}
    assert {(node["kind"], node["label"], node["state_type"]) for node in nodes.values()} == {
        ("task-run", "around", "COMPLETED"),
        ("flow-run", "inner / inner 8", "COMPLETED"),
        ("flow-run", "inner / inner 3", "FAILED"),
    }


def test_a_sub_flow_needs_a_flow_around_it() -> None:
    with pytest.raises(RuntimeError, match="no flow run around"):
        run_inside(inner, {"number": 2})
