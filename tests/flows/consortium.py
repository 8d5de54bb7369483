"""A local consortium for tests of the flows: a training through a real Prefect server, sites that fail on demand."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flows.checkpoint import Checkpoint
from flows.collect import Absent
from flows.engine import patient_engine
from flows.federated_training import federated_training
from flows.local import LocalConsortium, LocalSites, open_consortium
from flows.plan import Plan, make_plan
from flows.policy import load_task
from flows.report import Report
from flows.session import Session, opened
from flows.site import Answer
from flows.tables import first_model
from ml_tasks.training import initial_vector
from protocols.messages import Envelope
from tests.flows.tasks import SITES

Fault = Callable[[int], str]
"""Given how often this site was asked this step (from 0), what happens: "", "lost" (not reached) or "late"."""


def plan_for(task: str = "Tiny", **fields: object) -> Plan:
    """A plan of two rounds over four sites; ``protection`` and the like may be given as tables."""
    raw = {
        "name": "tiny",
        "task": f"tests.flows.tasks:{task}",
        "data": "tiny",
        "sites": list(SITES),
        "rounds": 2,
        "local": {"steps": 3, "batch_size": 4},
        "deadlines": {"step_s": 120, "train_s": 120, "finish_s": 20},
    }
    return make_plan({**raw, **fields}, source="test")


@dataclass
class FaultySites:
    """Local sites whose requests or answers get lost as a test says."""

    local: LocalSites
    faults: dict[tuple[str, str], Fault]
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    requests: list[Envelope] = field(default_factory=list)
    answers: list[Envelope] = field(default_factory=list)

    def ask(self, site: str, request: Envelope, deadline_s: float) -> Answer | Absent:
        step = request.kind.removeprefix("ask/")
        fault = self.faults.get((site, step), lambda count: "")(self.asked[site, step])
        self.asked[site, step] += 1
        self.requests.append(request)
        if fault == "lost":
            return Absent("not reached")
        answer = self.local.ask(site, request, deadline_s)
        self.answers += () if isinstance(answer, Absent) else answer
        return Absent("too late") if fault == "late" else answer


@dataclass
class Trial:
    """A training about to run."""

    plan: Plan
    live: Session
    local: LocalConsortium
    sites: FaultySites

    def train(self) -> Report:
        """Run it through Prefect."""
        with opened(self.live), patient_engine(0):
            return federated_training(self.plan, self.live.training)


@contextmanager
def trial(
    folder: Path, plan: Plan, faults: dict[tuple[str, str], Fault] | None = None, name: str = "tiny-trial"
) -> Iterator[Trial]:
    """Found a consortium for ``plan`` in ``folder``, or take up the training that was cut off there."""
    local = open_consortium(folder, plan, None)
    task = load_task(plan.task)
    sites = FaultySites(local.sites, faults or {})
    vector = initial_vector(task, plan.seed)
    if (folder / "checkpoint").exists():
        features = len(task.features)
        checkpoint = Checkpoint.resume(folder / "checkpoint", plan, parameters=vector.size, features=features)
    else:
        checkpoint = Checkpoint.create(folder / "checkpoint", name, plan, first_model(plan, task.features, vector))
    live = Session(name, plan, task, local.vault, local.consortium, local.exchange, sites, checkpoint)
    try:
        yield Trial(plan, live, local, sites)
    finally:
        checkpoint.close()
        local.close()


def always(what: str) -> Fault:
    """The same fault every time."""
    return lambda count: what


def at(counts: Sequence[int], what: str) -> Fault:
    """A fault at the given times of asking, counted from 0."""
    return lambda count: what if count in counts else ""
