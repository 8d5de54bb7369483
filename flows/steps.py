"""The tasks of a round: one a step and site, and the coordinator's between them (SPEC 4, 6.2).

Each loads what it needs, calls one pure function and hands over. A site's task keeps its own deadline and returns an
absence when it passes, named "No answer" in the UI. Tasks return fresh objects: Prefect infers edges from the
identity of what they return. Nothing is cached or persisted, and no secret passes through: the coordinator has none.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from flows.collect import Absent, Checked, Collected, collect
from flows.exchange import ExchangeAway
from flows.messages import AskWork, Done
from flows.model import GlobalModel
from flows.plan import Plan
from flows.privacy import metrics_noise
from flows.session import Session, session
from flows.tables import (
    OUTSIDE,
    clamped_shares,
    clip_of,
    counts_of,
    failures,
    grid_noise,
    noised_counts_of,
    rotation_seed,
    summed_update,
    turned,
)
from flows.workshop import steps_of
from ml_tasks.averaging import FedAvg, PrivateAverage, PrivateStep, adapted
from ml_tasks.metrics import error_bounds, summarise
from ml_tasks.noised_metrics import estimate
from ml_tasks.tabular import standardisation
from ml_tasks.task import Task as MLTask
from protocols import plain
from protocols import secagg_coordinator as coordinator
from protocols.contexts import AttemptContext, Purpose
from protocols.encoding import add, decode, vector_bytes
from protocols.errors import BadMessage
from protocols.messages import (
    COORDINATOR,
    AskAdvertise,
    AskConfirm,
    AskMask,
    AskReveal,
    AskShare,
    Envelope,
    MaskedVector,
    open_body,
)
from protocols.rotation import turn_back
from protocols.secagg_coordinator import Dealings, Roster
from protocols.secagg_site import check_advert, check_confirmation

R = TypeVar("R")


def step(name: str) -> Callable[[Callable[..., R]], Task[..., R]]:
    """A task named in the UI by ``name``, neither cached nor persisted; it may be given futures of its arguments."""
    return task(task_run_name=name, cache_policy=NO_CACHE, persist_result=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """A site's answer to a step, or its absence, and the seconds that it took; those of its local work before it."""

    answer: tuple[Envelope, ...] | Absent
    seconds: float
    worked_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """U1, and why each other site is not in it."""

    roster: Roster
    absent: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Dealt:
    """U2, and why each other site is not in it."""

    dealings: Dealings
    absent: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Survivors:
    """U3 with the sum of its masked vectors, why each other site is not in it, and the slowest local work in it.

    ``sent`` is what a site had sent before another process took the round up, in bytes.
    """

    dealings: Dealings
    sites: tuple[str, ...]
    total: NDArray[np.uint8]
    absent: Mapping[str, str]
    train_s: float
    sent: int


@dataclass(frozen=True, slots=True, eq=False)
class Quorum:
    """Enough confirmations of one survivor set."""

    survivors: Survivors
    confirmations: Mapping[str, Envelope]


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """A decoded sum: float values by segment, over how many sites, SHA-256 of its bytes on the wire, whom it blames."""

    values: Mapping[str, NDArray[np.float64]]
    sites: int
    digest: str
    faults: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """How many of its sites' local work failed: nobody learns which."""
        return failures(self.values, self.sites)


@dataclass(frozen=True, slots=True, eq=False)
class Concluded:
    """What the ML layer makes of a sum: the next model, and the metrics of the incoming one.

    Attributes:
        model, metrics: these.
        intervals, unclear: of noised metrics: what the noise leaves of each, and those of which it leaves too little.
        bounds: of metrics that are made of histograms: what each is within, whatever the bins hide.
        clamped: the share of each tensor's entries that was clamped, where any was.
        outside: how many values of each feature are outside of its declared bounds, where any is.
        grid_noise: what rounding adds to an entry of the model in this round, as a standard deviation.
    """

    model: GlobalModel
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    unclear: tuple[str, ...] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    clamped: Mapping[str, float] = field(default_factory=dict)
    outside: Mapping[str, int] = field(default_factory=dict)
    grid_noise: float = 0.0


@step("moments[{site}]")
def moments(training: str, site: str, context: AttemptContext) -> Any:
    """Have a site sum its features' moments."""
    return work_at(training, site, "moments", context)


@step("train[{site}]")
def train(training: str, site: str, context: AttemptContext) -> Any:
    """Have a site train on the incoming model."""
    return work_at(training, site, "train", context)


