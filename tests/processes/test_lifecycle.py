"""Sites, a coordinator and a Prefect server as processes: what becomes of a training when one of them goes away.

One consortium serves all tests here, in this order: to start one takes the better part of a minute on two cores.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling, Scheduled

from deploy.entries import GOES_ON
from deploy.up import found_home, start_party
from flows.settings import PARTICIPATE, SITE_FILE, marked, pool_of
from protocols.consortium import read_consortium
from protocols.vault import Vault
from tests.flows.consortium import trial
from tests.processes.harness import (
    LONG,
    PATIENCE,
    SLOW,
    TINY,
    Consortium,
    assert_no_traceback,
    assert_one_vector_a_mask,
    consortium,
    eventually,
    fill,
    state_of,
)

pytestmark = pytest.mark.slow

SITES = ("north", "east", "south", "west")
OUTAGE_ROUNDS = 5
"""Enough to be in one when exchange and server go away, and to end with all sites: a training waits for both."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Four sites that serve; the vault of west is a small disk of its own, where this machine lets us mount one."""
    folder = tmp_path_factory.mktemp("consortium")
    with consortium(folder, SITES, tables={"west": f'tasks = ["{TINY}", "{LONG}"]'}, small_disk="west") as running:
        for site in SITES:
            eventually(lambda site=site: running.online(site), 120)
        yield running


def fedseal(*words: str | Path) -> str:
    """Run a command of a site as its data steward does; gives what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", *map(str, words)], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout + done.stderr


@contextmanager
def approval_by_hand(folder: Path) -> Iterator[Path]:
    """Have a site's data steward approve each training."""
    table = folder / SITE_FILE
    automatic = table.read_text()
    table.write_text(automatic.replace('approval = "automatic"', 'approval = "by-hand"'))
    try:
        yield folder
    finally:
        table.write_text(automatic)


def states(home: Consortium, run: UUID, site: str) -> list[StateType]:
    """How the participations of a site stand, oldest first."""
    return [state_of(one) for one in home.participations(run, site)]


def survivors(report: dict) -> list[set[str]]:
    """The survivors of each round."""
    return [set(one["survivors"]) for one in report["rounds"]]


def assert_clean(home: Consortium, run: UUID) -> None:
    """Nothing of a finished training is left on the exchange or in the mailboxes."""
    home.settled(run)
    assert [path for path in (home.home.folder / "exchange").rglob("*") if path.is_file()] == []
    for one in [run, *(one.id for site in SITES for one in home.participations(run, site))]:
        eventually(lambda one=one: home.inputs(one) == [], 20, tell=lambda one=one: home.inputs(one))


def assert_cancelled(home: Consortium, run: UUID) -> None:
    """Cancel a training, which ends it and its participations; clear what it leaves, since it might be taken up."""
    home.client.set_flow_run_state(run, Cancelling())
    assert state_of(home.ended(run, 60)) == StateType.CANCELLED
    home.settled(run)
    for site in SITES:
        shutil.rmtree(home.home.folder / "exchange" / site, ignore_errors=True)


def test_a_training_over_processes_ends_with_the_model_of_local_mode_whatever_the_server_shows_a_worker(
    home: Consortium, tmp_path: Path
) -> None:
    """Entry point, pull steps and job variables of a deployment are read by nobody; other parameters are refused."""
    canary = tmp_path / "canary"
    touch = f"touch {canary}"
    deployment = home.client.read_deployment_by_name(f"{PARTICIPATE}/{marked('north', home.key)}")
    http = home.client._client
    poison = {
        "entrypoint": "os:system",
        "path": str(tmp_path),
        "pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": touch}}],
        "job_variables": {"command": touch, "env": {"PYTHONSTARTUP": str(canary)}},
    }
    http.patch(f"/deployments/{deployment.id}", json=poison).raise_for_status()
    variables = {"properties": {"command": {"type": "string", "default": touch}}}
    template = {"job_configuration": {"command": "{{ command }}"}, "variables": variables}
    http.patch(f"/work_pools/{pool_of('north', home.key)}", json={"base_job_template": template}).raise_for_status()
    parameters = {"training": "t", "training_run": str(deployment.id), "command": touch}
    asked = {"parameters": parameters, "enforce_parameter_schema": False, "job_variables": {"command": touch}}
    stray = UUID(http.post(f"/deployments/{deployment.id}/create_flow_run", json=asked).json()["id"])

    plan = home.plan(seed=7)
    run = home.submit(plan)
    report = home.finished(run)
    refused = home.ended(stray)
    assert state_of(refused) == StateType.FAILED
    assert "Refused: the parameters are not those of a participation" in str(refused.state.message)
    assert not canary.exists()

    assert survivors(report) == [set(SITES)] * 2
    home.settled(run)
    assert {site: states(home, run, site) for site in SITES} == {site: [StateType.COMPLETED] for site in SITES}
    assert_clean(home, run)
    assert_no_traceback(home)
    with trial(tmp_path / "local", plan, name="local") as local:
        local.train()
        assert home.progress(run)["model"] == local.live.checkpoint.progress.model


