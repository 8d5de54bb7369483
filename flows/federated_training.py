"""A federated training: join, statistics, rounds, final evaluation (SPEC 6).

One flow run a training; in it a task ``round[3.1]`` (round, attempt) for each attempt, which starts the sub-flow of
the same name: a sub-flow started inside a task of its own is not mixed up with another's when the training is
retried.
"""

import sqlite3
import time
from collections.abc import Mapping
from typing import Any

import httpx
from prefect import flow
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.collect import Absent
from flows.engine import run_inside
from flows.mailbox import is_away
from flows.messages import AskFinish, AskJoin, Joined, join_context
from flows.patience import may_pass, outlast, pauses_of, server_trouble
from flows.pauses import FIRST_S, pauses
from flows.plan import Plan
from flows.report import Report, RoundRecord, shares_text
from flows.secure_round import PROTOCOLS, Outcome
from flows.session import Session, session
from flows.steps import Asked, gather, named, only_message, step
from protocols.contexts import AttemptContext, Purpose
from protocols.errors import BelowThreshold, ProtocolError, Refused, TooManyFailed, TooMuchClamped
from protocols.messages import COORDINATOR, Envelope, open_body

AWAY_S = 30.0
"""The longest pause between two looks for a Prefect server that is away."""

PAUSED_S = 0.5
"""Seconds between two looks whether a paused training goes on."""
REJOIN_S = 30.0
"""Seconds that a training which was begun before waits for a site to join; who comes later is in a later sum."""
Joins = dict[str, PrefectFuture[Asked]]


@flow(name="federated-training", flow_run_name="{training}", persist_result=False)
def federated_training(plan: Plan, training: str) -> Report:
    """Train the plan's model across its sites, in local mode; raises as ``run_training``."""
    return run_training(training, plan)


def run_training(training: str, plan: Plan) -> Report:
    """Train the plan's model across its sites; every sum is a secure one.

    Raises:
        BadInput: a site cannot use the plan or the task.
        Refused: fewer than ``min_sites`` have joined.
        TooManyFailed: more sites' local work failed than the plan allows.
        TooMuchClamped: a sum has clamped more of a tensor than the plan allows.
        BelowThreshold: too few sites, for longer than the training outlasts.
        Unfinished: a confirmed round could not be finished.
    """
    live = session(training)
    try:
        joins = assemble(training, plan)
        live.checkpoint.monitor(live.task.monitored)
        for entry in live.checkpoint.entries(-1):  # a process that was killed may not have come to that
            discard_incoming(live, entry.context)
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):  # of the rounds: their ends wait for it
            for purpose, number in sums(plan, len(live.task.features)):
                take_in(training, joins)
                hold_while_paused(live, f"{purpose} {number}")
                if purpose == "evaluation" and plan.stopping.keep == "best":
                    live.checkpoint.take_best()
                if purpose != "training" or not live.checkpoint.progress.stopped:
                    run_sum(training, plan, purpose, number, joins)
        for future in [leave.submit(training, site) for site in plan.sites]:
            future.wait()
    finally:
        live.ending.set()
        live.discard(live.checkpoint.progress.model)
    return live.checkpoint.report(plan.privacy)


def sums(plan: Plan, features: int) -> list[tuple[Purpose, int]]:
    """Every sum of a training with its number: statistics where they are made, the rounds, the evaluation."""
    statistics: list[tuple[Purpose, int]] = [("statistics", 0)] if plan.sums_statistics(features) else []
    rounds: list[tuple[Purpose, int]] = [("training", number) for number in range(1, plan.rounds + 1)]
    return [*statistics, *rounds, ("evaluation", plan.rounds + 1)]


