"""A whole consortium on this machine for tests: a real Prefect server, sites and a coordinator as processes."""

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from httpx import HTTPStatusError, TransportError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterName, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from deploy.site import SMOKE_DATA, SMOKE_TASK
from deploy.up import Home, end, found_home, free_port, running, site_names, start_party, start_server
from flows.code_digest import with_code
from flows.engine import patient
from flows.participation import ENDED
from flows.plan import Plan, make_plan
from flows.settings import CUSTOM, SITE_FILE, TRAINING, marked, pool_of
from protocols.consortium import read_consortium
from protocols.ledger import EMPTY_LEDGER, LedgerEntry
from protocols.vault import Vault
from tests.prefect_database import migrated_database

T = TypeVar("T")

PATIENCE = float(os.environ.get("FEDSEAL_TEST_PATIENCE", "1"))
"""How many times longer to wait than on two idle cores; more than 1 where a machine is busy with something else."""
TINY, SLOW, LONG = (f"tests.processes.tasks:{name}" for name in ("Tiny", "Slow", "Long"))
TASKS = (TINY, SLOW, "tests.processes.tasks:Sleepy", LONG, "ml_tasks.breast_cancer:BreastCancer", SMOKE_TASK)


@dataclass
class Consortium:
    """A consortium that runs."""

    home: Home
    client: SyncPrefectClient

    @property
    def key(self) -> str:
        """The coordinator's public key, whose beginning is in the names at the server."""
        return read_consortium(self.home.coordinator / "consortium.toml").coordinator

    def plan(self, **fields: object) -> Plan:
        """A small plan over all sites; ``fields`` override."""
        deadlines = {"join_s": 90 + 10 * len(self.home.sites), "step_s": 60, "train_s": 90, "finish_s": 90}
        raw = {
            "name": "tiny",
            "task": TINY,
            "data": "tiny",
            "sites": list(self.home.sites),
            "rounds": 2,
            "local": {"steps": 3, "batch_size": 4},
            "deadlines": {name: seconds * PATIENCE for name, seconds in deadlines.items()},
        }
        return with_code(make_plan({**raw, **fields}, source="test"))

    def submit(self, plan: Plan) -> UUID:
        """Start a training; gives its flow run."""
        deployment = eventually(self.deployment, 60)
        return self.client.create_flow_run_from_deployment(
            deployment, parameters={"plan": plan.model_dump(mode="json")}
        ).id

    def deployment(self) -> UUID | None:
        """The deployment that starts trainings, once the coordinator has entered it."""
        try:
            return self.client.read_deployment_by_name(f"{TRAINING}/{marked(CUSTOM, self.key)}").id
        except (ObjectNotFound, HTTPStatusError):  # not registered yet
            return None

    def ended(self, run: UUID, timeout_s: float = 180.0) -> FlowRun:
        """Wait until a flow run has ended."""

        def look() -> FlowRun | None:
            found = self.client.read_flow_run(run)
            return found if found.state is not None and found.state.type in ENDED else None

        return eventually(look, timeout_s)

    def finished(self, run: UUID, timeout_s: float = 180.0) -> dict[str, Any]:
        """Wait until a training has finished well; gives its report."""
        found = self.ended(run, timeout_s)
        assert found.state is not None and found.state.type == StateType.COMPLETED, (found.state, self.logs())
        return dict(json.loads((self.runs(run) / "report.json").read_text()))

    def runs(self, run: UUID) -> Path:
        """A training's folder at the coordinator."""
        (folder,) = (self.home.coordinator / "runs").glob(f"*-{run.hex[:12]}")
        return folder

    def progress(self, run: UUID) -> dict[str, Any]:
        """How far a training has come."""
        path = self.runs(run) / "checkpoint" / "progress.json"
        return dict(json.loads(path.read_text()))

    def sums(self, run: UUID) -> int:
        """How many sums of a training are finished."""
        try:
            return len(self.progress(run)["records"])
        except (ValueError, OSError):
            return 0

    def participations(self, run: UUID, site: str) -> list[FlowRun]:
        """A site's participations in a training, oldest first."""
        name = f"-{run.hex[:12]}-{site}-"
        found = self.client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=name)))
        return sorted(found, key=lambda one: str(one.created))

    def rounds(self, run: UUID) -> list[FlowRun]:
        """The rounds' sub-flow runs of a training, oldest first."""
        training = self.runs(run).name
        found = self.client.read_flow_runs(limit=200)
        found = [one for one in found if one.parameters.get("training") == training and "round" in one.parameters]
        return sorted(found, key=lambda one: str(one.start_time))

    def tasks(self, run: UUID) -> list[TaskRun]:
        """The task runs of a flow run."""
        return self.client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])), task_run_filter=TaskRunFilter(), limit=200
        )

    def inputs(self, run: UUID) -> list[str]:
        """The keys of the inputs that a flow run holds."""
        return list(self.messages(run, ""))

    def messages(self, run: UUID, prefix: str) -> dict[str, str]:
        """The inputs that a flow run holds, by key."""
        asked = {"prefix": prefix, "limit": 200, "exclude_keys": []}
        found = self.client._client.post(f"/flow_runs/{run}/input/filter", json=asked).json()
        return {one["key"]: one["value"] for one in found}

    def post(self, run: UUID, key: str, value: str) -> None:
        """Put an input into a flow run, as whoever can write to the Prefect API can."""
        asked = {"key": key, "value": value}
        self.client._client.post(f"/flow_runs/{run}/input", json=asked, timeout=120).raise_for_status()

    def settled(self, run: UUID) -> None:
        """Wait until no participation of a training lives any more."""

        def living() -> list[str]:
            found = [one for site in self.home.sites for one in self.participations(run, site)]
            return [f"{one.name} is {state_of(one).value}" for one in found if state_of(one) not in ENDED]

        eventually(lambda: not living(), 60, tell=living)

    def online(self, site: str, key: str = "") -> bool:
        """Whether a site's worker is seen to be there; ``key`` is its coordinator's where that is another one."""
        try:
            workers = self.client.read_workers_for_work_pool(pool_of(site, key or self.key))
        except (ObjectNotFound, HTTPStatusError):  # not registered yet
            return False
        return "ONLINE" in {worker.status for worker in workers}

    def vault(self, site: str) -> sqlite3.Connection:
        """A site's vault, to read."""
        return sqlite3.connect(f"file:{self.home.site(site) / 'vault' / 'vault.sqlite'}?mode=ro", uri=True)

    def start(self, site: str) -> None:
        """Start a site that is not there."""
        self.home.processes[site] = start_party(["site", "serve", "--no-check"], self.home.site(site))

    def serve(self) -> None:
        """Start the server again, on its port and database."""
        port = int(self.home.url.rsplit(":", 1)[1].split("/")[0])
        self.home.processes["server"] = start_server(self.home.folder / "server", port)

    def stop(self, name: str) -> None:
        """End a party as its operator would."""
        end([self.home.processes.pop(name)])

    def child(self, party: str) -> int:
        """The process of the program that a party's worker has had started last."""
        return eventually(lambda: programs(self.home.processes[party].pid), 60)[-1]

    def kill(self, party: str) -> None:
        """kill -9 a worker and what it runs."""
        worker = self.home.processes.pop(party)
        for child in [*programs(worker.pid), *children(worker.pid)]:
            os.kill(child, 9)
        worker.kill()
        worker.wait()

    def logs(self, last: int = 1500) -> dict[str, str]:
        """The end of every log, for a failing test's message."""
        files = [*self.home.folder.glob("*/*.log"), *self.home.folder.glob("sites/*/*.log")]
        return {str(path.relative_to(self.home.folder)): path.read_text()[-last:] for path in sorted(files)}


