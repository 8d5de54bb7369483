"""fedseal's own Prefect workers: each runs its one program and nothing else, whatever the server says (SPEC 6.9).

Prefect's workers start what a deployment names: entry points, pull steps, job variables, all of which anyone with
write access to the server can change. These read none of it. A flow run is to them a name and two parameters, which
are checked; then the one program is started, in a process of its own, with the party's own folder.
"""

import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Self, TypeVar
from uuid import UUID

import anyio
import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, WorkPool
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult
from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.entries import last_state
from deploy.warm import Programs
from flows.engine import patient
from flows.mailbox import is_away
from protocols.contexts import TrainingName

HEARTBEAT_S, COORDINATOR_HEARTBEAT_S = 15, 5
LEAVE_S, LAST_WORD_S = 2.0, 5.0
"""Seconds that a worker that ends has to tell the server so."""

Refusal = Callable[[FlowRun], State[None] | None]
"""The state that says why a flow run must not be started, or ``None``."""
Result = TypeVar("Result")

log = logging.getLogger("fedseal.worker")


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
    heartbeat_s = HEARTBEAT_S

    def __init__(
        self, programs: Programs, pool: str, name: str, refusal: Refusal, limit: int, resume: bool | None = None
    ) -> None:
        super().__init__(pool, name=name, heartbeat_interval_seconds=self.heartbeat_s, limit=limit)
        self.programs = programs
        self._refusal = refusal
        self._resume = resume
        self._away = False

    async def setup(self) -> None:
        """Prepare to look for runs; a server that is busy while one is being started is asked again at once.

        Prefect's own, stopped here, leaves open what it has opened; the end of that would be a traceback.
        """
        try:
            await super().setup()
        except BaseException as error:
            await self._exit_stack.__aexit__(type(error), error, error.__traceback__)
            raise
        patient(self.client)

    async def run(
        self,
        flow_run: FlowRun,
        configuration: OwnProgram,
        task_status: anyio.abc.TaskStatus[int] | None = None,
    ) -> BaseWorkerResult:
        """Start this worker's program for a flow run, and wait for its end.

        A program that is still there when the worker ends is killed: it can be, at any instant, and its journal is for
        that. The server is told, since nobody else would.
        """
        if (refusal := self._refusal(flow_run)) is not None:
            log.warning("did not start flow run %s: %s", flow_run.id, refusal.message)
            await self.client.set_flow_run_state(flow_run.id, refusal, force=True)
            if task_status is not None:
                task_status.started(0)
            return BaseWorkerResult(identifier="refused", status_code=0)
        program = self.programs.start(flow_run.id)
        process = await program.started()
        if task_status is not None:
            task_status.started(process)
        try:
            code = await program.ended()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(LAST_WORD_S, shield=True):
                program.kill()
                await program.ended()
                now = await self.client.read_flow_run(flow_run.id)
                if now.state is None or not (now.state.is_final() or now.state.is_paused()):
                    await self.client.set_flow_run_state(flow_run.id, last_state(now, self._resume), force=True)
            raise
        return BaseWorkerResult(identifier=str(process), status_code=code)

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Look for runs; a server that is away is looked at again, for as long as it takes."""
        return await self._unless_away(super().get_and_submit_flow_runs) or []

    async def sync_with_backend(self) -> None:
        """Say that this worker is there; see ``get_and_submit_flow_runs``."""
        await self._unless_away(super().sync_with_backend)

    async def _unless_away(self, do: Callable[[], Awaitable[Result]]) -> Result | None:
        """Prefect's loops give up after some minutes and end the worker, and everything that it runs."""
        try:
            result = await do()
            if self._away:
                print("fedseal: the Prefect server answers again", file=sys.stderr)
            self._away = False
            return result
        except httpx.HTTPError as error:
            if not is_away(error):
                raise
            if not self._away:
                print(f"fedseal: the Prefect server is away ({type(error).__name__}): waiting for it", file=sys.stderr)
            self._away = True
            return None


class SiteWorker(_OwnWorker):
    """Runs participations of one site."""

    type = "fedseal-site"


class CoordinatorWorker(_OwnWorker):
    """Runs trainings."""

    type = "fedseal-coordinator"
    heartbeat_s = COORDINATOR_HEARTBEAT_S

    async def teardown(self, *exc_info: Any) -> None:
        """Also leave the pool, when its runs' last states are known: the next coordinator then need not wait for it."""
        await super().teardown(*exc_info)
        with anyio.move_on_after(LEAVE_S, shield=True), suppress(httpx.HTTPError):
            async with get_client() as client:
                await client._client.delete(f"/work_pools/{self._work_pool_name}/workers/{self.name}")


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


def serve(worker: _OwnWorker) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; the programs that it has started end with it.

    A signal that comes again while it ends changes nothing: the end is bounded.

    Raises:
        SystemExit: the warm parent of its programs was killed; with one line.
    """
    lost = False

    async def until_signalled() -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(worker.start)
                tasks.start_soon(until_lost, tasks.cancel_scope)
                async for _ in signals:
                    tasks.cancel_scope.cancel()

    async def until_lost(serving: anyio.CancelScope) -> None:
        nonlocal lost
        await worker.programs.gone()
        lost = True
        serving.cancel()

    anyio.run(until_signalled)
    if lost:
        print("fedseal: the process that starts its programs was killed, and they too: serve again", file=sys.stderr)
        raise SystemExit(1)