def assemble(training: str, plan: Plan) -> Joins:
    """Have the sites join: ``min_sites`` of them where no sum was begun, and then as many as a sum needs.

    A training that was begun is not lost to a site that has left since: it needs a sum's threshold only, and waits for
    that as long as it outlasts any trouble.

    Raises:
        BadInput: a site cannot use the plan or the task.
        Refused: fewer than ``min_sites`` have joined.
        BelowThreshold: the training was begun, and too few sites have come back.
    """
    live = session(training)
    begun = live.checkpoint.begun
    within_s = min(plan.deadlines.join_s, REJOIN_S) if begun else plan.deadlines.join_s
    joins = {site: join.submit(training, site, within_s) for site in plan.sites}
    for pause_s in [*(pauses_of(live) if begun else ()), None]:
        try:
            call_roll.submit(training, joins).result()
            break
        except BelowThreshold as below:
            if pause_s is None:
                raise
            live.tell(f"{below}; its sites are asked again in {pause_s:.0f} s")
            if live.ending.wait(pause_s):
                raise
            take_in(training, joins, within_s)
    return joins


def take_in(training: str, joins: Joins, within_s: float | None = None) -> None:
    """Ask the sites that have not joined once more; nobody is waited for, and who joins late is in the next sum."""
    deadline_s = session(training).plan.deadlines.join_s if within_s is None else within_s
    joins |= {site: join.submit(training, site, deadline_s) for site, future in joins.items() if missing(future)}


def hold_while_paused(live: Session, what: str) -> None:
    """Begin no sum while the training's run is paused; one that runs is finished."""
    if not live.paused.is_set():
        return
    live.tell(f"paused before {what}, until the run is resumed or cancelled")
    while live.paused.is_set() and not live.ending.wait(PAUSED_S):
        pass
    live.tell(f"goes on with {what}")


def missing(future: PrefectFuture[Asked]) -> bool:
    """Whether a site has been asked to join and has not."""
    return future.state.is_final() and isinstance(future.result().answer, Absent)


def run_sum(training: str, plan: Plan, purpose: Purpose, number: int, joins: Joins) -> None:
    """Make attempts at a sum until one succeeds, and commit the model that it gives; not again what is finished.

    What may pass, a site, the exchange or a full disk, is outlasted with growing pauses (SPEC 6.2). An attempt that the
    Prefect server's absence has cut off does not count.

    Raises:
        BelowThreshold, Unfinished, OSError: it has not passed; with the last attempt's reasons.
    """
    live = session(training)
    if (finished := live.checkpoint.record(purpose, number)) is not None:
        check_clamped(plan, finished)
        return
    left, away, since = pauses_of(live), pauses(FIRST_S, AWAY_S), None
    while True:
        try:
            record = attempt(training, plan, purpose, number, again=since is not None)
            break
        except httpx.HTTPError as error:  # Prefect's engine, without its server: taken up as if this process had ended
            if not is_away(error):
                raise
            pause_s = next(away)
            live.tell(f"{purpose} {number}: {server_trouble(error)}; it is taken up again in {pause_s:.0f} s")
            if live.ending.wait(pause_s):
                raise
        except (ProtocolError, OSError, sqlite3.Error) as error:
            since = since or time.monotonic()
            if not may_pass(error) or not outlast(live, f"{purpose} {number}", error, left, since):
                raise
            take_in(training, joins)
    if since is not None:
        live.tell(f"{purpose} {number}: goes on, after {time.monotonic() - since:.0f} s")
    live.observe(record)
    check_failed(plan, record)
    check_clamped(plan, record)


def attempt(training: str, plan: Plan, purpose: Purpose, number: int, *, again: bool) -> RoundRecord:
    """Make one attempt at a sum, or finish the one that is held, and commit what it gives.

    Args:
        training, plan: what is trained.
        purpose, number: the sum.
        again: whether an attempt at it has failed in this process.
    """
    live = session(training)
    held = live.checkpoint.held(number)
    attempt = held.context.attempt if held else live.checkpoint.next_attempt(number)
    began = time.monotonic()
    live.checkpoint.begin(number, attempt)
    live.begin_attempt(number, again=again)
    outcome: Outcome = run_round(training, plan.protection.protocol, purpose, number, attempt)
    record = RoundRecord(
        purpose,
        number,
        attempt,
        outcome.evidence.survivors,
        live.standings.settle(outcome.evidence.survivors, outcome.dropped),
        outcome.concluded.metrics,
        outcome.train_s,
        time.monotonic() - began + (outcome.train_s if held else 0.0),
        outcome.bytes_per_site,
        outcome.faults,
        outcome.clamped,
        live.epsilon_with(purpose, attempt),
        outcome.failed,
        outcome.concluded.intervals,
        outcome.concluded.unclear,
        outcome.concluded.bounds,
        outcome.concluded.clamped,
        outcome.concluded.outside,
        outcome.concluded.grid_noise,
    )
    live.checkpoint.commit(plan, record, outcome.concluded.model, outcome.evidence)
    discard_incoming(live, outcome.evidence.context)
    return record