def test_a_plan_that_cannot_be_used_fails_its_run_with_one_line(home: Consortium) -> None:
    good = home.plan().model_dump(mode="json")
    wrong = {
        "not in the consortium file": good | {"sites": [*SITES[:3], "nowhere"]},
        "a site is named twice": good | {"sites": [*SITES, "north"]},
        "not on the coordinator's list": good | {"task": "os:system"},
        "is no plan": "not a plan",
    }
    deployment = eventually(home.deployment, 60)
    runs = {}
    for line, plan in wrong.items():
        asked = {"parameters": {"plan": plan}, "enforce_parameter_schema": False}
        found = home.client._client.post(f"/deployments/{deployment}/create_flow_run", json=asked)
        runs[line] = UUID(found.json()["id"])
    for line, run in runs.items():
        ended = home.ended(run)
        assert state_of(ended) == StateType.FAILED
        assert line in str(ended.state.message)
        assert "\n" not in str(ended.state.message)
    assert_no_traceback(home)


def test_a_killed_participation_and_a_killed_worker_come_back_in_a_new_participation(home: Consortium) -> None:
    run = home.submit(home.plan(task=LONG, rounds=10, min_sites=3, name="kills"))
    eventually(lambda: home.sums(run) >= 1, 120)
    eventually(lambda: any("train[" in one.name for one in home.tasks(home.rounds(run)[-1].id)), 30)
    os.kill(home.child("north"), signal.SIGKILL)
    eventually(lambda: states(home, run, "north") == [StateType.CRASHED, StateType.RUNNING], 60)

    child = home.child("east")
    worker = home.home.processes.pop("east")
    worker.kill()
    worker.wait()
    eventually(lambda: not Path(f"/proc/{child}").exists(), 10)
    home.start("east")
    report = home.finished(run)
    home.settled(run)
    for site, ended in (("north", StateType.COMPLETED), ("east", StateType.COMPLETED), ("south", None), ("west", None)):
        assert states(home, run, site) == ([StateType.CRASHED, ended] if ended else [StateType.COMPLETED])
        assert [one.name[-2:] for one in home.participations(run, site)] == (["-1", "-2"] if ended else ["-1"])
    assert survivors(report)[-1] == set(SITES), report["rounds"]
    assert_one_vector_a_mask(home, run)
    assert_clean(home, run)
    assert_no_traceback(home)


def test_a_killed_training_is_crashed_and_its_retry_goes_on_where_it_was(home: Consortium) -> None:
    run = home.submit(home.plan(task=LONG, rounds=3, min_sites=3, name="retry"))
    eventually(lambda: home.sums(run) >= 1, 120)
    before = home.progress(run)
    os.kill(home.child("coordinator"), signal.SIGKILL)
    assert state_of(home.ended(run, 30)) == StateType.CRASHED
    home.settled(run)
    assert states(home, run, "north") == [StateType.COMPLETED]

    home.client.set_flow_run_state(run, Scheduled(name="AwaitingRetry"))
    eventually(lambda: state_of(home.client.read_flow_run(run)) == StateType.RUNNING, 60)
    report = home.finished(run)
    after = home.progress(run)
    assert after["records"][: len(before["records"])] == before["records"]
    assert (after["training"], [one["round"] for one in report["rounds"]]) == (before["training"], [1, 2, 3])
    begun = [(one.parameters["round"], one.parameters["attempt"]) for one in home.rounds(run)]
    assert len(set(begun)) == len(begun)
    finished = [one["round"] for one in before["records"]]
    assert [number for number, _ in begun if number in finished] == finished
    assert_one_vector_a_mask(home, run)
    assert_clean(home, run)
    assert_no_traceback(home)


