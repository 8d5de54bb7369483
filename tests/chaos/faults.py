"""What can happen to a training: each fault is a function of the consortium that it is done to."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.states import Scheduled

from deploy.up import start_party
from flows.model import shelf
from tests.processes.harness import Consortium, eventually, fill, state_of

WAIT_S = 150.0
"""The longest that a fault waits for its moment, or for what comes of it."""
OUTAGE_S = 60.0
"""The longest that a killed site stays away, in case the others cannot go on without it."""


@dataclass
class Stage:
    """A training that runs, and what has happened to it.

    Attributes:
        home: the consortium.
        run: the training's flow run.
        dice: decides who and when.
        records: where the vectors are recorded, and the clocks lie.
        small_disk: the site whose vault is a disk of its own.
        deadline_s: of the plan's steps.
        away: the site that was killed, and after how many sums it returns.
        told: what happened, for the failing test's message.
    """

    home: Consortium
    run: UUID
    dice: random.Random
    records: Path
    small_disk: str
    deadline_s: float
    away: tuple[str, int, float] | None = None
    told: list[str] = field(default_factory=list)

    def tell(self, what: str) -> None:
        """Keep what happened, and when."""
        self.told.append(f"after {self.home.sums(self.run)} sums: {what}")

    def site(self) -> str:
        """Some site that is there."""
        gone = self.away[0] if self.away else None
        return self.dice.choice([site for site in self.home.home.sites if site != gone])

    def wait(self, longest_s: float) -> None:
        """Wait for a random time."""
        time.sleep(self.dice.uniform(0.0, longest_s))

    def take_back(self, now: bool = False) -> None:
        """Have the killed site return, when its time has come."""
        if self.away and (now or self.home.sums(self.run) >= self.away[1] or time.monotonic() > self.away[2]):
            self.home.start(self.away[0])
            self.tell(f"{self.away[0]} returns")
            self.away = None


Fault = Callable[[Stage], None]


def kill_a_site(stage: Stage) -> None:
    """kill -9 of a site's worker and what it runs; it returns two rounds later."""
    site = stage.site()
    stage.tell(f"kill -9 of {site}")
    stage.home.kill(site)
    stage.away = (site, stage.home.sums(stage.run) + 2, time.monotonic() + OUTAGE_S)


def kill_the_coordinator(stage: Stage) -> None:
    """kill -9 of the training's process, or of the coordinator's worker with it; then a retry of the run."""
    if stage.dice.random() < 0.5:
        stage.tell("kill -9 of the training")
        os.kill(stage.home.child("coordinator"), signal.SIGKILL)
    else:
        stage.tell("kill -9 of the coordinator and of the training")
        stage.home.kill("coordinator")
        stage.wait(3.0)
        stage.home.home.processes["coordinator"] = start_party(["coordinator", "serve"], stage.home.home.coordinator)
    ended = stage.home.ended(stage.run, 90)
    assert state_of(ended) == StateType.CRASHED and ended.state is not None and ended.state.message
    stage.home.client.set_flow_run_state(stage.run, Scheduled(name="AwaitingRetry"))
    eventually(lambda: state_of(stage.home.client.read_flow_run(stage.run)) == StateType.RUNNING, 90)


def restart_the_server(stage: Stage) -> None:
    """The Prefect server ends, well or by kill -9, and starts again some seconds later."""
    if stage.dice.random() < 0.5:
        stage.tell("the server restarts")
        stage.home.stop("server")
    else:
        stage.tell("kill -9 of the server, and its restart")
        server = stage.home.home.processes.pop("server")
        server.kill()
        server.wait()
    stage.wait(3.0)
    stage.home.serve()


def deliver_twice(stage: Stage) -> None:
    """A request or an answer is put into its mailbox once more after it was read and deleted."""
    site = stage.site()
    asked = stage.dice.random() < 0.5
    box = stage.home.participations(stage.run, site)[-1].id if asked else stage.run
    prefix = "ask-" if asked else f"answer-{site}-"
    found = eventually(lambda: stage.home.messages(box, prefix), WAIT_S, pause_s=0.02)
    key, text = sorted(found.items())[0]
    eventually(lambda: key not in stage.home.inputs(box), WAIT_S, pause_s=0.05)
    stage.home.post(box, key, text)
    stage.tell(f"{key[: len(prefix) + 8]} of {site} is delivered twice")


def corrupt_an_object(stage: Stage) -> None:
    """A byte of a vector, or of a model, on the exchange is another one."""
    owner = stage.dice.choice([shelf(stage.home.runs(stage.run).name), stage.site()])
    folder = stage.home.home.folder / "exchange" / owner
    known = {path.name for path in folder.glob("*")}

    def new() -> Path | None:
        return next((path for path in folder.glob("*") if path.name not in known and not path.suffix), None)

    path = eventually(new, WAIT_S, pause_s=0.001)
    content = bytearray(path.read_bytes())
    content[stage.dice.randrange(len(content))] ^= 1 << stage.dice.randrange(8)
    path.write_bytes(content)
    stage.tell(f"a byte of {owner}'s {path.name[:8]} is changed")


def be_slow(stage: Stage) -> None:
    """A site's participation stands still for longer than a step may take."""
    site = stage.site()
    child = stage.home.child(site)
    stage.tell(f"{site} stands still")
    os.kill(child, signal.SIGSTOP)
    time.sleep(stage.deadline_s + stage.dice.uniform(1.0, 4.0))
    os.kill(child, signal.SIGCONT)


def fill_the_disk(stage: Stage) -> None:
    """The disk with a site's vault is full, for a round or until the site has said so."""
    if stage.away and stage.away[0] == stage.small_disk:
        stage.take_back(now=True)
    folder = stage.home.home.site(stage.small_disk)
    if not os.path.ismount(folder / "vault"):
        stage.tell("no disk is filled: this machine does not let us mount one")
        return
    log, done = folder / "site.log", stage.home.sums(stage.run)
    said = log.read_text().count("disk is full")
    filler = fill(folder / "vault")
    stage.tell(f"the disk of {stage.small_disk} is full")
    eventually(lambda: log.read_text().count("disk is full") > said or stage.home.sums(stage.run) > done + 1, WAIT_S)
    filler.unlink()


def move_a_clock(stage: Stage) -> None:
    """The clock of a site's or of the training's process jumps, by up to two days in either direction, and back."""
    party = stage.dice.choice(["coordinator", stage.site()])
    hours = stage.dice.choice([-1, 1]) * stage.dice.uniform(0.5, 48.0)
    stage.tell(f"the clock of {party} jumps by {hours:.1f} hours")
    clock = stage.records / f"{party}.clock"
    clock.write_text(str(hours))
    done = stage.home.sums(stage.run)
    eventually(lambda: stage.home.sums(stage.run) > done, WAIT_S)
    clock.unlink()


FAULTS: tuple[Fault, ...] = (
    kill_a_site,
    kill_the_coordinator,
    restart_the_server,
    deliver_twice,
    corrupt_an_object,
    be_slow,
    fill_the_disk,
    move_a_clock,
)
"""Each of them happens once in a training."""