@step("evaluate[{site}]")
def evaluate(training: str, site: str, context: AttemptContext) -> Any:
    """Have a site evaluate the incoming model."""
    return work_at(training, site, "evaluate", context)


@step("advertise[{site}]")
def advertise(training: str, site: str, context: AttemptContext) -> Any:
    """Ask a site for its fresh public keys (SPEC 4.1)."""
    return ask(training, site, "advertise", context.digest, AskAdvertise(context))


@step("roster")
def open_roster(context: AttemptContext, adverts: Mapping[str, Asked]) -> Opened:
    """Fix U1: the sites with a good advert."""

    def check(site: str, answer: tuple[Envelope, ...]) -> Envelope:
        session(context.training).witness(site, context, check_advert(context, site, only_message(site, answer)))
        return answer[0]

    found = gather("advertise", adverts, check, context.threshold)
    return Opened(coordinator.open_roster(context, found.present.values()), found.absent)


@step("share[{site}]")
def share(training: str, site: str, opened: Opened) -> Any:
    """Ask a site for its sealed shares (SPEC 4.2)."""
    roster = opened.roster
    return ask(training, site, "share", roster.context.digest, AskShare(roster.envelopes))


@step("inboxes")
def fill_inboxes(opened: Opened, shares: Mapping[str, Asked]) -> Dealt:
    """Fix U2: the sites with good shares."""
    roster = opened.roster

    def check(site: str, answer: tuple[Envelope, ...]) -> tuple[Envelope, ...]:
        coordinator.check_dealing(roster, site, answer)
        return answer

    found = gather("share", shares, check, roster.context.threshold)
    return Dealt(coordinator.inboxes(roster, found.present), {**opened.absent, **found.absent})


@step("mask[{site}]")
def mask(training: str, site: str, dealt: Dealt, work: list[Asked]) -> Any:
    """Ask a site for its masked vector (SPEC 4.3), unless its local work is missing."""
    roster = dealt.dealings.roster
    return ask_after(work, training, site, "mask", roster.round, AskMask(dealt.dealings.inbox(site)))


@step("survivors")
def add_survivors(training: str, dealt: Dealt, masked: Mapping[str, Asked]) -> Survivors:
    """Fix U3 and add its masked vectors, each read from the exchange and checked (SPEC 4.3); hold the round.

    From here on sites may have confirmed, and the round can only be finished, also by another process.
    """
    live, dealings = session(training), dealt.dealings
    context = dealings.roster.context
    total = np.zeros(vector_bytes(context.segments), np.uint8)

    def check(site: str, answer: tuple[Envelope, ...]) -> str:
        said = coordinator.check_masked(dealings, site, only_message(site, answer))
        add(total, fetch(live, site, dealings.roster.round, said), context.segments)
        return site

    found = gather("mask", masked, check, context.threshold)
    absent = {**dealt.absent, **found.absent}
    train_s = max(masked[site].worked_s for site in found.sites)
    sent = live.bytes_per_site(context.digest, dealings.roster.round)
    live.checkpoint.hold(dealings, found.sites, absent, total, train_s, sent)
    return Survivors(dealings, found.sites, total, absent, train_s, 0)


@step("survivors")
def restore(training: str, round_: int) -> Survivors:
    """Take up a held round from the checkpoint."""
    checkpoint = session(training).checkpoint
    held = checkpoint.held(round_)
    if held is None:
        raise ValueError(f"round {round_} is not held")
    return Survivors(held.dealings, held.survivors, checkpoint.held_total(held), held.absent, held.train_s, held.sent)


@step("confirm[{site}]")
def confirm(training: str, site: str, survivors: Survivors) -> Any:
    """Ask a site to sign the survivor set (SPEC 4.4)."""
    return ask(training, site, "confirm", survivors.dealings.roster.round, AskConfirm(survivors.sites))


@step("quorum")
def count_quorum(survivors: Survivors, confirmations: Mapping[str, Asked]) -> Quorum:
    """Check that enough sites have confirmed."""
    roster = survivors.dealings.roster

    def check(site: str, answer: tuple[Envelope, ...]) -> Envelope:
        check_confirmation(roster.context, roster.round, survivors.sites, site, only_message(site, answer))
        return answer[0]

    return Quorum(survivors, gather("confirm", confirmations, check, roster.context.threshold).present)


