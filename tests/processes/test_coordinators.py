"""Coordinators as processes: one that was killed and serves again, a second with its key, and another consortium's.

One consortium of three sites serves all tests here, in this order. ``FEDSEAL_TEST_NEIGHBOURS=2`` is a long form, of ten
minutes: two other consortia, of sites with the same names, train on its server while its coordinator is killed.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from deploy.entries import INTERRUPTED
from deploy.up import start_party
from flows.settings import marked
from tests.processes.harness import (
    LONG,
    PATIENCE,
    Consortium,
    assert_no_traceback,
    assert_one_vector_a_mask,
    consortium,
    eventually,
    neighbour,
    state_of,
)

pytestmark = pytest.mark.slow

SITES = ("north", "east", "south")
RESUMED_S = 60.0
"""Seconds from a coordinator's start until the training that was killed with it runs again."""
NEIGHBOURS = int(os.environ.get("FEDSEAL_TEST_NEIGHBOURS", "0"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Three sites that serve."""
    with consortium(tmp_path_factory.mktemp("consortium"), SITES) as running:
        for site in SITES:
            eventually(lambda site=site: running.online(site), 120)
        yield running


def fedseal(*words: str | Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command as an operator who has set nothing in the environment."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-m", "deploy.cli", *map(str, words)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout_s * PATIENCE, check=False
    )


def plan_file(home: Consortium, folder: Path, **fields: object) -> Path:
    """A plan as a TOML file."""
    raw = json.loads(home.plan(**fields).model_dump_json(exclude_unset=True))
    tables = {name: value for name, value in raw.items() if isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in raw.items() if name not in tables]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{field} = {json.dumps(value)}" for field, value in table.items() if value != {})]
    path = folder / "plan.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_coordinator_that_was_killed_takes_its_trainings_up_and_leaves_those_of_others(
    home: Consortium, tmp_path: Path
) -> None:
    """Beside it a second one with its key is refused, and one of another consortium on the same server serves."""
    run = home.submit(home.plan(task=LONG, rounds=200, name="killed"))
    eventually(lambda: home.sums(run) >= 1, 180)

    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("runs", "prefect", "serving", "*.log")
    shutil.copytree(home.home.coordinator, copy, ignore=ignored)
    second = fedseal("coordinator", "serve", "--folder", copy)
    assert second.returncode == 2, second.stderr
    assert "fedseal: another fedseal coordinator serve is running with this key" in second.stderr.splitlines()[-1]

    with ExitStack() as stack:
        folders = [tmp_path / f"other-{number}" for number in range(max(NEIGHBOURS, 1))]
        others = [stack.enter_context(neighbour(home, folder, sites=NEIGHBOURS > 0)) for folder in folders]
        for other in others:
            eventually(lambda other=other: "the coordinator serves" in other.home.log("coordinator").read_text(), 90)
        theirs = [
            (other, other.submit(other.plan(task=LONG, rounds=3, name="beside"))) for other in others[:NEIGHBOURS]
        ]
        for other, beside in theirs:
            eventually(lambda other=other, beside=beside: other.sums(beside) >= 1, 240)
        assert state_of(home.client.read_flow_run(run)) == StateType.RUNNING
        eventually(lambda: StateType.RUNNING in {state_of(one) for one in home.rounds(run)}, 60, 0.05)
        home.kill("coordinator")
        before = home.progress(run)
        began = time.monotonic()
        home.home.processes["coordinator"] = start_party(["coordinator", "serve"], home.home.coordinator)
        eventually(lambda: INTERRUPTED in {one.state.name for one in home.rounds(run) if one.state}, RESUMED_S)
        eventually(lambda: state_of(home.client.read_flow_run(run)) == StateType.RUNNING, RESUMED_S)
        resumed_s = time.monotonic() - began
        assert resumed_s < RESUMED_S * PATIENCE
        print(f"resumed within {resumed_s:.1f} s")
        eventually(lambda: home.sums(run) >= len(before["records"]) + 2, 120)
        for other, beside in theirs:
            report = other.finished(beside)
            assert [(one["attempt"], set(one["survivors"])) for one in report["rounds"]] == [(1, set(SITES))] * 3
            other.settled(beside)
            assert [len(other.participations(beside, site)) for site in SITES] == [1] * len(SITES)
            assert_no_traceback(other)
        assert all(other.home.processes["coordinator"].poll() is None for other in others)
    assert state_of(home.client.read_flow_run(run)) == StateType.RUNNING, "nor is it ended by those that end"
    home.client.set_flow_run_state(run, Cancelling())
    assert state_of(home.ended(run, 60)) == StateType.CANCELLED
    after = home.progress(run)["records"]
    assert after[: len(before["records"])] == before["records"]
    assert [one["round"] for one in after] == list(range(1, len(after) + 1))
    for site in SITES:
        (participation,) = home.participations(run, site)  # nobody had to join again
        delta = participation.estimated_start_time_delta
        assert delta is not None and delta.total_seconds() < 60 * PATIENCE, "or the UI would call it late"
    assert_one_vector_a_mask(home, run)
    assert_no_traceback(home)


def test_a_published_plan_is_started_by_its_name_and_keeps_running_when_it_is_withdrawn(
    home: Consortium, tmp_path: Path
) -> None:
    folder = ("--folder", home.home.coordinator)
    plan = plan_file(home, tmp_path, task=LONG, rounds=9, name="mine")
    done = fedseal("coordinator", "publish", plan, "--open", "rounds=1..9", "--interval", "86400", *folder)
    assert (done.returncode, done.stdout) == (0, f"federated-training/{marked('mine', home.key)}\n"), done.stderr
    deployment = home.client.read_deployment_by_name(done.stdout.strip())
    assert len(home.client.read_deployment_schedules(deployment.id)) == 1
    asked = {"parameters": {"rounds": 10}, "enforce_parameter_schema": False}
    found = home.client._client.post(f"/deployments/{deployment.id}/create_flow_run", json=asked)
    many = home.ended(found.json()["id"], 90)
    assert state_of(many) == StateType.FAILED
    assert many.state is not None and many.state.message == "mine: rounds: must be a number from 1 to 9"

    run = home.client.create_flow_run_from_deployment(deployment.id, parameters={"rounds": 2}).id
    eventually(lambda: list((home.home.coordinator / "runs").glob(f"mine-{run.hex[:12]}/plan.json")), 90)
    assert fedseal("coordinator", "publish", "mine", "--remove", *folder).returncode == 0
    again = fedseal("coordinator", "publish", "mine", "--remove", *folder)
    assert (again.returncode, again.stderr) == (2, "fedseal: mine: is not published: nothing is\n")
    assert [one["round"] for one in home.finished(run)["rounds"]] == [1, 2]


def test_a_training_is_followed_to_its_end_with_the_folder_s_server(home: Consortium, tmp_path: Path) -> None:
    """One that ends well is the smoke test, which runs over sites of any names."""
    folder = ("--folder", home.home.coordinator)
    done = fedseal("coordinator", "smoke", *folder)
    assert done.returncode == 0, done.stderr
    assert "training 2.1 over 3 sites" in done.stderr and ": Completed: " in done.stderr
    wrong = plan_file(home, tmp_path, name="wrong", task="tests.processes.tasks:Hoarder")
    done = fedseal("submit", wrong, "--follow", *folder)
    assert done.returncode == 1
    assert "is not on the coordinator's list" in done.stderr and "Traceback" not in done.stderr
