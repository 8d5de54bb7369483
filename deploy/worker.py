"""fedseal's own Prefect workers: each runs its one program and nothing else, whatever the server says (SPEC 6.9).

Prefect's workers start what a deployment names: entry points, pull steps, job variables, all of which anyone with
write access to the server can change. These read none of it. A flow run is to them a name and two parameters, which
are checked; then the one program is started in a fresh process with the party's own folder.
"""

import fcntl
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient, SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkPool
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Cancelled, Crashed, Failed
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult
from pydantic import BaseModel, ConfigDict, ValidationError

from protocols.contexts import TrainingName

HEARTBEAT_S = 15
GRACE_S = 10.0
"""Seconds that a program has to end when its worker does."""

Refusal = Callable[[FlowRun], str | None]
"""Says why a flow run must not be started, or ``None``."""


class OwnProgram(BaseJobConfiguration):
    """A job that nothing on the server can configure."""

    @classmethod
    async def resolve_for_flow_run(
        cls,
        flow_run: FlowRun,
        *,
        client: PrefectClient,
        work_pool: WorkPool,
        worker_name: str,
        worker_id: UUID | None = None,
        deployment: Any = None,
    ) -> Self:
        """The same configuration for every run: job variables of pool, deployment and run are not read."""
        return cls()


class _OwnWorker(BaseWorker[OwnProgram, BaseVariables, BaseWorkerResult]):
    type = "fedseal"
    job_configuration = OwnProgram
    module: str

    def __init__(self, folder: Path, pool: str, name: str, refusal: Refusal, limit: int | None = None) -> None:
        super().__init__(pool, name=name, heartbeat_interval_seconds=HEARTBEAT_S, limit=limit)
        self._folder = folder
        self._refusal = refusal

    async def run(
        self,
        flow_run: FlowRun,
        configuration: OwnProgram,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> BaseWorkerResult:
        """Start this worker's program for a flow run, and wait for its end."""
        if (reason := self._refusal(flow_run)) is not None:
            self._logger.warning("refused flow run %s: %s", flow_run.id, reason)
            await self.client.set_flow_run_state(flow_run.id, Failed(message=f"Refused: {reason}"), force=True)
            if task_status is not None:
                task_status.started(0)
            return BaseWorkerResult(identifier="refused", status_code=0)
        words = [sys.executable, "-m", self.module, str(self._folder), str(flow_run.id)]
        with (self._folder / "processes.log").open("ab") as output:
            process = await anyio.open_process(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        if task_status is not None:
            task_status.started(process.pid)
        try:
            code = await process.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
        return BaseWorkerResult(identifier=str(process.pid), status_code=code)


class SiteWorker(_OwnWorker):
    """Runs participations of one site."""

    type = "fedseal-site"
    module = "deploy.participate"


class CoordinatorWorker(_OwnWorker):
    """Runs trainings."""

    type = "fedseal-coordinator"
    module = "deploy.coordinate"


class Parameters(BaseModel):
    """The parameters of a participation's flow run; everything else is refused."""

    model_config = ConfigDict(extra="forbid")

    training: TrainingName
    training_run: UUID


def parameters_of(run: FlowRun) -> Parameters | None:
    """The checked parameters of a flow run, or ``None`` if they are not those of a participation."""
    try:
        return Parameters.model_validate(run.parameters)
    except ValidationError:
        return None


async def _end(process: anyio.abc.Process) -> None:
    if process.returncode is None:
        process.terminate()
        with anyio.move_on_after(GRACE_S):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


def serve(worker: _OwnWorker) -> None:
    """Serve until SIGINT or SIGTERM; the programs that it has started end with it."""

    async def until_signalled() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.start)
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    tasks.cancel_scope.cancel()
                    break

    anyio.run(until_signalled)


def serve_alone(folder: Path) -> IO[str]:
    """Hold a folder for one worker; keep what this gives open.

    Raises:
        OSError: another worker serves it.
    """
    lock = (folder / "serving").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock


def register(
    pool: str,
    worker_type: str,
    flow: str,
    deployment: str,
    description: str,
    schema: dict[str, Any],
    parameters: dict[str, Any] | None = None,
) -> None:
    """Enter a work pool and a deployment at the Prefect server, for people to see and use; workers read neither."""
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=pool, type=worker_type, base_job_template={}))
        except ObjectAlreadyExists:
            pass
        client.create_deployment(
            client.create_flow_from_name(flow),
            deployment,
            work_pool_name=pool,
            description=description,
            parameters=parameters,
            parameter_openapi_schema=schema,
            enforce_parameter_schema=True,
        )
        _end_orphans(client, pool)


def _end_orphans(client: SyncPrefectClient, pool: str) -> None:
    """Say of runs whose worker was killed that they have ended: nobody else would."""
    living = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])
    orphans = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=living)),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
    for run in orphans:
        cancelling = run.state is not None and run.state.type == StateType.CANCELLING
        ended: State[None] = (Cancelled if cancelling else Crashed)(message="The worker that ran it was ended.")
        client.set_flow_run_state(run.id, ended, force=True)
