"""What parties enter at a Prefect server: schedules stay, and what is another consortium's is not touched."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from prefect import task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Completed, Pending, Running

from deploy.alone import alone_in_pool, coordinator_name
from deploy.entries import (
    GOES_ON,
    INTERRUPTED,
    RETRY,
    Entry,
    end_interrupted,
    enter_deployment,
    enter_filter,
    enter_pool,
    remove_deployment,
    take_up_orphans,
)
from deploy.forms import custom_entry, published_entry
from deploy.worker import CoordinatorWorker
from flows.exchange import Exchange
from flows.plan import make_plan
from flows.published import publishable
from flows.remote import ASKED_FOR, DUE, RemoteSites
from flows.settings import PARTICIPATE, SettingsError, coordinator_pool, marked, pool_of
from tests.flows.server import CONSORTIUM, client, new_run, place
from tests.flows.test_published import OPEN, RAW

__all__ = ["client"]

BEAT_S = 1.0


@pytest.fixture
def coordinator(client: SyncPrefectClient) -> str:
    """The key of a coordinator whose pool is there."""
    key = uuid4().hex * 2
    enter_pool(client, coordinator_pool(key), CoordinatorWorker.type)
    return key


def entry(coordinator: str) -> Entry:
    return published_entry(coordinator, publishable(RAW, OPEN))


def test_names_carry_the_mark_of_their_consortium() -> None:
    keys = ("76" * 32, "77" * 32)
    assert pool_of("north", keys[0]) == "site-north@76767676"
    for make in (coordinator_pool, lambda key: pool_of("north", key), lambda key: entry(key).name):
        assert len({make(key) for key in keys}) == 2


def test_a_deployment_that_is_entered_again_keeps_its_schedules(client: SyncPrefectClient, coordinator: str) -> None:
    night = CronSchedule(cron="0 2 * * *", timezone="Europe/Madrid")
    deployment = enter_deployment(client, entry(coordinator), night)
    assert enter_deployment(client, entry(coordinator)) == deployment
    (kept,) = client.read_deployment_schedules(deployment)
    assert kept.schedule == night and kept.active
    hourly = IntervalSchedule(interval=timedelta(hours=1))
    enter_deployment(client, entry(coordinator), hourly)
    (new,) = client.read_deployment_schedules(deployment)
    assert isinstance(new.schedule, IntervalSchedule) and new.schedule.interval == timedelta(hours=1)


def test_a_published_plan_is_removed_from_its_own_consortium_alone(client: SyncPrefectClient, coordinator: str) -> None:
    other = uuid4().hex * 2
    enter_pool(client, coordinator_pool(other), CoordinatorWorker.type)
    kept = enter_deployment(client, entry(other))
    enter_deployment(client, entry(coordinator))
    assert remove_deployment(client, "federated-training", marked("heart", coordinator))
    assert not remove_deployment(client, "federated-training", marked("heart", coordinator))
    with pytest.raises(ObjectNotFound):
        client.read_deployment_by_name(f"federated-training/{marked('heart', coordinator)}")
    assert client.read_deployment(kept).name == marked("heart", other)


def test_a_published_form_has_a_name_and_the_open_numbers_in_their_ranges(
    client: SyncPrefectClient, coordinator: str
) -> None:
    deployment = enter_deployment(client, entry(coordinator))
    made = client.read_deployment(deployment)
    assert made.parameters == {"plan": "heart", "rounds": 10, "local_learning_rate": 0.1}
    assert made.parameter_openapi_schema is not None
    fields = made.parameter_openapi_schema["properties"]
    assert sorted(fields, key=lambda name: fields[name]["position"]) == ["plan", "rounds", "local_learning_rate"]
    assert (fields["rounds"]["type"], fields["rounds"]["minimum"], fields["rounds"]["maximum"]) == ("integer", 1, 100)
    assert fields["local_learning_rate"]["description"] == "Learning rate of SGD. From 0.001 to 1."
    run = client.create_flow_run_from_deployment(deployment)
    assert set(run.tags) == {"training", coordinator[:8]}
    for parameters in ({"rounds": 101}, {"plan": "other"}):
        with pytest.raises(Exception, match="409"):
            client.create_flow_run_from_deployment(deployment, parameters=parameters)


def test_the_form_of_a_whole_plan_begins_with_what_is_filled_in_most() -> None:
    schema = custom_entry("76" * 32, make_plan(RAW, source="test")).schema
    fields = schema["definitions"]["Plan"]["properties"]
    first = sorted(fields, key=lambda name: fields[name]["position"])[:6]
    assert first == ["name", "task", "data", "sites", "rounds", "local"]
    assert sorted(field["position"] for field in fields.values()) == list(range(len(fields)))


States = dict[str, FlowRun]


@pytest.fixture
def living(client: SyncPrefectClient, coordinator: str) -> Callable[[], States]:
    """Runs of a consortium, and one of another, that seem to live; gives how they are now."""
    other = uuid4().hex * 2
    enter_pool(client, coordinator_pool(other), CoordinatorWorker.type)
    runs: dict[str, UUID] = {}
    for name, key, state in (
        ("running", coordinator, Running()),
        ("pending", coordinator, Pending()),
        ("cancelling", coordinator, Cancelling()),
        ("finished", coordinator, Completed()),
        ("another's", other, Running()),
    ):
        run = client.create_flow_run_from_deployment(enter_deployment(client, entry(key)))
        client.set_flow_run_state(run.id, state, force=True)
        runs[name] = run.id
    return lambda: {name: client.read_flow_run(run) for name, run in runs.items()}


KEPT = {"cancelling": StateType.CANCELLED, "finished": StateType.COMPLETED, "another's": StateType.RUNNING}


@pytest.mark.parametrize(
    ("resume", "then", "says"), [(True, StateType.SCHEDULED, GOES_ON), (False, StateType.CRASHED, RETRY)]
)
def test_trainings_that_a_killed_coordinator_has_left_go_on_and_those_of_others_are_not_touched(
    client: SyncPrefectClient,
    coordinator: str,
    living: Callable[[], States],
    resume: bool,
    then: StateType,
    says: str,
) -> None:
    take_up_orphans(client, coordinator_pool(coordinator), resume)
    states = {name: run.state for name, run in living().items() if run.state is not None}
    assert {name: state.type for name, state in states.items()} == KEPT | {"running": then, "pending": then}
    assert states["running"].message == says
    assert states["running"].name == ("AwaitingRetry" if resume else "Crashed"), "which the server never calls late"


def test_a_coordinator_is_refused_where_another_lives_and_not_where_one_was_killed(
    client: SyncPrefectClient, coordinator: str
) -> None:
    pool, first = coordinator_pool(coordinator), coordinator_name()
    alone_in_pool(client, pool, first, BEAT_S)
    over = threading.Event()

    def live() -> None:
        while not over.wait(BEAT_S / 4):
            client.send_worker_heartbeat(pool, first, BEAT_S)

    beating = threading.Thread(target=live)
    beating.start()
    try:
        with pytest.raises(SettingsError, match=f"another fedseal coordinator serve is running.*{first}"):
            alone_in_pool(client, pool, coordinator_name(), 8 * BEAT_S)
        assert [worker.name for worker in client.read_workers_for_work_pool(pool)] == [first], "it leaves nothing"
    finally:
        over.set()
        beating.join()
    last = coordinator_name()
    alone_in_pool(client, pool, last, BEAT_S)
    assert [worker.name for worker in client.read_workers_for_work_pool(pool)] == [last]


def test_of_coordinators_that_begin_at_once_one_stays(client: SyncPrefectClient, coordinator: str) -> None:
    pool, stays, refused = coordinator_pool(coordinator), list[str](), list[str]()

    def begin() -> None:
        name = coordinator_name()
        try:
            alone_in_pool(client, pool, name, 4 * BEAT_S)
            stays.append(name)
            while len(stays) + len(refused) < len(several):  # as its worker does from now on
                client.send_worker_heartbeat(pool, name, 4 * BEAT_S)
                time.sleep(BEAT_S / 4)
        except SettingsError:
            refused.append(name)

    several = [threading.Thread(target=begin) for _ in range(3)]
    for one in several:
        one.start()
    for one in several:
        one.join(60)
    assert (len(stays), len(refused)) == (1, 2)


@task
def step() -> None:
    """Never run."""


def test_rounds_and_tasks_that_were_cut_off_end_as_interrupted(client: SyncPrefectClient) -> None:
    training = new_run(client)
    tasks = [client.create_task_run(step, training, key, name=key, state=Running()).id for key in ("round", "done")]
    client.set_task_run_state(tasks[1], Completed(), force=True)
    cut_off = client.create_flow_run(place, parent_task_run_id=tasks[0], state=Running()).id
    another = new_run(client)
    end_interrupted(client, training)
    names = {run: client.read_flow_run(run).state_name for run in (training, cut_off, another)}
    assert names == {training: "Running", cut_off: INTERRUPTED, another: "Running"}
    assert [client.read_task_run(one).state_name for one in tasks] == [INTERRUPTED, "Completed"]


def test_the_saved_filter_of_trainings_is_there_once(client: SyncPrefectClient) -> None:
    for tags in (("training",), ("training", "76767676")):
        enter_filter(client, "Trainings of 76767676", tags)
    found = client._client.post("/saved_searches/filter", json={}).json()
    (mine,) = [one for one in found if one["name"] == "Trainings of 76767676"]
    assert next(one["value"] for one in mine["filters"] if one["property"] == "tag") == ["training", "76767676"]


@pytest.fixture
def sites(client: SyncPrefectClient, tmp_path: Path) -> Iterator[RemoteSites]:
    """A coordinator of a training, for which the worker of ann is online."""
    key = CONSORTIUM.coordinator
    pool = pool_of("ann", key)
    enter_pool(client, pool, "fedseal-site")
    enter_deployment(
        client, Entry(flow=PARTICIPATE, name=marked("ann", key), pool=pool, description="", schema={}, parameters={})
    )
    client.send_worker_heartbeat(pool, "ann", 60)
    exchange = Exchange((tmp_path / "exchange").as_uri())
    sites = RemoteSites(client, f"t-{uuid4().hex}", new_run(client), CONSORTIUM, exchange, threading.Event())
    yield sites
    sites.close()


def test_a_participation_is_due_at_once_and_not_late(client: SyncPrefectClient, sites: RemoteSites) -> None:
    """Also where the coordinator was killed between the two: the run that it has made is made due by the next."""
    run = client.read_flow_run(sites._participation("ann"))
    for _ in range(2):
        assert run.state is not None and run.expected_start_time is not None
        assert (run.state.type, run.state.name) == (StateType.SCHEDULED, DUE)
        now = datetime.now(UTC)
        assert run.next_scheduled_start_time is not None and now - run.next_scheduled_start_time > timedelta(days=2)
        assert now - run.expected_start_time < timedelta(minutes=5)
        client.set_flow_run_state(run.id, Pending(name=ASKED_FOR), force=True)
        assert sites._participation("ann") == run.id
        run = client.read_flow_run(run.id)