@contextmanager
def consortium(
    folder: Path,
    sites: Sequence[str] | int = 4,
    *,
    start: Sequence[str] | None = None,
    database: str | None = None,
    tables: Mapping[str, str] | None = None,
    tasks: Sequence[str] = TASKS,
    small_disk: str | None = None,
    prepare: Callable[[Home], None] = lambda home: None,
) -> Iterator[Consortium]:
    """Run a consortium.

    Args:
        folder: where everything lies.
        sites: their names, or how many.
        start: the sites that are there at first; all of them by default.
        database: the server's, if it is not to be SQLite.
        tables: lines of policy by site.
        tasks: what may run.
        small_disk: the site whose vault is a small disk of its own, where this machine lets us mount one.
        prepare: called with the folders before anybody starts.
    """
    port, names = free_port(), site_names(sites) if isinstance(sites, int) else tuple(sites)
    url = f"http://127.0.0.1:{port}/api"
    home = found_home(folder, names, url, tuple(tasks), ("tiny", "breast-cancer", SMOKE_DATA))
    for site, lines in (tables or {}).items():
        path = home.site(site) / SITE_FILE
        kept = [line for line in path.read_text().splitlines() if line.split(" = ")[0] not in lines]
        path.write_text("\n".join([*kept, lines]) + "\n")
    prepare(home)
    if database is None:
        migrated_database(folder / "server")
    with mounted(home.site(small_disk) / "vault") if small_disk else nullcontext():
        server = start_server(folder / "server", port, database)
        with running(home, server, None if start is None else tuple(start)), temporary_settings({PREFECT_API_URL: url}):
            with patient(get_client(sync_client=True)) as client:
                yield Consortium(home, client)