def test_a_restarted_server_and_an_exchange_that_is_away_delay_a_training(home: Consortium, tmp_path: Path) -> None:
    run = home.submit(home.plan(task=LONG, rounds=OUTAGE_ROUNDS, name="outage"))
    eventually(lambda: home.sums(run) >= 1, 120)
    exchange = home.home.folder / "exchange"
    exchange.rename(exchange.with_name("away"))
    exchange.touch()
    logs = [home.home.coordinator / "coordinator.log", *(home.home.site(site) / "site.log" for site in SITES)]
    line = "the exchange cannot be used (Not a directory); trying again in 0.5 s"
    eventually(lambda: any(line in log.read_text() for log in logs if log.exists()), 60)
    exchange.unlink()
    exchange.with_name("away").rename(exchange)
    done = home.sums(run)
    eventually(lambda: home.sums(run) > done, 90)

    home.stop("server")
    guests = found_home(tmp_path / "guests", ("guest", "another", "third"), home.home.url)
    home.home.processes["guest"] = start_party(["site", "serve"], guests.site("guest"))
    log = guests.site("guest") / "serve.log"
    eventually(lambda: "does not answer (ConnectError): start it" in log.read_text(), 60)
    home.serve()
    eventually(lambda: home.online("guest", read_consortium(guests.coordinator / "consortium.toml").coordinator), 90)
    assert log.read_text().count("does not answer") == 1
    home.stop("guest")
    report = home.finished(run, 240)
    assert len(report["rounds"]) == OUTAGE_ROUNDS
    assert survivors(report)[-1] == set(SITES), report["rounds"]
    eventually(lambda: all(home.online(site) for site in SITES), 60)
    assert_clean(home, run)
    for path in home.home.folder.rglob(
        "processes.log"
    ):  # Prefect's loggers and events have no manners without a server
        os.truncate(path, 0)
    assert_no_traceback(home)


def test_to_cancel_a_participation_is_to_withdraw(home: Consortium) -> None:
    plan = home.plan(task=LONG, rounds=5, min_sites=3, name="cancel")
    run = home.submit(plan)
    eventually(lambda: home.sums(run) >= 1, 120)
    name = home.runs(run).name
    (participation,) = home.participations(run, "north")
    home.client.set_flow_run_state(participation.id, Cancelling())
    report = home.finished(run)
    assert set(SITES) in survivors(report)
    assert survivors(report)[-1] == {"east", "south", "west"}
    assert report["rounds"][-1]["reasons"]["north"] == "has withdrawn from this training"
    assert states(home, run, "north") == [StateType.CANCELLED]
    with home.vault("north") as db:
        asked = db.execute("SELECT word, plan FROM withdrawals WHERE training = ?", (name,))
        assert asked.fetchall() == [("revoked", plan.digest)]
    assert f"{name}: revoked" in fedseal("site", "status", "--folder", home.home.site("north"))
    assert_clean(home, run)


def test_to_revoke_is_to_withdraw_from_a_training_that_runs(home: Consortium) -> None:
    run = home.submit(home.plan(task=LONG, rounds=30, min_sites=3, name="revoke"))
    eventually(lambda: home.sums(run) >= 1, 120)
    fedseal("site", "revoke", home.runs(run).name, "--folder", home.home.site("east"))
    eventually(lambda: states(home, run, "east") == [StateType.CANCELLED], 30)
    done = home.sums(run)
    eventually(lambda: home.sums(run) > done + 1, 60)
    assert_cancelled(home, run)
    assert {site: states(home, run, site) for site in SITES if site != "east"} == {
        site: [StateType.COMPLETED] for site in SITES if site != "east"
    }
    assert states(home, run, "east") == [StateType.CANCELLED]
    assert_no_traceback(home)


