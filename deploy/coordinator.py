"""``fedseal coordinator`` and ``fedseal submit``: set up and serve the coordinator, start a training (SPEC 6.8)."""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy import EXAMPLE
from deploy.alone import alone
from deploy.founding import check_exchange, check_server, check_tasks, found
from deploy.site import DEFAULT_TASKS, fail, once_there, one_line
from flows.settings import COORDINATOR_FILE, CoordinatorFolder
from protocols.messages import COORDINATOR

if TYPE_CHECKING:
    from flows.plan import Plan

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
            coordinator.check_identity(vault.identity, coordinator.consortium)
        authors = coordinator.consortium.authors
        coordinator.open_exchange()
    os.environ.update(coordinator.prefect.environment)
    from prefect.utilities.callables import parameter_schema
    from pydantic import Field

    from deploy.warm import Programs
    from deploy.worker import CoordinatorWorker, register, serve
    from flows.authors import first_template
    from flows.plan import Plan, PlanError, read_plan
    from flows.settings import COORDINATOR_POOL, TRAINING, TRAINING_DEPLOYMENT

    def form(plan: Annotated[Plan, Field(title="Plan")]) -> None:
        """The form of the deployment: one plan."""

    try:
        begin = None if plan else first_template(coordinator.templates, authors)
        begin = begin or read_plan(plan or EXAMPLE)
    except PlanError as error:
        raise fail(error) from None
    programs = Programs.load("deploy.coordinate", folder.absolute())
    with one_line():
        lock = alone(folder, "serving", "fedseal coordinator serve")
    schema = parameter_schema(form).model_dump_for_openapi()
    about = "Train a model across sites that keep their data. Fill in the plan; every site decides if it takes part."
    once_there(
        coordinator.prefect,
        lambda: register(
            COORDINATOR_POOL,
            CoordinatorWorker.type,
            TRAINING,
            TRAINING_DEPLOYMENT,
            about,
            schema,
            {"plan": unresolved(begin)},
        ),
    )
    print(f"the coordinator serves; its runs are in {coordinator.runs}", file=sys.stderr, flush=True)
    with lock:
        serve(CoordinatorWorker(programs, COORDINATOR_POOL, "coordinator", lambda run: None, coordinator.max_trainings))


def unresolved(plan: "Plan") -> dict[str, Any]:
    """A plan for the form: what follows from the roster is 0 there, so that it still does when sites are edited."""
    from flows.plan import make_plan

    fields = plan.model_dump(mode="json")
    follows = fields | {"min_sites": 0, "protection": fields["protection"] | {"threshold": 0}}
    return follows if make_plan(follows, source="form").digest == plan.digest else fields


def submit(plan: Path, overrides: tuple[str, ...]) -> str:
    """Start a training on the configured server; gives the flow run's id."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    from flows.engine import patient
    from flows.plan import PlanError, read_plan
    from flows.settings import TRAINING, TRAINING_DEPLOYMENT

    try:
        parameters: dict[str, Any] = {"plan": read_plan(plan, overrides).model_dump(mode="json")}
    except PlanError as error:
        raise fail(error) from None
    url = PREFECT_API_URL.value()
    if not url:
        raise fail("no Prefect server is configured: set PREFECT_API_URL to the API of the coordinator's server")
    with patient(get_client(sync_client=True)) as client:
        if client.api_healthcheck() is not None:
            raise fail(f"the Prefect server at {url} does not answer: start it, or correct PREFECT_API_URL", 1)
        try:
            deployment = client.read_deployment_by_name(f"{TRAINING}/{TRAINING_DEPLOYMENT}")
            run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters)
        except ObjectNotFound:
            raise fail(f"the server at {url} knows no coordinator: start fedseal coordinator serve", 1) from None
        except PrefectHTTPStatusError as error:
            raise fail(f"the server at {url} does not take the plan (HTTP {error.response.status_code})", 1) from None
    return str(run.id)