@step("reveal[{site}]")
def reveal(training: str, site: str, quorum: Quorum) -> Any:
    """Ask a site for the shares that unmask (SPEC 4.5)."""
    roster = quorum.survivors.dealings.roster
    return ask(training, site, "reveal", roster.round, AskReveal(tuple(quorum.confirmations.values())))


@step("unmask")
def unmask(survivors: Survivors, reveals: Mapping[str, Asked]) -> Sum:
    """Reconstruct the masks, take them out of the sum and decode it (SPEC 4.6)."""
    context = survivors.dealings.roster.context
    found = gather("reveal", reveals, only_message, context.threshold)
    recovered = coordinator.recover_masks(survivors.dealings, survivors.sites, found.present.values())
    total = survivors.total.copy()
    coordinator.unmask(total, context, recovered)
    return decoded(total, context, len(survivors.sites), tuple(str(fault) for fault in recovered.faults))


@step("submit[{site}]")
def submit(training: str, site: str, context: AttemptContext, work: list[Asked]) -> Any:
    """Ask a site for its unmasked vector: the plain protocol's only step (SPEC 4.7)."""
    return ask_after(work, training, site, "submit", context.digest, AskWork(context))


@step("add")
def add_submitted(
    training: str, context: AttemptContext, submitted: Mapping[str, Asked]
) -> tuple[Sum, Collected[Envelope]]:
    """Add the unmasked vectors and decode the sum (SPEC 4.7)."""
    live = session(training)
    total = np.zeros(vector_bytes(context.segments), np.uint8)

    def check(site: str, answer: tuple[Envelope, ...]) -> Envelope:
        said = plain.check_submitted(context, site, only_message(site, answer))
        add(total, fetch(live, site, context.digest, said), context.segments)
        return answer[0]

    found = gather("submit", submitted, check, context.threshold)
    return decoded(total, context, len(found.sites)), found


@step("standardise")
def standardise(training: str, total: Sum) -> Concluded:
    """Turn the summed moments into the features' means and scales."""
    live = session(training)
    scaling = standardisation(total.values["moments"], live.task.features)
    counted = total.values.get(OUTSIDE, ())
    outside = {one.name: int(number) for one, number in zip(live.task.features, counted, strict=False) if number > 0}
    return Concluded(GlobalModel(live.checkpoint.model.vector, scaling), {}, outside=outside)


@step("average")
def average(training: str, total: Sum) -> Concluded:
    """Apply the strategy to the summed updates; the metrics are of the incoming model."""
    live = session(training)
    plan, model = live.plan, live.checkpoint.model
    if plan.privacy.unit != "none":
        return Concluded(privately(plan, model, total), {})
    weight = float(total.values["weight"][0])
    if total.failed == total.sites:
        return Concluded(replace(model), {})
    if not weight > 0:
        raise BadMessage(COORDINATOR, "average", "no survivor has a training example: give the sites data")
    vector = FedAvg().apply(model.vector, summed_update(total.values, live.layout), weight)
    metrics, bounds = measured(live.task, total)
    return Concluded(
        GlobalModel(vector, model.standardisation),
        metrics,
        bounds=bounds,
        clamped=clamped_shares(total.values, live.layout, total.sites - total.failed),
        grid_noise=grid_noise(plan, total.sites, weight),
    )


def measured(task: MLTask, total: Sum) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """The metrics of a sum's counts, and what those of histograms are within."""
    counted = counts_of(total.values)
    return summarise(counted, task.loss_cap), error_bounds(counted)


def privately(plan: Plan, model: GlobalModel, total: Sum) -> GlobalModel:
    """The next model from noised sums; no round is measured."""
    rules, update = plan.privacy, total.values["update"]
    if rules.unit == "site":
        clip = clip_of(plan, model)
        mean = PrivateAverage(clip, rules.least_weight)
        vector = mean.apply(model.vector, update, float(total.values["weight"][0]))
        if model.clip is None:
            return replace(model, vector=vector)
        within = float(total.values["within"][0]) / total.sites + 0.5
        return replace(model, vector=vector, clip=np.array([adapted(clip, within, rules.quantile)], np.float32))
    if rules.noise == "local":
        return replace(model, vector=FedAvg().apply(model.vector, update, total.sites))
    step = PrivateStep(plan.local.learning_rate * rules.clip / rules.expected_batch)
    return replace(model, vector=step.apply(model.vector, update))


