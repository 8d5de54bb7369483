"""What a party enters at the Prefect server for people to see and use: pools, deployments, tags, a filter (SPEC 6.9).

Workers read none of it, and take nothing of it for true. Every name carries the consortium's mark
(``flows.settings.marked``), and nothing is looked for but under such names: on a server that several consortia use,
none touches what is another's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
    TaskRunFilterState,
    TaskRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.states import AwaitingRetry, Cancelled, Crashed

ENDED = "The worker that ran it has ended."
GOES_ON = "The coordinator has ended: the training goes on when it serves again."
RETRY = "The coordinator has ended: press Retry when it serves again, and the training goes on after its last round."
INTERRUPTED, CUT_OFF = "Interrupted", "Its process has ended. The training, if it goes on, makes this round again."
LIVING = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])

WEEK = {"type": "span", "seconds": -7 * 24 * 3600}

Schedule = CronSchedule | IntervalSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A deployment: what people start.

    Attributes:
        flow, name: what it is called; the name carries the consortium's mark.
        pool: the work pool that its runs wait in.
        description: for its page.
        schema: of its parameters, of which the server makes a form.
        parameters: what the form is filled in with.
        tags: its runs get them.
    """

    flow: str
    name: str
    pool: str
    description: str
    schema: dict[str, Any]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()


def enter_pool(client: SyncPrefectClient, pool: str, worker_type: str) -> None:
    """Enter a work pool, if it is not there."""
    try:
        client.create_work_pool(WorkPoolCreate(name=pool, type=worker_type, base_job_template={}))
    except ObjectAlreadyExists:
        pass


def enter_deployment(client: SyncPrefectClient, entry: Entry, schedule: Schedule | None = None) -> UUID:
    """Enter a deployment, or bring one that is there up to date; gives its id.

    Prefect's own way to deploy deletes the schedules of what it replaces, those that were set in the UI too.

    Args:
        client: of the Prefect API.
        entry: the deployment.
        schedule: when it runs, in place of all schedules that it has; without one they stay.
    """
    given: dict[str, Any] = {
        "work_pool_name": entry.pool,
        "description": entry.description,
        "parameters": dict(entry.parameters),
        "parameter_openapi_schema": entry.schema,
        "enforce_parameter_schema": True,
        "tags": list(entry.tags),
    }
    try:
        deployment = client.read_deployment_by_name(f"{entry.flow}/{entry.name}").id
        client.update_deployment(deployment, DeploymentUpdate(**given))
    except ObjectNotFound:
        deployment = client.create_deployment(client.create_flow_from_name(entry.flow), entry.name, **given)
    if schedule is not None:
        for old in client.read_deployment_schedules(deployment):
            client.delete_deployment_schedule(deployment, old.id)
        client.create_deployment_schedules(deployment, [DeploymentScheduleCreate(schedule=schedule, active=True)])
    return deployment


def remove_deployment(client: SyncPrefectClient, flow: str, name: str) -> bool:
    """Remove a deployment with its schedules; gives whether it was there."""
    try:
        client.delete_deployment(client.read_deployment_by_name(f"{flow}/{name}").id)
    except ObjectNotFound:
        return False
    return True


def enter_filter(client: SyncPrefectClient, name: str, tags: Sequence[str]) -> None:
    """Enter a saved filter of the UI's list of runs, or bring it up to date: the last week's with all of these tags.

    Raises:
        httpx.HTTPError: the server does not take it.
    """
    filters = [
        {"object": "flowRun", "property": "tag", "type": "", "operation": "", "value": list(tags)},
        {"object": "flowRun", "property": "range", "type": "", "operation": "", "value": WEEK},
    ]
    client._client.put("/saved_searches/", json={"name": name, "filters": filters})


def take_up_orphans(client: SyncPrefectClient, pool: str, resume: bool | None) -> None:
    """Say of runs in a pool whose worker was killed that they have ended, or have them go on: nobody else would.

    Args:
        client: of the Prefect API.
        pool: whose worker is being started; it has none that lives.
        resume: see ``last_state``.
    """
    orphans = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=LIVING)),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
    for run in orphans:
        if resume is not None:
            end_interrupted(client, run.id)
        client.set_flow_run_state(run.id, last_state(run, resume), force=True)


def end_interrupted(client: SyncPrefectClient, training_run: UUID) -> None:
    """Say of a training's rounds and tasks that were cut off that they were: nobody else would.

    Args:
        client: of the Prefect API.
        training_run: the training's flow run, of which no process is running.
    """
    children = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[training_run]), state=FlowRunFilterState(type=LIVING)
        )
    )
    tasks = client.read_task_runs(
        task_run_filter=TaskRunFilter(
            flow_run_id=TaskRunFilterFlowRunId(any_=[training_run, *(child.id for child in children)]),
            state=TaskRunFilterState(
                name=None, type=TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
            ),
        )
    )
    ended: State[None] = Crashed(name=INTERRUPTED, message=CUT_OFF)
    for child in children:
        client.set_flow_run_state(child.id, ended, force=True)
    for task in tasks:
        client.set_task_run_state(task.id, ended, force=True)


def last_state(run: FlowRun, resume: bool | None = None) -> State[None]:
    """The state of a run whose worker has ended.

    Args:
        run: as it was before.
        resume: of a training, whether it goes on when its coordinator serves again; ``None`` for a participation.
    """
    if run.state is not None and run.state.type == StateType.CANCELLING:
        return Cancelled(message=ENDED)
    if resume:
        return AwaitingRetry(message=GOES_ON)
    return Crashed(message=ENDED if resume is None else RETRY)
