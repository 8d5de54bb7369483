"""``fedseal submit``: start a training at a coordinator's Prefect server, and follow it to its end (SPEC 6.8)."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from deploy.server_check import trouble_of
from deploy.site import fail, one_line, one_printed_line
from flows.pauses import pauses
from flows.settings import CUSTOM, TRAINING, CoordinatorFolder, PrefectServer, marked

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

LOOK_S, LONGEST_LOOK_S = 1.0, 5.0
"""Seconds between two looks at a training that is followed, at first and at last."""
MOST_LINES = 200


def submit(folder: Path | None, parameters: Mapping[str, Any], follow: bool, name: str = CUSTOM) -> None:
    """Start a training, print the id of its flow run, and wait for its end where that is wished.

    Args:
        folder: the coordinator's, which names server and credentials; without one the environment does.
        parameters: of the run, as the deployment's form has them.
        follow: whether to print its rounds and to wait for its end.
        name: of the deployment, without the consortium's mark.

    Raises:
        typer.Exit: it cannot be started, with one line; or it was followed and has not ended well (1).
    """
    server, deployment = place(folder, name)
    from prefect.client.orchestration import get_client

    from flows.engine import patient

    with patient(get_client(sync_client=True)) as client, said(server, folder is None):
        run = start(client, deployment, parameters, server)
        print(run, flush=True)
        if follow and not followed(client, run):
            raise fail(f"the training has not ended well: {server.url} has its run {run}", 1)


def place(folder: Path | None, name: str) -> tuple[PrefectServer, str]:
    """The Prefect server, and the name of the deployment there, whose beginning alone is known without a folder.

    Raises:
        typer.Exit: neither folder nor environment names a server.
    """
    if folder is not None:
        with one_line():
            coordinator = CoordinatorFolder.read(folder)
            key = coordinator.consortium.coordinator
        os.environ.update(coordinator.prefect.environment)
        return coordinator.prefect, marked(name, key)
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

    if not (url := PREFECT_API_URL.value()):
        raise fail("no Prefect server is configured: give --folder, the coordinator's, or set PREFECT_API_URL")
    auth = PREFECT_API_AUTH_STRING.value()
    return PrefectServer(url=url, auth_string=None if auth is None else auth.get_secret_value()), marked(name, "")


def start(client: "SyncPrefectClient", deployment: str, parameters: Mapping[str, Any], server: PrefectServer) -> UUID:
    """Start a run of a deployment.

    Raises:
        typer.Exit: there is none of this name, more than one coordinator has one, or the parameters are refused.
    """
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowFilter, FlowFilterName
    from prefect.exceptions import PrefectHTTPStatusError

    found = client.read_deployments(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[TRAINING])),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(like_=deployment)),
    )
    whole = not deployment.endswith("@")
    found = [one for one in found if one.name == deployment or (not whole and one.name.startswith(deployment))]
    if not found:
        raise fail(f"the server at {server.url} knows no such coordinator: start fedseal coordinator serve", 1)
    if len(found) > 1:
        raise fail(f"{len(found)} coordinators use the server at {server.url}: name yours with --folder")
    try:
        return client.create_flow_run_from_deployment(found[0].id, parameters=dict(parameters)).id
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        raise fail(f"the server at {server.url} does not take the plan (HTTP {status})", 1) from None


@contextmanager
def said(server: PrefectServer, by_environment: bool) -> Iterator[None]:
    """Say in one line what is wrong with a server, and what mends it.

    Args:
        server: which one.
        by_environment: whether the environment names it, and no folder.

    Raises:
        typer.Exit: with exit code 1.
    """
    import httpx

    try:
        yield
    except (httpx.HTTPError, ValueError) as error:
        where = "; without --folder that is PREFECT_API_URL and PREFECT_API_AUTH_STRING" if by_environment else ""
        raise fail(f"the Prefect server at {server.url} {trouble_of(server, error).reason}{where}", 1) from None


def followed(client: "SyncPrefectClient", run: UUID) -> bool:
    """Print what a training says of its rounds and states until it ends; gives whether it has ended well.

    A server that is away is waited for. What it shows is printed as text, whoever has written it.
    """
    import httpx

    from flows.mailbox import is_away

    told, lines = "", 0
    for pause_s in pauses(LOOK_S, LONGEST_LOOK_S):
        try:
            now = client.read_flow_run(run)
            lines += tell_log(client, run, lines)
        except httpx.HTTPError as error:
            if not is_away(error):
                raise
            now = None
        if now is not None and now.state is not None:
            if (state := state_line(now)) != told:
                print(state, file=sys.stderr, flush=True)
                told = state
            if now.state.is_final():
                tell_log(client, run, lines)
                return now.state.is_completed()
        time.sleep(pause_s)
    return False


def state_line(run: "FlowRun") -> str:
    """A run's name and state, with its reason."""
    state = run.state
    message = f": {state.message}" if state is not None and state.message else ""
    return one_printed_line(f"{run.name}: {'unknown' if state is None else state.name}{message}")


def tell_log(client: "SyncPrefectClient", run: UUID, known: int) -> int:
    """Print the lines of a run's log that are new, from the ``known``-th on; gives how many there were."""
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterLevel
    from prefect.client.schemas.sorting import LogSort

    found = client.read_logs(
        log_filter=LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]), level=LogFilterLevel(ge_=20)),
        limit=MOST_LINES,
        offset=known,
        sort=LogSort.TIMESTAMP_ASC,
    )
    for line in found:
        print(one_printed_line(line.message), file=sys.stderr, flush=True)
    return len(found)
