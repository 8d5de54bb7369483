"""A federated training as a Prefect flow: join, statistics, rounds, final evaluation (SPEC 6).

One flow run a training; in it a task ``round[3.1]`` (round, attempt) for each attempt, which starts the sub-flow of
the same name: a sub-flow started inside a task of its own is not mixed up with another's when the training is
retried.
"""

import time
from typing import Any

from prefect import flow

from flows.messages import AskFinish, AskJoin, Joined, join_context
from flows.plan import Plan
from flows.report import Report, RoundRecord
from flows.secure_round import PROTOCOLS, Outcome
from flows.session import session
from flows.steps import Asked, gather, named, only_message, step
from protocols.contexts import Purpose
from protocols.errors import BelowThreshold, Refused
from protocols.messages import COORDINATOR, Envelope, open_body


@flow(name="federated-training", flow_run_name="{training}", persist_result=False)
def federated_training(plan: Plan, training: str) -> Report:
    """Train the plan's model across its sites; every sum is a secure one.

    Raises:
        BadInput: a site's data or training are at fault.
        Refused: a site did not join.
        BelowThreshold: too few sites, in ``max_attempts`` attempts.
        Unfinished: a confirmed round could not be finished.
    """
    live = session(training)
    joined = agree_on_plan.submit(training, {site: join.submit(training, site) for site in plan.sites})
    checkpoint = live.checkpoint
    checkpoint.monitor(joined.result())
    if live.task.features:
        run_sum(training, plan, "statistics", 0)
    for number in range(1, plan.rounds + 1):
        if not checkpoint.progress.stopped:
            run_sum(training, plan, "training", number)
    if plan.stopping.keep == "best":
        checkpoint.take_best()
    run_sum(training, plan, "evaluation", plan.rounds + 1)
    for future in [leave.submit(training, site) for site in plan.sites]:
        future.wait()
    return checkpoint.report()


def run_sum(training: str, plan: Plan, purpose: Purpose, number: int) -> None:
    """Make attempts at a sum until one succeeds, and commit the model that it gives; not again what is finished.

    Raises:
        BelowThreshold: after ``max_attempts``, with the last attempt's reasons.
    """
    live = session(training)
    if live.checkpoint.record(purpose, number) is not None:
        return
    held = live.checkpoint.held(number)
    attempt = held.context.attempt if held else live.checkpoint.next_attempt(number)
    last = attempt + plan.max_attempts - 1
    while True:
        began = time.monotonic()
        live.checkpoint.begin(number, attempt)
        try:
            outcome: Outcome = run_round(training, plan.protection.protocol, purpose, number, attempt)
            break
        except BelowThreshold:
            if attempt == last:
                raise
            attempt += 1
    record = RoundRecord(
        purpose,
        number,
        attempt,
        outcome.evidence.survivors,
        outcome.dropped,
        outcome.concluded.metrics,
        outcome.train_s,
        time.monotonic() - began + (outcome.train_s if held else 0.0),
        outcome.bytes_per_site,
        outcome.faults,
        outcome.clamped,
    )
    live.checkpoint.commit(plan, record, outcome.concluded.model, outcome.evidence)
    live.observe(record)


@step("{purpose}[{number}.{attempt}]")
def run_round(training: str, protocol: str, purpose: Purpose, number: int, attempt: int) -> Outcome:
    """Start the sub-flow of one attempt."""
    return PROTOCOLS[protocol](training, purpose, number, attempt)


@step("join[{site}]")
def join(training: str, site: str) -> Any:
    """Ask a site to agree to the plan and to load its data."""
    live = session(training)
    context, body = join_context(training, live.plan.digest), AskJoin(training, live.plan.to_json())
    return named(Asked(*live.ask(site, "join", context, body, live.plan.deadlines.train_s)))


@step("joined")
def agree_on_plan(training: str, answers: dict[str, Asked]) -> str:
    """Check that every site has agreed to this very plan; gives the name of the examples that rounds measure.

    Raises:
        Refused: naming each site that has not, and why.
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

    try:
        found = gather("join", answers, check, len(live.plan.sites))
    except BelowThreshold as below:
        raise Refused("coordinator", "join", below.reason) from None
    return "/".join(sorted({joined.monitored for joined in found.present.values()}))


@step("leave[{site}]")
def leave(training: str, site: str) -> Any:
    """Ask a site to erase the training's secrets."""
    live = session(training)
    context = join_context(training, live.plan.digest)
    return named(Asked(*live.ask(site, "finish", context, AskFinish(training), live.plan.deadlines.step_s)))
