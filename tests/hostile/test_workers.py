"""What the Prefect API shows a site's worker: entry points, job variables, parameters, pools; none of it is run.

All attacks are made first, since a worker looks for runs every ten seconds; each test tells what became of its own.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Completed, Running

from flows.settings import PARTICIPATE, marked, pool_of
from tests.hostile.hand import Attacker, Hand, Watch, place
from tests.processes.harness import Consortium, eventually

pytestmark = pytest.mark.slow

GOOD = {"training": "nobody-s", "training_run": str(uuid4())}
PARAMETERS: dict[str, dict[str, Any]] = {
    "none": {},
    "one is missing": {"training": "t"},
    "a command": GOOD | {"command": "touch /x"},
    "an environment": GOOD | {"env": {"PYTHONSTARTUP": "/x"}},
    "a path": GOOD | {"training": "../../x"},
    "an absolute path": GOOD | {"training": "/etc/passwd"},
    "an option": GOOD | {"training": "--folder=/"},
    "a line feed": GOOD | {"training": "t\n"},
    "NUL": GOOD | {"training": "t\x00"},
    "another alphabet": GOOD | {"training": "\u0442"},
    "100,000 letters": GOOD | {"training": "t" * 100_000},
    "a list": GOOD | {"training": ["t"]},
    "a number": GOOD | {"training": 1e300},
    "deep JSON": GOOD | {"training": {"a": {"a": {"a": {"a": [[[[[[]]]]]]}}}}},
    "no run": GOOD | {"training_run": "../" + "0" * 32},
}


class Siege:
    """Every attack on the worker of south, and the runs that came of it."""

    def __init__(self, home: Consortium, canary: Path) -> None:
        self.home, self.canary, self.http = home, canary, home.client._client
        self.watch = Watch(home, "south")
        touch = f"touch {canary}"
        self.poison = {"command": touch, "env": {"PYTHONSTARTUP": str(canary)}, "image": "evil", "working_dir": "/"}
        self.deployment = home.client.read_deployment_by_name(f"{PARTICIPATE}/{marked('south', home.key)}").id
        self.patch(
            f"/deployments/{self.deployment}",
            entrypoint=f"{canary.parent}/evil.py:main",
            path=str(canary.parent),
            pull_steps=[{"prefect.deployments.steps.run_shell_script": {"script": touch}}],
            job_variables=self.poison,
        )
        variables = {"type": "object", "properties": {"command": {"type": "string", "default": touch}}}
        template = {"job_configuration": {"command": "{{ command }}", "env": {}}, "variables": variables}
        self.patch(f"/work_pools/{pool_of('south', home.key)}", base_job_template=template)
        (canary.parent / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
        self.runs = {name: self.run(self.deployment, given) for name, given in PARAMETERS.items()}
        self.ghost = self.run(self.deployment, GOOD)
        self.stranger = self.run(self.elsewhere("stranger", "evil-flow"), GOOD)
        self.bare = self.without_deployment()

    def patch(self, where: str, /, **fields: Any) -> None:
        """Change something at the server."""
        self.http.patch(where, json=fields).raise_for_status()

    def run(self, deployment: UUID, parameters: dict[str, Any]) -> UUID:
        """Start a run with any parameters."""
        asked = {"parameters": parameters, "enforce_parameter_schema": False, "job_variables": self.poison}
        found = self.http.post(f"/deployments/{deployment}/create_flow_run", json=asked)
        return UUID(found.json()["id"])

    def elsewhere(self, name: str, flow: str) -> UUID:
        """Another flow's deployment in the pool of south."""
        return self.home.client.create_deployment(
            self.home.client.create_flow_from_name(flow),
            name,
            work_pool_name=pool_of("south", self.home.key),
            entrypoint=f"{self.canary.parent}/evil.py:main",
            job_variables=self.poison,
        )

    def without_deployment(self) -> UUID:
        """A run of no deployment in the pool of south."""
        asked = {
            "flow_id": str(self.home.client.create_flow_from_name("evil-flow")),
            "parameters": GOOD,
            "work_pool_name": pool_of("south", self.home.key),
            "job_variables": self.poison,
            "state": {"type": "SCHEDULED"},
        }
        return UUID(self.http.post("/flow_runs/", json=asked).json()["id"])


