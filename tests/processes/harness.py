"""A whole consortium on this machine for tests: a real Prefect server, sites and a coordinator as processes."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from httpx import HTTPStatusError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterName, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from deploy.up import Home, end, found_home, free_port, running, site_names, start_party, start_server
from flows.participation import ENDED
from flows.plan import Plan, make_plan
from flows.settings import SITE_FILE, TRAINING, TRAINING_DEPLOYMENT, pool_of

T = TypeVar("T")

TINY, SLOW, LONG = (f"tests.processes.tasks:{name}" for name in ("Tiny", "Slow", "Long"))
TASKS = (TINY, SLOW, "tests.processes.tasks:Sleepy", LONG, "ml_tasks.breast_cancer:BreastCancer")


@dataclass
class Consortium:
    """A consortium that runs."""

    home: Home
    client: SyncPrefectClient

    def plan(self, **fields: object) -> Plan:
        """A small plan over all sites; ``fields`` override."""
        raw = {
            "name": "tiny",
            "task": TINY,
            "data": "tiny",
            "sites": list(self.home.sites),
            "rounds": 2,
            "local": {"steps": 3, "batch_size": 4},
            "deadlines": {"join_s": 90 + 10 * len(self.home.sites), "step_s": 60, "train_s": 90, "finish_s": 90},
        }
        return make_plan({**raw, **fields}, source="test")

    def submit(self, plan: Plan) -> UUID:
        """Start a training; gives its flow run."""
        deployment = eventually(self.deployment, 60)
        return self.client.create_flow_run_from_deployment(
            deployment, parameters={"plan": plan.model_dump(mode="json")}
        ).id

    def deployment(self) -> UUID | None:
        """The deployment that starts trainings, once the coordinator has entered it."""
        try:
            return self.client.read_deployment_by_name(f"{TRAINING}/{TRAINING_DEPLOYMENT}").id
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
        asked = {"prefix": "", "limit": 200, "exclude_keys": []}
        found = self.client._client.post(f"/flow_runs/{run}/input/filter", json=asked).json()
        return [one["key"] for one in found]

    def online(self, site: str) -> bool:
        """Whether a site's worker is seen to be there."""
        try:
            workers = self.client.read_workers_for_work_pool(pool_of(site))
        except (ObjectNotFound, HTTPStatusError):  # not registered yet
            return False
        return "ONLINE" in {worker.status for worker in workers}

    def start(self, site: str) -> None:
        """Start a site that is not there."""
        self.home.processes[site] = start_party(["site", "serve"], self.home.site(site))

    def serve(self) -> None:
        """Start the server again, on its port and database."""
        port = int(self.home.url.rsplit(":", 1)[1].split("/")[0])
        self.home.processes["server"] = start_server(self.home.folder / "server", port)

    def stop(self, name: str) -> None:
        """End a party as its operator would."""
        end([self.home.processes.pop(name)])

    def child(self, party: str) -> int:
        """The process that a party's worker has started last."""
        return eventually(lambda: children(self.home.processes[party].pid), 60)[-1]

    def kill(self, party: str) -> None:
        """kill -9 a worker and what it runs."""
        worker = self.home.processes.pop(party)
        for child in children(worker.pid):
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
    prepare: Callable[[Home], None] = lambda home: None,
) -> Iterator[Consortium]:
    """Run a consortium; ``start`` names the sites that are there at first, ``tables`` lines of policy by site.

    ``prepare`` is called with the folders before anybody starts.
    """
    port, names = free_port(), site_names(sites) if isinstance(sites, int) else tuple(sites)
    url = f"http://127.0.0.1:{port}/api"
    home = found_home(folder, names, url, TASKS)
    for site, lines in (tables or {}).items():
        path = home.site(site) / SITE_FILE
        kept = [line for line in path.read_text().splitlines() if line.split(" = ")[0] not in lines]
        path.write_text("\n".join([*kept, lines]) + "\n")
    prepare(home)
    server = start_server(folder / "server", port, database)
    with running(home, server, None if start is None else tuple(start)), temporary_settings({PREFECT_API_URL: url}):
        with get_client(sync_client=True) as client:
            yield Consortium(home, client)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def eventually(look: Callable[[], T | None], timeout_s: float, pause_s: float = 0.2) -> T:
    """Look until there is something, and fail after a time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(pause_s)
    raise AssertionError(f"nothing within {timeout_s:g} s")
