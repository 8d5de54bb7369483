"""``fedseal site``: set up a site, serve it, and decide what it takes part in (SPEC 6.8)."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploy.alone import alone
from deploy.child import command
from deploy.founding import check_exchange, check_name, check_server, check_tasks, found, read_data_sets
from flows.pauses import pauses
from flows.settings import SITE_FILE, PrefectServer, SettingsError, SiteFolder
from protocols.ledger import same_content
from protocols.vault import Vault

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

    from deploy.entries import Entry
    from deploy.worker import Refusal

PROBE_S, PROBE_LIMIT_S = 3.0, 10.0
"""Seconds of trying again while the exchange is tried, and for all of it, where nothing answers."""

app = typer.Typer(
    no_args_is_help=True,
    help="Set up and run a site: what it allows, what it has done, and its data steward's decisions.",
)

Folder = Annotated[Path, typer.Option("--folder", help="The site's folder.", envvar="FEDSEAL_SITE")]
HERE = Path("site")
EMBEDDED = "breast-cancer"
"""The data set of the embedded example, which needs no folder."""
SMOKE_TASK, SMOKE_DATA = "ml_tasks.smoke:Smoke", "smoke"
"""What fedseal coordinator smoke trains, on numbers that are made up."""
DEFAULT_TASKS = (
    "ml_tasks.breast_cancer:BreastCancer",
    "ml_tasks.heart:HeartDisease",
    "ml_tasks.eicu:Eicu",
    SMOKE_TASK,
)

TEMPLATE = """\
# {name}: what this site is and what it allows. No message can change a word of it.
name = "{name}"
vault = "vault"                  # keys and journal: never copy it, never restore it
consortium = "consortium.toml"   # everybody's keys, agreed on out of band

[prefect]
url = "{prefect}"
# auth_string = "user:password"  # or api_key; ca_file for a server with a certificate of your own

[exchange]
url = "{exchange}"
# options = {{ key = "...", secret = "...", endpoint_url = "..." }}   # what fsspec needs for s3:// and the like

[data]   # by the name that plans give it: a folder, or {{ path = "...", max_examples = 1000, budget = "GROUP" }}
{data}
[policy]
tasks = {tasks}
code = "pinned"                  # a plan must name the code that is installed here: fedseal code TASK
protocols = ["secagg"]
approval = "{approval}"          # or "by-hand": each training waits for fedseal site approve
min_sites = 3
min_threshold = 3
max_rounds = 1000
max_train_s = 86400.0
"""


def fail(line: object, code: int = 2) -> typer.Exit:
    """Say in one line what is wrong, and exit."""
    print(f"fedseal: {line}", file=sys.stderr)
    return typer.Exit(code)


@contextmanager
def one_line() -> Iterator[None]:
    """Turn what is wrong with a folder into one line and exit code 2, a disk that fails into one and exit code 1."""
    try:
        yield
    except SettingsError as error:
        raise fail(error) from None
    except (OSError, sqlite3.Error) as error:
        raise fail(f"{error}: see to the folder's disk and its owner", 1) from None


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The site's name: a-z, 0-9 and -.")],
    prefect: Annotated[str, typer.Option(help="URL of the Prefect API, as in https://prefect.example/api.")],
    exchange: Annotated[str, typer.Option(help="URL of the exchange, as in s3://BUCKET/PREFIX or file:///FOLDER.")],
    folder: Folder = HERE,
    data: Annotated[
        list[str] | None,
        typer.Option(help="A data set and its folder, NAME=FOLDER; can be given several times."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task that may run here, module:Class; can be given several times.")
    ] = None,
    by_hand: Annotated[bool, typer.Option(help="Each training waits for fedseal site approve.")] = False,
) -> None:
    """Make a site's folder: keys, vault and site.toml; print its entry for consortium.toml.

    Every word is checked before anything is made.
    """
    with one_line():
        check_name(name)
        check_server(prefect)
        missing = check_exchange(exchange)
        check_tasks(task or ())
        sets = read_data_sets((data if task or data else [EMBEDDED]) or (), EMBEDDED)
        text = TEMPLATE.format(
            name=name,
            prefect=prefect,
            exchange=exchange,
            data="".join(f"{one} = {_quoted(str(path)) if path else '{}'}\n" for one, path in sets.items())
            + ("" if task else f'{SMOKE_DATA} = {{ budget = "none" }}   # made-up numbers, to try a consortium out\n'),
            tasks="[" + ", ".join(_quoted(path) for path in task or DEFAULT_TASKS) + "]",
            approval="by-hand" if by_hand else "automatic",
        )
        public = found(folder, SITE_FILE, text, name)
    print(f'{name} = "{public}"')
    print(f"Enter this line under [sites] in consortium.toml, and put that file into {folder}.", file=sys.stderr)
    if missing:
        print(f"warning: the exchange cannot be used yet: {missing}", file=sys.stderr)


@app.command()
def serve(
    folder: Folder = HERE,
    check: Annotated[
        bool, typer.Option(help="Also check, at the start, that tasks and data sets fit together.")
    ] = True,
) -> None:
    """Run the site: wait for trainings and take part in those that its policy allows. Opens no port."""
    with one_line():
        site = SiteFolder.read(folder)
        with closing(site.open_vault()) as vault:
            site.check_identity(vault.identity, site.consortium)
        site.open_exchange()
    os.environ.update(site.prefect.environment)
    from deploy.tidying import keep_tidy
    from deploy.warm import Programs
    from deploy.worker import Parameters, SiteWorker, serve
    from flows.logs import keep_log

    programs = Programs.load("deploy.participate", folder.absolute())
    with one_line():
        lock = alone(folder, "serving", "fedseal site serve")
        vault = site.open_vault()
    keep_log("fedseal", folder / "site.log")
    entry = participation_entry(site, Parameters.model_json_schema())
    once_there(site.prefect, lambda: register(entry, SiteWorker.type))
    print(f"{site.name} serves; what it does is in {folder / 'site.log'}", file=sys.stderr, flush=True)
    for groups in same_content(vault.ledger()):
        warn(f"{', '.join(groups)}: hold the same content, and their charges count against each other: see site.toml")
    keep_tidy(site, vault)
    threading.Thread(target=warn_of, args=(site, check), daemon=True).start()
    with lock:
        serve(SiteWorker(programs, entry.pool, site.name, refusal_of(vault), site.policy.max_trainings))


def participation_entry(site: SiteFolder, schema: dict[str, Any]) -> "Entry":
    """The deployment of a site's participations, which its coordinator starts."""
    from deploy.entries import Entry
    from flows.settings import PARTICIPATE, mark_of, marked, pool_of

    coordinator = site.consortium.coordinator
    return Entry(
        flow=PARTICIPATE,
        name=marked(site.name, coordinator),
        pool=pool_of(site.name, coordinator),
        description=f"The part of {site.name} in a training. Cancel one to withdraw.",
        schema=schema,
        tags=("participation", mark_of(coordinator)),
    )


