"""One secure sum as a Prefect flow: its picture in the UI is the documentation of the protocol (SPEC 4, 6.2).

    advertise[s] ─► roster ─► share[s] ─► inboxes ─┐
    train[s] ──────────────────────────────────────┼─► mask[s] ─► survivors ─► confirm[s] ─► quorum ─┐
    evaluate[s] ───────────────────────────────────┘                                                 │
                                                              average ◄─ unmask ◄─ reveal[s] ◄───────┘

``evaluate`` measures the incoming model. The key steps run beside the local work: a site is asked for both at once, and
begins to work when it has advertised, and so entered the attempt into its ledger (``flows.site``). An edge is a data
dependency; one that follows from others is not drawn: a value that is already there is passed as ``quote``, which
Prefect does not track.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.utilities.annotations import quote

from flows.collect import Absent, Unfinished
from flows.pauses import pauses
from flows.session import session
from flows.steps import (
    CONCLUDE,
    Asked,
    Concluded,
    Quorum,
    Sum,
    Survivors,
    add_submitted,
    add_survivors,
    advertise,
    confirm,
    count_quorum,
    fill_inboxes,
    mask,
    open_roster,
    restore,
    reveal,
    share,
    submit,
    unmask,
    work_of,
)
from protocols.contexts import AttemptContext, Purpose
from protocols.encoding import CLAMPED
from protocols.errors import BelowThreshold
from protocols.receipt import Evidence

Futures = Mapping[str, PrefectFuture[Asked]]

OWN_ENDS = (re.compile(r"-([0-9a-f]{4})[0-9a-f]{8}$"), re.compile(r"-\d{8}-\d{6}-([0-9a-f]{4})$"))
"""What ends a training's name, at a coordinator and in local mode, and the part of it that people are shown."""


def round_name() -> str:
    """What a round's flow run is called in a list of runs, whosever round it is: ``heart-3f2a 2.1``."""
    of = flow_run.parameters
    training = of["training"]
    for end in OWN_ENDS:
        training = end.sub(r"-\1", training)
    purpose = "" if of["purpose"] == "training" else f"{of['purpose']} "
    return f"{training} {purpose}{of['round']}.{of['attempt']}"


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a round gives: the next model and the incoming one's metrics, what the sites signed, and how it went."""

    concluded: Concluded
    evidence: Evidence
    dropped: Mapping[str, str]
    faults: tuple[str, ...]
    clamped: int
    failed: int
    train_s: float
    bytes_per_site: int


@flow(name="secure-round", flow_run_name=round_name, persist_result=False)
def secure_round(training: str, purpose: Purpose, round: int, attempt: int) -> Outcome:
    """Run one attempt at a secure sum, from ``advertise`` to ``average``; a held round goes on where it was held.

    Raises:
        BelowThreshold: too few sites, and none has confirmed: a new attempt may be made.
        Unfinished: a survivor set may be confirmed, but too few sites answer to finish the round.
        BadInput: a site's data or training are at fault.
    """
    survivors = (
        restore.submit(training, round)
        if session(training).checkpoint.held(round)
        else until_masked(training, session(training).context(purpose, round, attempt))
    )
    u3 = survivors.result()
    quorum: PrefectFuture[Quorum] = finish(
        training,
        u3.sites,
        ask=lambda site: confirm.submit(training, site, survivors),
        gather=lambda confirmations: count_quorum.submit(quote(u3), confirmations),
    )
    total: PrefectFuture[Sum] = finish(
        training,
        tuple(sorted(quorum.result().confirmations)),
        ask=lambda site: reveal.submit(training, site, quorum),
        gather=lambda reveals: unmask.submit(quote(u3), reveals),
    )
    concluded = CONCLUDE[purpose].submit(training, total).result()
    roster = u3.dealings.roster
    sent = u3.sent + session(training).bytes_per_site(roster.context.digest, roster.round)
    confirmations = tuple(quorum.result().confirmations.values())
    evidence = Evidence(roster.context, roster.envelopes, u3.sites, confirmations, total.result().digest)
    return outcome(concluded, total.result(), evidence, u3.absent, u3.train_s, sent)