@pytest.fixture(scope="module")
def siege(home: Consortium, hand: Hand, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    """All attacks; whatever became of them, nothing of the attacker's was run, and the worker is still there."""
    siege = Siege(home, tmp_path_factory.mktemp("evil") / "canary")
    yield siege
    assert not siege.canary.exists()
    assert home.online("south")
    hand.round().assert_honest()


@pytest.mark.parametrize("what", PARAMETERS)
def test_a_run_with_other_parameters_is_not_started_and_the_site_s_log_tells_it(siege: Siege, what: str) -> None:
    ended = siege.home.ended(siege.runs[what], 60)
    assert ended.state is not None and ended.state.type == StateType.FAILED
    assert ended.state.message == "Refused: the parameters are not those of a participation."
    siege.watch.tells(f"did not start flow run {ended.id}: Refused: the parameters are not those of a participation.")


@pytest.mark.parametrize("which", ["ghost", "stranger", "bare"])
def test_a_participation_whose_training_is_not_there_runs_the_site_s_own_program_and_ends(
    siege: Siege, which: str
) -> None:
    """Whichever deployment it is of, another flow's or none: entry point and job variables are read by nobody."""
    ended = siege.home.ended(getattr(siege, which), 90)
    assert ended.state is not None and ended.state.type == StateType.COMPLETED
    assert ended.state.message == "This run, or the training's, is not there."


def test_a_pool_that_is_replaced_by_one_of_another_type_starts_nothing_else(
    home: Consortium, siege: Siege, tmp_path: Path
) -> None:
    canary, http = tmp_path / "canary", home.client._client
    pool = pool_of("west", home.key)
    http.delete(f"/work_pools/{pool}").raise_for_status()
    words = f"touch {canary}"
    template = {"job_configuration": {"command": words}, "variables": {"type": "object", "properties": {}}}
    http.post("/work_pools/", json={"name": pool, "type": "process", "base_job_template": template}).raise_for_status()
    deployment = home.client.read_deployment_by_name(f"{PARTICIPATE}/{marked('west', home.key)}").id
    http.patch(f"/deployments/{deployment}", json={"work_pool_name": pool}).raise_for_status()
    ended = home.ended(siege.run(deployment, GOOD), 90)
    assert ended.state is not None and ended.state.message == "This run, or the training's, is not there."
    eventually(lambda: home.online("west"), 60)
    assert not canary.exists()


def test_a_schedule_that_floods_a_site_starts_nothing(home: Consortium, siege: Siege, attacker: Attacker) -> None:
    http = home.client._client
    schedule = [{"schedule": {"interval": 1, "anchor_date": "2026-01-01T00:00:00Z"}, "active": True}]
    http.post(f"/deployments/{siege.deployment}/schedules", json=schedule).raise_for_status()
    runs = [siege.run(siege.deployment, {"command": "x"}) for _ in range(20)]
    for run in runs:
        assert home.ended(run, 60).state.type == StateType.FAILED
    for one in http.get(f"/deployments/{siege.deployment}/schedules").json():
        http.delete(f"/deployments/{siege.deployment}/schedules/{one['id']}").raise_for_status()


def test_a_participation_that_is_deleted_ends_with_its_process(home: Consortium, attacker: Attacker) -> None:
    run = home.client.create_flow_run(place, state=Running()).id
    deployment = home.client.read_deployment_by_name(f"{PARTICIPATE}/{marked('east', home.key)}").id
    given = {"training": "deleted", "training_run": str(run)}
    participation = home.client.create_flow_run_from_deployment(deployment, parameters=given).id
    hand = Hand(home, attacker, home.plan(name="deleted"), "deleted", run)
    hand.boxes["east"] = hand.box(participation)
    process = eventually(lambda: hand.process("east"), 60)
    eventually(lambda: hand.state(participation) == StateType.RUNNING, 60)
    home.client.delete_flow_run(participation)
    eventually(lambda: not Path(f"/proc/{process}").exists(), 60)
    home.client.set_flow_run_state(run, Completed(), force=True)