def register(entry: "Entry", worker_type: str) -> None:
    """Enter a site's pool and deployment at the Prefect server, and say of runs of a killed worker that they ended."""
    from prefect.client.orchestration import get_client

    from deploy.entries import enter_deployment, enter_pool, take_up_orphans
    from flows.engine import patient

    with patient(get_client(sync_client=True)) as client:
        enter_pool(client, entry.pool, worker_type)
        enter_deployment(client, entry)
        take_up_orphans(client, entry.pool, None)


def warn_of(site: SiteFolder, check: bool) -> None:
    """Say on the terminal what is wrong and may pass, or that only trainings will meet, a line each.

    Args:
        site: the site's folder.
        check: also whether tasks and data sets fit, as ``fedseal site check`` does.
    """
    from deploy.server_check import clock_warning

    for warning in (clock_warning(site.prefect), exchange_warning(site)):
        if warning:
            warn(warning)
    if check and site.data:
        # In a process of its own, which ends with this one: what serves a site imports no task.
        words = command("deploy.cli", "site", "check", "--folder", str(site.folder.absolute()))
        done = subprocess.run(  # noqa: S603 - our own words
            words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        for line in (done.stdout if done.returncode == 1 else done.stderr).splitlines():
            warn(line)


def exchange_warning(site: SiteFolder) -> str:
    """Write, read and delete an object of this site's own on the exchange; say what is wrong, or ``""``."""
    place = f"the exchange {site.exchange_url}"
    mend = "no training goes on here until that works: see to it, or correct [exchange] in site.toml"
    tried = Queue[str]()

    def probe() -> None:
        failed = site.open_exchange(PROBE_S).failing(site.name)
        tried.put("" if failed is None else f"{place} cannot be {failed[0]}: {failed[1].reason}: {mend}")

    threading.Thread(target=probe, daemon=True).start()
    try:
        return tried.get(timeout=PROBE_LIMIT_S)
    except Empty:
        return f"{place} has not answered within {PROBE_LIMIT_S:g} s: {mend}"


def warn(line: str) -> None:
    """Say what does not stop the site."""
    print(f"warning: {one_printed_line(line)}", file=sys.stderr, flush=True)


def refusal_of(vault: Vault) -> "Refusal":
    """What a site's worker says no to before it starts anything."""

    from prefect.states import Cancelled, Failed

    from deploy.worker import parameters_of

    def refusal(run: "FlowRun") -> "State[None] | None":
        asked = parameters_of(run)
        if asked is None:
            return Failed(message="Refused: the parameters are not those of a participation.")
        if vault.withdrawn(asked.training):
            return Cancelled(message="Refused: the site has withdrawn from this training.")
        return None

    return refusal


def one_printed_line(text: str) -> str:
    """Text of others as a terminal may show it: in one line, with no commands in it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


@app.command()
def policy(folder: Folder = HERE) -> None:
    """Show what the site allows, including the defaults."""
    with one_line():
        site = SiteFolder.read(folder)
    for name, field in type(site.policy).model_fields.items():
        print(f"{name} = {getattr(site.policy, name)}  # {field.description}")
    for name, one in site.data.items():
        bound = "" if one.max_examples is None else f", at most {one.max_examples} examples"
        missing = one.path is not None and not one.path.is_dir()
        print(
            f"data.{name} = {one.path or 'no folder'}, budget group {site.group_of(name)}{bound}"
            f"{'  # there is no such folder' if missing else ''}"
        )


def once_there(server: PrefectServer, do: Callable[[], None]) -> None:
    """Do something at the Prefect server, as soon as it answers; say once why it cannot be done yet.

    It is waited for with growing pauses: a site may well be started before the server, or while it is away.

    Raises:
        typer.Exit: what is wrong does not pass by itself; one line says what mends it.
    """
    import httpx

    from deploy.server_check import trouble_of

    said = False
    for pause_s in pauses(1.0, 30.0):
        try:
            return do()
        except (httpx.HTTPError, ValueError) as error:
            trouble = trouble_of(server, error)
        if not trouble.may_pass:
            raise fail(f"the Prefect server at {server.url} {trouble.reason}") from None
        if not said:
            print(f"fedseal: the Prefect server at {server.url} {trouble.reason}: waiting", file=sys.stderr, flush=True)
        said = True
        time.sleep(pause_s)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