@contextmanager
def neighbour(of: Consortium, folder: Path, *, sites: bool) -> Iterator[Consortium]:
    """Run another consortium on the same Prefect server, or its coordinator alone: other keys, the same names."""
    home = found_home(folder, of.home.sites, of.home.url, TASKS, ("tiny",))
    beside = Consortium(home, of.client)
    try:
        home.processes["coordinator"] = start_party(["coordinator", "serve"], home.coordinator)
        for site in home.sites if sites else ():
            beside.start(site)
        yield beside
    finally:
        end(list(home.processes.values()))


@contextmanager
def mounted(disk: Path) -> Iterator[None]:
    """Have a folder be a disk of 16 megabytes, where this machine lets us mount one; its files stay."""
    aside = disk.with_name("aside")
    disk.rename(aside)
    disk.mkdir(mode=0o700)
    words = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(disk)]
    done = subprocess.run(words, capture_output=True, check=False).returncode == 0
    shutil.copytree(aside, disk, dirs_exist_ok=True)
    shutil.rmtree(aside)
    vault = Vault(disk)  # it notices that it was moved, and its data steward says that this was meant
    with vault.exclusive():
        vault.enter(LedgerEntry("accepted", EMPTY_LEDGER))
    vault.close()
    try:
        yield
    finally:
        if done:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk; gives the file that does."""
    filler = disk / "filler"
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def state_of(run: FlowRun) -> StateType:
    """The type of a run's state."""
    assert run.state is not None
    return run.state.type


def assert_one_vector_a_mask(home: Consortium, run: UUID) -> None:
    """No context of a site has two masked vectors, and no two contexts have the same keys."""
    query = (
        "SELECT journal.attempt_context, step, answer_digest FROM journal JOIN contexts USING (attempt_context) "
        "WHERE training = ?"
    )
    for site in home.home.sites:
        with home.vault(site) as db:
            rows = db.execute(query, (home.runs(run).name,)).fetchall()
        masked = Counter(context for context, step, _ in rows if step == "mask")
        assert set(masked.values()) <= {1}
        adverts = [digest for _, step, digest in rows if step == "advertise"]
        assert len(set(adverts)) == len(adverts) >= len(masked)


def assert_no_traceback(home: Consortium) -> None:
    """What went wrong on the way was said in one line; the server's own log is Prefect's."""
    for name, text in home.logs(last=1_000_000).items():
        assert "Traceback" not in text or name.startswith("server/"), (name, text)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def programs(worker: int) -> list[int]:
    """The processes of the programs of a worker's warm parent."""
    return [program for parent in children(worker) for program in children(parent)]


def eventually(
    look: Callable[[], T | None], timeout_s: float, pause_s: float = 0.2, *, tell: Callable[[], object] | None = None
) -> T:
    """Look until there is something, and fail after a time; a server that is busy is looked at again.

    ``tell`` gives what the failure says of how things stand.
    """
    timeout_s *= PATIENCE
    deadline, busy = time.monotonic() + timeout_s, ""
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except (HTTPStatusError, TransportError) as error:
            busy = f"; the server: {error}"
        time.sleep(pause_s)
    raise AssertionError(f"nothing within {timeout_s:g} s{busy}" + (f": {tell()}" if tell else ""))
