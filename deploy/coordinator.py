"""``fedseal coordinator``: set up and serve the coordinator (SPEC 6.8)."""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from deploy import EXAMPLE
from deploy.alone import alone, alone_in_pool, coordinator_name
from deploy.founding import check_exchange, check_server, check_tasks, found
from deploy.site import DEFAULT_TASKS, fail, once_there, one_line
from flows.settings import COORDINATOR_FILE, CoordinatorFolder
from protocols.messages import COORDINATOR

app = typer.Typer(no_args_is_help=True, help="Set up and run the coordinator, which starts trainings.")

Folder = Annotated[Path, typer.Option("--folder", help="The coordinator's folder.", envvar="FEDSEAL_COORDINATOR")]
HERE = Path("coordinator")

TEMPLATE = """\
# The coordinator: it runs the trainings, and learns sums over sites, never what a single site sends.
vault = "vault"                  # the signing key
consortium = "consortium.toml"   # everybody's keys, agreed on out of band
runs = "runs"                    # checkpoints, models and reports
tasks = {tasks}   # what a plan may name; its code runs here too
max_trainings = 4                # that run at once; what is submitted beyond waits
resume = true                    # trainings that end with this coordinator go on when it serves again

[prefect]
url = "{prefect}"
# auth_string = "user:password"  # or api_key; ca_file for a server with a certificate of your own

[exchange]
url = "{exchange}"
# options = {{ key = "...", secret = "...", endpoint_url = "..." }}   # what fsspec needs for s3:// and the like
"""


@app.command()
def init(
    prefect: Annotated[str, typer.Option(help="URL of the Prefect API, as in https://prefect.example/api.")],
    exchange: Annotated[str, typer.Option(help="URL of the exchange, as in s3://BUCKET/PREFIX or file:///FOLDER.")],
    folder: Folder = HERE,
    task: Annotated[
        list[str] | None, typer.Option(help="A task that plans may name, module:Class; can be given several times.")
    ] = None,
) -> None:
    """Make the coordinator's folder: key and coordinator.toml; print its entry for consortium.toml."""
    tasks = "[" + ", ".join(f'"{path}"' for path in task or DEFAULT_TASKS) + "]"
    with one_line():
        check_server(prefect)
        missing = check_exchange(exchange)
        check_tasks(task or ())
        text = TEMPLATE.format(tasks=tasks, prefect=prefect, exchange=exchange)
        public = found(folder, COORDINATOR_FILE, text, COORDINATOR)
    print(f'[coordinator]\nkey = "{public}"')
    print(f"Put this into consortium.toml, with every site's line, and the file into {folder}.", file=sys.stderr)
    if missing:
        print(f"warning: the exchange cannot be used yet: {missing}", file=sys.stderr)


@app.command()
def serve(
    folder: Folder = HERE,
    plan: Annotated[
        Path | None, typer.Option(help="The plan that the form in the UI is filled in with at first.")
    ] = None,
) -> None:
    """Run the coordinator: it runs the trainings that are submitted, scheduled or started in the UI."""
    with one_line():
        coordinator = CoordinatorFolder.read(folder)
        with closing(coordinator.open_vault()) as vault:
            consortium = coordinator.consortium
            coordinator.check_identity(vault.identity, consortium)
        coordinator.open_exchange()
    os.environ.update(coordinator.prefect.environment)
    from prefect.client.orchestration import get_client

    from deploy.entries import enter_deployment, enter_filter, enter_pool, take_up_orphans
    from deploy.forms import TAG, custom_entry
    from deploy.publish import enter_published
    from deploy.warm import Programs
    from deploy.worker import COORDINATOR_HEARTBEAT_S, CoordinatorWorker, serve
    from flows.authors import first_template
    from flows.engine import patient
    from flows.plan import PlanError, read_plan
    from flows.settings import coordinator_pool, mark_of

    try:
        begin = None if plan else first_template(coordinator.templates, consortium.authors)
        custom = custom_entry(consortium.coordinator, begin or read_plan(plan or EXAMPLE))
    except PlanError as error:
        raise fail(error) from None
    programs = Programs.load("deploy.coordinate", folder.absolute())
    pool, name, mark = coordinator_pool(consortium.coordinator), coordinator_name(), mark_of(consortium.coordinator)

    def enter() -> None:
        with patient(get_client(sync_client=True)) as client:
            enter_pool(client, pool, CoordinatorWorker.type)
            alone_in_pool(client, pool, name, COORDINATOR_HEARTBEAT_S)
            enter_deployment(client, custom)
            enter_published(client, coordinator)
            enter_filter(client, f"Trainings of {mark}", (TAG, mark))
            take_up_orphans(client, pool, coordinator.resume)

    with one_line():
        lock = alone(folder, "serving", "fedseal coordinator serve")
        once_there(coordinator.prefect, enter)
    print(f"the coordinator serves; its runs are in {coordinator.runs}", file=sys.stderr, flush=True)
    with lock:
        limit, resume = coordinator.max_trainings, coordinator.resume
        serve(CoordinatorWorker(programs, pool, name, lambda run: None, limit, resume))