@step("score")
def score(training: str, total: Sum) -> Concluded:
    """Turn the summed counts of the final evaluation into metrics; noised ones into those that the noise leaves."""
    live = session(training)
    plan, model = live.plan, replace(live.checkpoint.model)
    if plan.privacy.unit == "none":
        metrics, bounds = measured(live.task, total)
        return Concluded(model, metrics, bounds=bounds)
    found = estimate(noised_counts_of(total.values), metrics_noise(plan, total.sites), plan.counting)
    clear = {name: one for name, one in found.items() if one.clear or name == "examples"}
    return Concluded(
        model,
        {name: one.value for name, one in clear.items()},
        {name: (one.low, one.high) for name, one in clear.items()},
        tuple(name for name in found if name not in clear),
    )


WORK: Mapping[str, Task[..., Any]] = {"moments": moments, "train": train, "evaluate": evaluate}
"""The task of each piece of local work."""


def work_of(plan: Plan, purpose: Purpose) -> tuple[Task[..., Any], ...]:
    """The local work of a sum."""
    return tuple(WORK[name] for name in steps_of(plan, purpose))


CONCLUDE = {"statistics": standardise, "training": average, "evaluation": score}
"""What the ML layer does with the sum of each purpose."""


def ask(training: str, site: str, name: str, context: str, body: object, worked_s: float = 0.0) -> Any:
    """Ask one site one step of the protocol within its deadline."""
    live = session(training)
    return named(Asked(*live.ask(site, name, context, body, live.plan.deadlines.step_s), worked_s))


def ask_after(work: list[Asked], training: str, site: str, name: str, context: str, body: object) -> Any:
    """Ask a site for what needs its local work; absent where that is missing."""
    for done in work:
        if isinstance(done.answer, Absent):
            return named(Asked(replace(done.answer), 0.0))
    return ask(training, site, name, context, body, max(done.seconds for done in work))


def work_at(training: str, site: str, name: str, context: AttemptContext) -> Any:
    """Have a site do local work for an attempt, once it has advertised in it, and check that it says so.

    The site ends its work after ``train_s`` by itself; its answer has the time of a step beyond that.
    """
    live = session(training)
    deadline_s = live.plan.deadlines.train_s + live.plan.deadlines.step_s
    asked = Asked(*live.ask(site, name, context.digest, AskWork(context), deadline_s))
    if not isinstance(asked.answer, Absent):
        try:
            open_body(
                Done,
                only_message(site, asked.answer),
                key=live.consortium.sites[site],
                kind="done",
                context=context.digest,
                sender=site,
                receiver=COORDINATOR,
            )
        except BadMessage as bad:
            asked = Asked(Absent(str(bad)), asked.seconds)
    return named(asked)


def named(asked: Asked) -> Any:
    """Give an absence a state name of its own, so that the UI tells the truth about it."""
    if isinstance(asked.answer, Absent):
        return Completed(name="No answer", message=asked.answer.reason, data=asked)
    return asked


def gather(
    name: str, asked: Mapping[str, Asked], check: Callable[[str, tuple[Envelope, ...]], Checked], threshold: int
) -> Collected[Checked]:
    """Pass a step's answers through ``collect``."""
    return collect(name, {site: one.answer for site, one in asked.items()}, check, threshold=threshold)


def only_message(site: str, answer: tuple[Envelope, ...]) -> Envelope:
    """The only message of an answer, said to be the site's.

    Raises:
        BadMessage: if there are more, or none, or it is another's.
    """
    if len(answer) != 1 or answer[0].sender != site:
        raise BadMessage(site, "answer", "the answer is not one message of this site's")
    return answer[0]


def decoded(total: NDArray[np.uint8], context: AttemptContext, sites: int, faults: tuple[str, ...] = ()) -> Sum:
    """Decode an unmasked sum, and keep the digest that the receipt names (SPEC 11.2)."""
    seed = rotation_seed(session(context.training).plan, context.digest)
    values = turned(decode(total, context.segments), seed, turn_back)
    return Sum(values, sites, hashlib.sha256(total.data).hexdigest(), faults)


def fetch(live: Session, site: str, context: str, said: MaskedVector) -> NDArray[np.uint8]:
    """Read a site's vector from the exchange, checked against the digest that it signed.

    One that cannot be read drops its site: somebody may have made this one object unreadable.
    """
    try:
        content = live.exchange.get(site, said.vector, size=said.size)
    except ExchangeAway as away:
        raise BadMessage(site, "exchange", away.reason) from None
    if len(content) != said.size:
        raise BadMessage(site, "exchange", "the vector does not have the size that the site signed")
    live.count_vector(site, context, said.size)
    return np.frombuffer(content, np.uint8)
