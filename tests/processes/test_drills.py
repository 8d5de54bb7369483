"""What goes wrong for a while, as processes with an exchange on S3: a training goes on when it is over, with no help.

One training lives through all of it, in this order. Each drill prints how long the training took to go on with every
site. ``FEDSEAL_TEST_HELD_S=200`` is the long form of the second.
"""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling

from deploy.up import Home
from flows.settings import COORDINATOR_FILE, SITE_FILE
from tests.processes.harness import (
    PATIENCE,
    TINY,
    Consortium,
    assert_no_traceback,
    assert_one_vector_a_mask,
    consortium,
    eventually,
    fill,
    state_of,
)
from tests.processes.relay import Line, relay
from tests.processes.s3 import BUCKET, bucket, options

pytestmark = pytest.mark.slow

SITES = ("north", "east", "south", "west")
DEADLINES = {"join_s": 120 * PATIENCE, "step_s": 45, "train_s": 45, "finish_s": 60}
HELD_S = float(os.environ.get("FEDSEAL_TEST_HELD_S", "40"))
DELETED_S, FULL_S = 16.0, 6.0


@dataclass(frozen=True)
class Drills:
    """A consortium, its bucket, the line to it, and a training that goes on."""

    consortium: Consortium
    files: Any
    line: Line
    run: UUID

    def goes_on(self, timeout_s: float, *, with_all: bool = True) -> float:
        """Wait for a sum that began after now, of every site; gives the seconds until it is finished."""
        began, before = time.monotonic(), self.consortium.sums(self.run)

        def look() -> bool:
            records = self.consortium.progress(self.run)["records"][before + 1 :]
            return any(not with_all or set(one["survivors"]) == set(SITES) for one in records)

        eventually(look, timeout_s, tell=lambda: self.consortium.progress(self.run)["records"][-1])
        assert state_of(self.consortium.client.read_flow_run(self.run)) is StateType.RUNNING
        return time.monotonic() - began

    def log(self) -> str:
        """What the coordinator has logged."""
        return (self.consortium.home.coordinator / "coordinator.log").read_text()


@pytest.fixture(scope="module")
def drills(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drills]:
    """Four sites that train on S3; the vault of west is a small disk, where this machine lets us mount one."""
    folder = tmp_path_factory.mktemp("drills")
    with bucket() as (port, files):
        line = Line(port)
        with relay(line) as relayed:

            def name_bucket(home: Home) -> None:
                words = ", ".join(f'{name} = "{value}"' for name, value in options(relayed).items())
                for path in (home.coordinator / COORDINATOR_FILE, *(home.site(site) / SITE_FILE for site in SITES)):
                    text = path.read_text().replace(f"file://{folder}/exchange", f"s3://{BUCKET}/drills")
                    path.write_text(text.replace("[exchange]\n", f"[exchange]\noptions = {{ {words} }}\n"))

            with consortium(folder, SITES, tasks=(TINY,), prepare=name_bucket, small_disk="west") as running:
                for site in SITES:
                    eventually(lambda site=site: running.online(site), 120)
                run = running.submit(running.plan(rounds=900, min_sites=3, deadlines=DEADLINES))
                eventually(lambda: running.sums(run) >= 2, 180)
                yield Drills(running, files, line, run)


def test_two_sites_that_restart_at_once_are_waited_for(drills: Drills) -> None:
    for site in ("north", "east"):
        drills.consortium.stop(site)
    for site in ("north", "east"):
        drills.consortium.start(site)
    print(f"two sites restarted: {drills.goes_on(180):.1f} s")


def test_an_exchange_that_hangs_is_named_and_waited_for(drills: Drills) -> None:
    before = len(drills.log())
    drills.line.held = True
    time.sleep(HELD_S)
    drills.line.held = False
    print(f"S3 had hung for {HELD_S:g} s: {drills.goes_on(240):.1f} s")
    told = drills.log()[before:]
    assert "the exchange has not answered" in told, told
    assert "the exchange answers again" in told, told


def test_objects_that_are_deleted_for_a_while_fail_attempts_and_not_the_training(drills: Drills) -> None:
    over = threading.Event()

    def delete() -> None:
        while not over.wait(0.1):
            for path in drills.files.find(f"{BUCKET}/drills"):
                try:
                    drills.files.rm_file(path)
                except OSError:
                    continue  # its owner was faster

    deleting = threading.Thread(target=delete)
    deleting.start()
    time.sleep(DELETED_S)
    over.set()
    deleting.join()
    print(f"objects had been deleted for {DELETED_S:g} s: {drills.goes_on(180):.1f} s")


def test_a_disk_that_is_full_at_the_threshold_is_waited_for(drills: Drills) -> None:
    disk = drills.consortium.home.site("west") / "vault"
    if not os.path.ismount(disk):
        pytest.skip("this machine does not let us mount a small disk")
    drills.consortium.stop("north")
    drills.goes_on(180, with_all=False)
    log = drills.consortium.home.site("west") / "site.log"
    filler = fill(disk)
    eventually(lambda: "disk is full" in log.read_text(), 60)
    time.sleep(FULL_S)
    filler.unlink()
    print(f"a disk had been full for {FULL_S:g} s: {drills.goes_on(180, with_all=False):.1f} s")
    drills.consortium.start("north")
    print(f"and a site was back: {drills.goes_on(180):.1f} s")
    assert list(disk.rglob("*.unfinished")) == []
    with drills.consortium.vault("west") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_after_all_of_it_no_mask_was_used_twice_and_nothing_is_left(drills: Drills) -> None:
    home = drills.consortium
    home.client.set_flow_run_state(drills.run, Cancelling())
    assert state_of(home.ended(drills.run, 60)) is StateType.CANCELLED
    home.settled(drills.run)
    assert_one_vector_a_mask(home, drills.run)
    eventually(lambda: not drills.files.find(f"{BUCKET}/drills"), 60)
    assert_no_traceback(home)