def until_masked(training: str, context: AttemptContext) -> PrefectFuture[Survivors]:
    """Run a round up to its survivors, and hold it: from here on it can only be finished.

    Raises:
        BelowThreshold: too few sites.
        BadInput: a site's data or training are at fault.
    """
    adverts = {site: advertise.submit(training, site, quote(context)) for site in sorted(context.sites)}
    work = start_work(training, context)
    opened = open_roster.submit(quote(context), adverts)
    shares = {site: share.submit(training, site, opened) for site in opened.result().roster.sites}
    dealt = fill_inboxes.submit(quote(opened.result()), shares)
    masked = {site: mask.submit(training, site, dealt, work[site]) for site in dealt.result().dealings.sites}
    return add_survivors.submit(training, quote(dealt.result()), masked)


@flow(name="plain-round", flow_run_name=round_name, persist_result=False)
def plain_round(training: str, purpose: Purpose, round: int, attempt: int) -> Outcome:
    """Run one attempt at an unprotected sum, for debugging (SPEC 4.7).

    Raises:
        BelowThreshold: too few sites: a new attempt may be made.
        BadInput: a site's data or training are at fault.
    """
    context = session(training).context(purpose, round, attempt)
    work = start_work(training, context)
    submitted = {site: submit.submit(training, site, quote(context), done) for site, done in work.items()}
    added = add_submitted.submit(training, quote(context), submitted)
    total, found = added.result()
    concluded = CONCLUDE[purpose].submit(training, quote(total), wait_for=[added]).result()
    train_s = max(submitted[site].result().worked_s for site in found.sites)
    sent = session(training).bytes_per_site(context.digest)
    evidence = Evidence(context, (), found.sites, tuple(found.present.values()), total.digest)
    return outcome(concluded, total, evidence, found.absent, train_s, sent)


PROTOCOLS = {"secagg": secure_round, "plain": plain_round}
"""The flow of each protocol that a plan can name."""


def start_work(training: str, context: AttemptContext) -> dict[str, list[PrefectFuture[Asked]]]:
    """Start the local work at every invited site."""
    works = work_of(session(training).plan, context.purpose)
    return {site: [work.submit(training, site, quote(context)) for work in works] for site in sorted(context.sites)}


def finish(
    training: str,
    sites: tuple[str, ...],
    *,
    ask: Callable[[str], PrefectFuture[Asked]],
    gather: Callable[[Futures], PrefectFuture[Any]],
) -> PrefectFuture[Any]:
    """Ask the silent again until enough have answered: this round can only be finished (SPEC 8, rule 3).

    Raises:
        Unfinished: if that takes longer than the plan's ``finish_s``, or the training is cancelled.
    """
    live = session(training)
    deadline = time.monotonic() + live.plan.deadlines.finish_s
    answers = {site: ask(site) for site in sites}
    for pause_s in pauses():
        gathered = gather(answers)
        try:
            gathered.result()
            break
        except BelowThreshold as below:
            if time.monotonic() + pause_s > deadline or live.ending.wait(pause_s):
                raise Unfinished("coordinator", below.step, below.reason) from None
        answers |= {site: ask(site) for site, asked in answers.items() if isinstance(asked.result().answer, Absent)}
    return gathered


def outcome(
    concluded: Concluded, total: Sum, evidence: Evidence, absent: Mapping[str, str], train_s: float, sent: int
) -> Outcome:
    """Put together what a finished round tells of itself."""
    clamped = 0 if evidence.context.noise else int(total.values[CLAMPED][0])  # noised, it says nothing
    return Outcome(concluded, evidence, absent, total.faults, clamped, total.failed, train_s, sent)
