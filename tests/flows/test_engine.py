"""A busy server is asked again at once; a sub-flow stands where Prefect's own would."""

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client

from flows import engine
from flows.engine import SOON_S, PatientTransport, patient, patient_engine, run_inside
from tests.flows.server import client

__all__ = ["client"]


class Busy(httpx.BaseTransport):
    """A server that is busy for the first requests."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.bodies: list[bytes] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(request.read())
        return httpx.Response(503 if len(self.bodies) <= self.times else 201)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SOON_S", (0.0,) * len(SOON_S))


@pytest.mark.parametrize("times", [0, 1, len(SOON_S)])
def test_a_busy_server_is_asked_the_same_again_until_it_answers(times: int) -> None:
    busy = Busy(times)
    with httpx.Client(transport=PatientTransport(busy)) as http:
        assert http.post("http://server/", content=b"the same").status_code == 201
    assert busy.bodies == [b"the same"] * (times + 1)


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


@flow(persist_result=False)
def outer() -> tuple[int, str]:
    """Run the sub-flow twice."""
    half = run_inside(inner, {"number": 8})
    with pytest.raises(LookupError):
        run_inside(inner, {"number": 3})
    return half, "raised"


def test_a_sub_flow_gives_and_raises_and_is_shown_in_the_run_around_it(client: SyncPrefectClient) -> None:
    with patient_engine():
        state = outer(return_state=True)
    assert state.result() == (4, "raised")
    nodes = dict(client._client.get(f"/flow_runs/{state.state_details.flow_run_id}/graph-v2").json()["nodes"])
    assert {(node["kind"], node["label"], node["state_type"]) for node in nodes.values()} == {
        ("flow-run", "inner / inner 8", "COMPLETED"),
        ("flow-run", "inner / inner 3", "FAILED"),
    }


def test_a_sub_flow_needs_a_flow_around_it() -> None:
    with pytest.raises(RuntimeError, match="no flow run around"):
        run_inside(inner, {"number": 2})