def test_a_refusal_is_told(home: Consortium) -> None:
    run = home.submit(home.plan(task=SLOW, min_sites=3, name="refusal"))
    report = home.finished(run)
    assert survivors(report) == [{"north", "east", "south"}] * 2
    assert "is not on this site's list" in report["rounds"][0]["reasons"]["west"]
    joins = {one.name: one for one in home.tasks(run) if one.name.startswith("join[")}
    assert joins["join[west]"].state.name == "No answer"
    assert "is not on this site's list" in joins["join[west]"].state.message
    assert joins["join[east]"].state.name == "Completed"


def test_an_absence_and_a_pending_approval_are_told_and_a_late_site_is_taken_in(home: Consortium) -> None:
    home.stop("west")
    deadlines = {"join_s": 30 * PATIENCE, "step_s": 60, "train_s": 90, "finish_s": 90}
    with approval_by_hand(home.home.site("east")) as folder:
        run = home.submit(home.plan(task=LONG, rounds=90, min_sites=3, name="late", deadlines=deadlines))
        status = partial(fedseal, "site", "status", "--folder", folder)
        waiting = eventually(lambda: re.search(r"(late-\w+): pending", status()), 150)
        digest = re.search(r"plan (\w{64}): pending", fedseal("site", "show", waiting[1], "--folder", folder))
        fedseal("site", "approve", waiting[1], digest[1], "--folder", folder)
        assert f"{waiting[1]}: approved" in status()
        assert '"name": "late"' in fedseal("site", "show", waiting[1], "--text", "--folder", folder)
        eventually(lambda: home.sums(run) >= 1, 120)
        home.start("west")
        eventually(lambda: set(home.progress(run)["records"][-1]["survivors"]) == set(SITES), 120)
    first = home.progress(run)["records"][0]
    assert set(first["survivors"]) == {"north", "east", "south"}
    reason = first["dropped"]["west"]
    assert "not online" in reason or "no answer" in reason  # a worker that has ended seems to be there for a while
    assert_cancelled(home, run)
    assert_no_traceback(home)


def test_a_site_whose_disk_is_full_refuses_in_one_line_and_goes_on_when_there_is_room(home: Consortium) -> None:
    disk = home.home.site("west") / "vault"
    if not os.path.ismount(disk):
        pytest.skip("this machine does not let us mount a small disk")
    run = home.submit(home.plan(task=LONG, rounds=6, min_sites=3, name="full"))
    eventually(lambda: home.sums(run) >= 1, 120)
    filler = fill(disk)
    log = home.home.site("west") / "site.log"
    eventually(lambda: "disk is full" in log.read_text(), 60)
    done = home.sums(run)
    eventually(lambda: home.sums(run) > done, 60)
    filler.unlink()
    report = home.finished(run)
    without = [one for one in report["rounds"] if "west" in one["dropped"]]
    assert without and all("disk is full" in one["reasons"]["west"] for one in without)
    assert survivors(report)[-1] == set(SITES), report["rounds"]
    assert list(disk.rglob("*.unfinished")) == []
    with home.vault("west") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert "Traceback" not in log.read_text()
    assert_one_vector_a_mask(home, run)
    assert_clean(home, run)


def test_one_worker_serves_a_folder_and_a_stopped_one_says_what_became_of_its_runs(home: Consortium) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "site", "serve", "--folder", str(home.home.site("south"))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 2
    assert second.stderr.startswith("fedseal: ") and second.stderr.count("\n") == 1
    assert "another fedseal site serve is running" in second.stderr
    run = home.submit(home.plan(task=LONG, rounds=30, min_sites=3, name="stop"))
    eventually(lambda: home.sums(run) >= 1, 120)
    began = time.monotonic()
    home.stop("south")
    assert time.monotonic() - began < 10
    assert states(home, run, "south")[0] == StateType.CRASHED
    home.stop("coordinator")
    ended = home.client.read_flow_run(run)
    assert (state_of(ended), ended.state.message) == (StateType.SCHEDULED, GOES_ON)
    assert {states(home, run, site)[-1] for site in SITES if site != "south"} == {StateType.RUNNING}
    assert Vault(home.home.site("south") / "vault").identity.name == "south"
    assert_no_traceback(home)