def discard_incoming(live: Session, finished: AttemptContext) -> None:
    """Delete the model that a finished sum began with from the exchange, unless the next begins with it, too."""
    if finished.model != live.checkpoint.progress.model:
        live.discard(finished.model)


def check_failed(plan: Plan, record: RoundRecord) -> None:
    """Stop a training in which more sites' local work failed than its plan allows; the sum itself stands.

    Raises:
        TooManyFailed: with their number: whose it was, the sum does not say.
    """
    if record.failed > plan.max_failed:
        raise TooManyFailed(
            "coordinator",
            record.purpose,
            f"the local work of {record.failed} of {len(record.survivors)} sites failed, the plan allows "
            f"{plan.max_failed} (max_failed): ask every site's data steward to look at fedseal site status",
        )


def check_clamped(plan: Plan, record: RoundRecord) -> None:
    """Stop a training whose plan does not allow for so much that was clamped: the mean of bounds is no model.

    Raises:
        TooMuchClamped: naming the tensors, and what to set.
    """
    beyond = {name: share for name, share in record.clamped_shares.items() if share > plan.max_clamped}
    if beyond:
        raise TooMuchClamped(
            "coordinator",
            f"{record.purpose} {record.round}.{record.attempt}",
            f"clamped to their range: {shares_text(beyond)}; the plan allows {plan.max_clamped:.0%} (max_clamped): "
            f"lower local.learning_rate ({plan.local.learning_rate:g}), standardise the inputs, or raise "
            f"protection.update.max_abs ({plan.protection.update.max_abs:g})",
        )


@step("{purpose}[{number}.{attempt}]")
def run_round(training: str, protocol: str, purpose: Purpose, number: int, attempt: int) -> Outcome:
    """Start the sub-flow of one attempt."""
    names = {"training": training, "purpose": purpose, "round": number, "attempt": attempt}
    return run_inside(PROTOCOLS[protocol], names)


@step("join[{site}]")
def join(training: str, site: str, within_s: float) -> Any:
    """Ask a site to agree to the plan; wait for its data steward, if it has to be."""
    live = session(training)
    context, body = join_context(training, live.plan.digest), AskJoin(training, live.plan.to_json(), live.template)
    deadline = time.monotonic() + within_s
    for pause_s in pauses():
        asked = Asked(*live.ask(site, "join", context, body, deadline - time.monotonic()))
        if not (isinstance(asked.answer, Absent) and asked.answer.pending) or time.monotonic() + pause_s > deadline:
            break
        if live.ending.wait(pause_s):
            break
    return named(asked)


@step("joined")
def call_roll(training: str, answers: Mapping[str, Asked]) -> tuple[str, ...]:
    """Check that enough sites have agreed to this very plan; returns which.

    Raises:
        BadInput: a site cannot use the plan or the task.
        Refused: naming each site that has not joined, and why.
        BelowThreshold: the same, of a training that was begun before.
    """
    live = session(training)

    def check(site: str, answer: tuple[Envelope, ...]) -> Joined:
        return open_body(
            Joined,
            only_message(site, answer),
            key=live.consortium.sites[site],
            kind="joined",
            context=join_context(training, live.plan.digest),
            sender=site,
            receiver=COORDINATOR,
        )

    begun = live.checkpoint.begun
    try:
        found = gather("join", answers, check, live.plan.protection.threshold if begun else live.plan.min_sites)
    except BelowThreshold as below:
        if begun:
            raise
        raise Refused("coordinator", "join", below.reason) from None
    return found.sites


@step("leave[{site}]")
def leave(training: str, site: str) -> Any:
    """Ask a site to erase the training's secrets."""
    live = session(training)
    context = join_context(training, live.plan.digest)
    return named(Asked(*live.ask(site, "finish", context, AskFinish(training), live.plan.deadlines.step_s)))
