"""``fedseal coordinator publish``: a deployment for a plan, with a schedule and a few open fields (SPEC 6.14)."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.coordinator import HERE, Folder, app
from deploy.site import fail, once_there, one_line
from flows.settings import CUSTOM, TRAINING, CoordinatorFolder, marked
from protocols.files import write_whole

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from deploy.entries import Schedule
    from flows.published import Published, Timetable


@app.command()
def publish(
    plan: Annotated[str, typer.Argument(help="A plan in TOML, or a signed template; with --remove its name.")],
    open_: Annotated[
        list[str] | None, typer.Option("--open", help="A number that others may fill in: field=least..most.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field of the plan: a.b=c.")] = None,
    cron: Annotated[str | None, typer.Option(help="When it runs by itself, as in '0 2 * * 1'.")] = None,
    timezone: Annotated[str, typer.Option(help="The time zone of --cron, as in Europe/Madrid.")] = "UTC",
    interval: Annotated[float | None, typer.Option(help="Seconds between two runs by itself.", min=60)] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Withdraw the plan; what runs goes on.")] = False,
    folder: Folder = HERE,
) -> None:
    """Give a plan a deployment of its own, or replace it: who starts it fills in what was left open."""
    from flows.plan import PlanError

    with one_line():
        coordinator = CoordinatorFolder.read(folder)
    os.environ.update(coordinator.prefect.environment)
    try:
        if remove:
            withdraw(coordinator, plan)
            return
        when = timetable(cron, timezone, interval)
        published = checked(coordinator, Path(plan), tuple(overrides or ()), open_ or [], when)
    except PlanError as error:
        raise fail(error) from None
    with one_line():
        enter(coordinator, published)


def timetable(cron: str | None, timezone: str, interval_s: float | None) -> "Timetable | None":
    """When a plan runs by itself.

    Raises:
        PlanError: the words are no schedule.
    """
    from flows.plan import PlanError
    from flows.published import Timetable

    if cron is not None and interval_s is not None:
        raise PlanError("--cron and --interval: a plan has one schedule: give one of them")
    if cron is None and interval_s is None:
        return None
    when = Timetable(cron=cron, interval_s=interval_s, timezone=timezone)
    try:
        schedule_of(when)
    except ValueError:
        words = f"--cron {cron!r} --timezone {timezone}"
        raise PlanError(
            f"{words}: is no schedule: write it as in --cron '0 2 * * 1' --timezone Europe/Madrid"
        ) from None
    return when


def schedule_of(when: "Timetable | None") -> "Schedule | None":
    """A timetable as Prefect has it, if there is one.

    Raises:
        ValueError: it is none.
    """
    from datetime import UTC, datetime, timedelta

    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    if when is None:
        return None
    if when.cron is not None:
        return CronSchedule(cron=when.cron, timezone=when.timezone)
    return IntervalSchedule(interval=timedelta(seconds=when.interval_s or 0), anchor_date=datetime.now(UTC))


def checked(
    coordinator: CoordinatorFolder, path: Path, overrides: tuple[str, ...], open_: list[str], when: "Timetable | None"
) -> "Published":
    """Read and check what is to be published; where the consortium has authors, a template that one has signed.

    Raises:
        PlanError: it cannot be published here.
    """
    from deploy.run import Failure, check_plan
    from flows.authors import check_template, ranges
    from flows.code_digest import with_code
    from flows.plan import PlanError, read_fields
    from flows.published import of_template, publishable
    from protocols.errors import Refused

    with one_line():
        consortium = coordinator.consortium
    if not consortium.authors:
        published = publishable(read_fields(path, overrides), ranges(open_), when)
    elif overrides or open_:
        raise PlanError("--set and --open: a signed template says itself what is open: have its author sign another")
    else:
        published = of_template(signed_text(path), when)
    plan = published.filled({})
    if plan.name == CUSTOM:
        raise PlanError(f"{path}: name: {CUSTOM} is the form of whole plans: give the plan another name")
    with one_line():
        coordinator.check_known(plan.task, plan.sites)
    try:
        known = check_plan(lambda: with_code(plan))[0]
        if published.template:
            check_template("publish", known, published.template, consortium.authors)
    except Failure as failure:
        raise PlanError(str(failure)) from None
    except Refused as refused:
        raise PlanError(f"{path}: {refused.reason}") from None
    return published


def signed_text(path: Path) -> str:
    """The text of a signed template.

    Raises:
        PlanError: the file cannot be read, or is a plan that nobody has signed.
    """
    from flows.plan import PlanError

    if path.suffix == ".toml":
        raise PlanError(
            f"{path}: is not signed, and the consortium file names authors: publish what fedseal author sign wrote"
        )
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise PlanError(f"{path}: cannot be read: give the file that fedseal author sign has written") from None


def enter(coordinator: CoordinatorFolder, published: "Published") -> None:
    """Keep a plan in the coordinator's folder, then enter its deployment, as soon as the server answers."""
    from prefect.client.orchestration import get_client

    from deploy.entries import enter_deployment, enter_pool
    from deploy.forms import published_entry
    from deploy.worker import CoordinatorWorker
    from flows.engine import patient
    from flows.published import write_published

    entry = published_entry(coordinator.consortium.coordinator, published)
    if published.template:
        coordinator.templates.mkdir(mode=0o700, exist_ok=True)
        write_whole(coordinator.templates / f"{published.name}.json", published.template.encode())
    write_published(coordinator.published, published)

    def enter() -> None:
        with patient(get_client(sync_client=True)) as client:
            enter_pool(client, entry.pool, CoordinatorWorker.type)
            enter_deployment(client, entry, schedule_of(published.timetable))

    once_there(coordinator.prefect, enter)
    print(f"{TRAINING}/{entry.name}")
    print("Run it in the UI, under Deployments; its schedule is set and paused there too.", file=sys.stderr)


def enter_published(client: "SyncPrefectClient", coordinator: CoordinatorFolder) -> None:
    """Enter the published plans that the server does not have: a new server, or a database that was lost."""
    from prefect.exceptions import ObjectNotFound

    from deploy.entries import enter_deployment
    from deploy.forms import published_entry
    from flows.published import all_published

    for published in all_published(coordinator.published):
        entry = published_entry(coordinator.consortium.coordinator, published)
        try:
            client.read_deployment_by_name(f"{TRAINING}/{entry.name}")
        except ObjectNotFound:
            enter_deployment(client, entry, schedule_of(published.timetable))


def withdraw(coordinator: CoordinatorFolder, name: str) -> None:
    """Remove a published plan: its deployment with its schedules, then the coordinator's own copy.

    Raises:
        PlanError: nothing of this name is published.
    """
    from prefect.client.orchestration import get_client

    from deploy.entries import remove_deployment
    from flows.engine import patient
    from flows.plan import PlanError
    from flows.published import PLAN_NAME, all_published

    if not PLAN_NAME.fullmatch(name) or not (coordinator.published / f"{name}.json").exists():
        known = ", ".join(one.name for one in all_published(coordinator.published)) or "nothing"
        raise PlanError(f"{name}: is not published: {known} is")
    with one_line():
        key = coordinator.consortium.coordinator

    def remove() -> None:
        with patient(get_client(sync_client=True)) as client:
            remove_deployment(client, TRAINING, marked(name, key))

    once_there(coordinator.prefect, remove)
    (coordinator.published / f"{name}.json").unlink()
    print(f"{name} is withdrawn; trainings that have begun go on", file=sys.stderr)
