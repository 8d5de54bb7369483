"""fedseal's own workers: a run is a name and two parameters to them; a server that is away does not end them."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import anyio
import httpx
import pytest
from anyio.abc import TaskStatus
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.base import BaseWorker

from deploy.entries import Entry
from deploy.site import refusal_of, register
from deploy.warm import Programs
from deploy.worker import CoordinatorWorker, OwnProgram, SiteWorker, parameters_of
from flows.engine import PatientAsyncTransport
from protocols.decisions import Decision
from protocols.keys import Identity
from protocols.vault import Vault
from tests.flows.server import client
from tests.processes.harness import children

__all__ = ["client"]

NO_PROGRAMS = Programs(socket.socket())
GOOD = {"training": "t-1", "training_run": str(uuid4())}


def run(parameters: dict) -> SimpleNamespace:
    """A flow run as the server shows it."""
    return SimpleNamespace(parameters=parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"training": "t-1"},
        GOOD | {"more": 1},
        GOOD | {"training": "../../x"},
        GOOD | {"training": "T"},
        GOOD | {"training_run": "no id"},
        GOOD | {"training": None},
    ],
)
def test_a_run_with_other_parameters_is_refused(parameters: dict, tmp_path: Path) -> None:
    assert parameters_of(run(parameters)) is None
    state = refusal_of(Vault(tmp_path / "vault"))(run(parameters))
    assert state is not None and state.type == StateType.FAILED and "Refused" in str(state.message)


def test_a_training_that_the_site_has_withdrawn_from_is_refused_as_cancelled(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "vault")
    vault.keep_identity(Identity.generate("north"))
    refusal = refusal_of(vault)
    assert refusal(run(GOOD)) is None
    vault.decide(Decision("t-1", "", "", "revoked"))
    state = refusal(run(GOOD))
    assert state is not None and state.type == StateType.CANCELLED


def test_no_job_variable_of_the_server_is_read() -> None:
    pool = SimpleNamespace(base_job_template={"job_configuration": {"command": "touch /x"}, "variables": {}})
    resolved = asyncio.run(
        OwnProgram.resolve_for_flow_run(
            SimpleNamespace(job_variables={"command": "touch /x", "env": {"X": "1"}}),
            client=None,
            work_pool=pool,
            worker_name="north",
            deployment=SimpleNamespace(entrypoint="os:system", pull_steps=[{"run": "touch /x"}]),
        )
    )
    assert resolved == OwnProgram()


def test_a_server_that_is_away_does_not_end_a_worker_and_one_that_refuses_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = SiteWorker(NO_PROGRAMS, "site-north", "north", lambda run: None, limit=4)
    request = httpx.Request("GET", "http://x")
    found: list[list | Exception] = [
        httpx.ConnectError("no"),
        httpx.HTTPStatusError("no", request=request, response=httpx.Response(503, request=request)),
        [],
        httpx.ReadTimeout("no"),
        httpx.HTTPStatusError("no", request=request, response=httpx.Response(401, request=request)),
    ]

    async def look(self: BaseWorker) -> list:
        one = found.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    monkeypatch.setattr(BaseWorker, "get_and_submit_flow_runs", look)
    for _ in range(4):
        assert asyncio.run(worker.get_and_submit_flow_runs()) == []
    with pytest.raises(httpx.HTTPStatusError):
        asyncio.run(worker.get_and_submit_flow_runs())
    assert capsys.readouterr().err.count("the Prefect server is away") == 2, "once for each time that it was away"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "code", "line"),
    [("the worker", 0, ""), ("its warm parent", 1, "fedseal: the process that starts its programs was killed")],
)
def test_a_worker_that_ends_while_it_starts_says_so_in_one_line_if_it_was_not_asked_to(
    killed: str, code: int, line: str, tmp_path: Path
) -> None:
    """Its first words to the server are not answered: a server that accepts, and says nothing."""
    serve = "from deploy.warm import Programs; from deploy.worker import SiteWorker, serve; import pathlib, sys; "
    serve += "programs = Programs.load('deploy.coordinate', pathlib.Path(sys.argv[1])); "
    serve += "serve(SiteWorker(programs, 'site-north', 'north', lambda run: None, limit=1))"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_LOGGING_LEVEL": "ERROR"}
        words = [sys.executable, "-c", serve, str(tmp_path)]
        with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as worker:
            silent.settimeout(60)
            with silent.accept()[0]:
                time.sleep(0.5)
                if killed == "the worker":
                    worker.terminate()
                else:
                    os.kill(children(worker.pid)[0], signal.SIGKILL)
                _, said = worker.communicate(timeout=30)
    assert worker.returncode == code
    assert said.startswith(line) and said.count("\n") == (1 if line else 0)


def test_of_a_flood_of_runs_no_more_are_started_than_the_limit_says(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = list[UUID]()

    async def stay(
        self: CoordinatorWorker, flow_run: FlowRun, configuration: OwnProgram, task_status: TaskStatus[int]
    ) -> None:
        started.append(flow_run.id)
        task_status.started(1)
        await anyio.sleep_forever()

    monkeypatch.setattr(CoordinatorWorker, "run", stay)
    register(Entry(flow="training", name="flood", pool="flood", description="", schema={}), CoordinatorWorker.type)
    flood = client.read_deployment_by_name("training/flood").id
    runs = {client.create_flow_run_from_deployment(flood).id for _ in range(5)}

    async def serve() -> None:
        with anyio.fail_after(60):
            async with CoordinatorWorker(NO_PROGRAMS, "flood", "coordinator", lambda run: None, limit=2) as worker:
                assert isinstance(worker.client._client._transport, PatientAsyncTransport)
                for _ in range(3):
                    await worker.get_and_submit_flow_runs()
                    await anyio.sleep(1)
                worker._runs_task_group.cancel_scope.cancel()

    with temporary_settings({PREFECT_API_URL: str(client.api_url)}):
        asyncio.run(serve())
    assert len(started) == 2 and runs > set(started)
