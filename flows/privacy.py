"""What a plan's privacy comes to: noise for each segment, and what each sum costs (SPEC 12, 6.10).

The plan says how much noise, as multiples of what one unit can change; this turns it into grid steps for the task's
own vector, and back into epsilon. Coordinator and sites compute the same from the same plan.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING

from flows.plan import Plan, PlanError
from flows.report import DROWNED
from flows.tables import FINE, grid_noise, noised_counts, tables_of
from ml_tasks.layout import Sizes
from ml_tasks.noised_metrics import Noise, parts
from protocols.contexts import Purpose, sha256
from protocols.encoding import CLAMPED, Segment
from protocols.errors import Refused
from protocols.gaussian import MAX_SIGMA
from protocols.ledger import Budget, Charge, LedgerEntry, charges, check_whole, standing
from protocols.privacy.accounting import Event, epsilon
from protocols.privacy.budget import affordable, check_budget
from protocols.privacy.clipping import Noised, noise_multiplier, sensitivity
from protocols.privacy.noise import (
    MIN_SHARE,
    carried,
    check_noised_headroom,
    divergence,
    share,
    tail_probability,
    total_variation_budget,
)

if TYPE_CHECKING:  # it imports torch, which whoever checks a receipt need not wait for
    from ml_tasks.task import SiteData

MOST_MOVED = 1.0
"""Noise that moves a weight by more than this in a whole training hides what the weight has learned."""
MANY_EXAMPLES = 1000
"""A plan that needs no more examples than this is not warned of."""
QUANTILE_PART = 0.1
"""Of a sum's privacy: what the quantile of an adaptive clip takes."""
COUNTED = {
    "cells": ("count.positives", "count.negatives"),
    "loss": ("count.loss",),
    "scores": ("count.scores",),
}
"""The segments of what an evaluation noises by itself: a unit is in one cell of both histograms."""


@dataclass(frozen=True, slots=True)
class Clipped:
    """Segments that are clipped jointly.

    Attributes:
        names: of the segments.
        bound: the longest vector that one unit adds to them, in their own units.
        part: of the sum's 1 / noise multiplier^2, which is what the parts of one release add up to.
    """

    names: tuple[str, ...]
    bound: float
    part: float

    def among(self, segments: Sequence[Segment]) -> list[Segment]:
        """Its segments."""
        return [one for one in segments if one.name in self.names]


def clips(plan: Plan, purpose: Purpose, segments: Sequence[Segment]) -> list[Clipped]:
    """What one unit can add to a sum; ``clamped`` holds nothing."""
    rules = plan.privacy
    match purpose:
        case "statistics":
            length = next(one.length for one in segments if one.name == "moments")
            return [Clipped(("moments",), math.sqrt(length), 1.0)]
        case "training" if rules.unit == "record":
            return [Clipped(("update",), 1.0, 1.0)]
        case "training":
            within = [Clipped(("within",), 0.5, QUANTILE_PART)] if rules.adaptive else []
            return [Clipped(("weight", "update"), 1.0, 1.0 - sum(one.part for one in within)), *within]
        case "evaluation":
            return [
                Clipped(COUNTED[name], plan.most_evaluated * bound, part) for name, bound, part in parts(plan.counting)
            ]


def alone(plan: Plan, parameters: int) -> tuple[tuple[Segment, ...], dict[str, float]]:
    """Table and sigmas of a step that a site noises all by itself, with local noise (SPEC 6.10)."""
    most = float(plan.protection.max_examples)
    table = (Segment("update", parameters, 64, FINE, most), Segment(CLAMPED, 1, 64, 1.0, float(parameters)))
    moved = sensitivity(1.0, FINE, parameters, summed=plan.protection.max_examples)
    return table, {"update": max(MIN_SHARE, plan.privacy.training_noise * moved), CLAMPED: MIN_SHARE}


def shares_of(plan: Plan, purpose: Purpose, segments: Sequence[Segment]) -> dict[str, float]:
    """Each site's sigma by segment, in grid steps; nothing where the plan has no privacy."""
    if plan.privacy.unit == "none":
        return {}
    shares, rules = {one.name: MIN_SHARE for one in segments}, plan.protection
    if purpose == "training" and plan.privacy.noise == "local":
        return shares  # what the sites sum is private already
    for clipped in clips(plan, purpose, segments):
        chosen = clipped.among(segments)
        thin = noise_multiplier(
            clipped.bound, [Noised(one.length, one.scale, one.scale) for one in chosen], summed=summed(plan)
        )
        wanted = noise_wanted(plan, purpose) / math.sqrt(clipped.part) / thin
        for one in chosen:
            shares[one.name] = share(wanted * one.scale, threshold=rules.threshold, colluding=rules.colluding)
    return shares


def metrics_noise(plan: Plan, sites: int) -> Noise:
    """The noise in the counts of an evaluation over so many sites, as standard deviations in their own units."""
    table = noised_counts(plan)
    shares = shares_of(plan, "evaluation", table)
    sigmas = {one.name: shares[one.name] * math.sqrt(sites) / one.scale for one in table}
    return Noise(sigmas["count.positives"], sigmas["count.loss"], sigmas["count.scores"])


def summed(plan: Plan) -> int:
    """The most clipped vectors that a site adds up before it encodes."""
    return 1 if plan.privacy.unit == "site" else plan.protection.max_examples


def events_of(plan: Plan, purpose: Purpose, segments: Sequence[Segment], shares: Mapping[str, float]) -> list[Event]:
    """What one such sum costs whoever is in it, with the fewest sites that may make it."""
    rules, threshold = plan.protection, plan.protection.threshold
    rate = plan.privacy.sampling_rate if purpose == "training" else 1.0
    if purpose == "training" and plan.privacy.noise == "local":
        (update, _), sigmas = alone(plan, next(one.length for one in segments if one.name == "update"))
        noise = noise_multiplier(1.0, [Noised(update.length, update.scale, sigmas["update"])], summed=summed(plan))
        return [Event(noise, rate, plan.private_steps)]
    found = []
    for clipped in clips(plan, purpose, segments):
        noised, far = [], 0.0
        for one in clipped.among(segments):
            sigma = carried(shares[one.name], threshold, threshold=threshold, colluding=rules.colluding)
            noised.append(Noised(one.length, one.scale, sigma))
            far += divergence(shares[one.name], len(plan.sites), one.length)
        found.append(Event(noise_multiplier(clipped.bound, noised, summed=summed(plan)), rate, 1, far))
    return found


def noise_wanted(plan: Plan, purpose: Purpose) -> float:
    """The plan's noise multiplier for a sum."""
    rules = plan.privacy
    return {
        "statistics": rules.statistics_noise,
        "training": rules.training_noise,
        "evaluation": rules.metrics_noise,
    }[purpose]


def check_privacy(plan: Plan, *, parameters: int, features: int) -> None:
    """Check that a plan keeps to its epsilon with this task's vector, every attempt of every round counted.

    Raises:
        PlanError: it does not, with the numbers.
        RingTooSmall: the noise has no room in a ring.
    """
    if plan.privacy.unit == "none":
        return
    rules = plan.privacy
    whole = planned_epsilon(plan, parameters=parameters, features=features)
    if whole > rules.epsilon:
        raise PlanError(
            f"plan: privacy: epsilon comes to {whole:.4g} with this model, more than {rules.epsilon:g}: raise "
            "the noise, or the scale of the update's ring"
        )
    tables = tables_of(plan, Sizes(weights=parameters, features=features))
    samples = sum(
        times(plan, purpose, plan.max_attempts) * len(plan.sites) * sum(one.length for one in table)
        for purpose, table in tables.items()
    )
    try:
        total_variation_budget(rules.epsilon, rules.delta, samples)
    except ValueError as error:
        raise PlanError(f"plan: privacy: {error}") from None
    rare = tail_probability(rules.delta, samples)
    for purpose, table in tables.items():
        shares = shares_of(plan, purpose, table)
        if (most := max(shares.values())) >= MAX_SIGMA:
            raise PlanError(
                f"plan: privacy: a site's noise in the {purpose} would be {most:.3g} grid steps, more than is drawn: "
                "lower protection.max_examples or the scale of the update's ring"
            )
        for one in table:
            check_noised_headroom(one, shares[one.name], len(plan.sites), rare)


def cautions(plan: Plan, parameters: int) -> list[str]:
    """Warn of numbers that drown what is learned: in privacy's noise, or in the rounding of a ring.

    Args:
        plan: any.
        parameters: length of the task's vector.
    """
    rules, sites = plan.privacy, len(plan.sites)
    if rules.unit == "none":
        fewest = fewest_examples(plan)
        return [] if fewest < MANY_EXAMPLES else [drowned(plan, f"fewer than {fewest:,.0f}")]
    spread = math.sqrt(sites / max(1, plan.honest_noise)) if rules.noise == "distributed" else 1 / math.sqrt(sites)
    name = "least_weight" if rules.unit == "site" else "expected_batch"
    steps = plan.rounds * plan.private_steps
    noise = rules.training_noise * spread * math.sqrt(steps) / getattr(rules, name)  # in longest steps, of each weight
    moved, ratio = noise * plan.longest_step, noise * math.sqrt(parameters) / steps
    found = []
    if moved > MOST_MOVED and not rules.adaptive:
        found.append(
            f"the noise moves each weight by {moved:.2g} in all rounds: a smaller privacy.clip ({rules.clip:g}), about "
            f"the length that gradients have, or a larger privacy.{name} ({getattr(rules, name):g}) would help"
        )
    if ratio > 1:
        found.append(
            f"the noise moves the model {ratio:.2g} times as far as {steps:,} steps of clipped length can: more sites, "
            f"examples (privacy.{name}) or epsilon, or a smaller model would help"
        )
    return found


def fewest_examples(plan: Plan) -> float:
    """With fewer examples at all sites together, rounding is seen in the model that a round makes."""
    rules = plan.protection
    return rules.max_examples * grid_noise(plan, len(plan.sites), 1.0) / DROWNED


def drowned(plan: Plan, examples: str) -> str:
    """Warn of a bound so far above what sites have that their weighed updates are of the size of a grid step."""
    return (
        f"with {examples} training examples in all, rounding adds more than {DROWNED:g} to each weight in a round: "
        f"lower protection.max_examples ({plan.protection.max_examples:,}) to about what the largest site has"
    )


def times(plan: Plan, purpose: Purpose, attempts: int) -> int:
    """How often a sum is attempted in a whole training, with so many attempts at each."""
    return attempts * (plan.rounds if purpose == "training" else 1)


def planned_epsilon(plan: Plan, *, parameters: int, features: int, attempts: int | None = None) -> float:
    """Epsilon of a whole training for whoever is in it, with every attempt that the plan allows, or so many a round."""
    tried = plan.max_attempts if attempts is None else attempts
    purposes: tuple[Purpose, ...] = ("statistics", "training", "evaluation")
    often = {purpose: times(plan, purpose, tried) for purpose in purposes}
    return _composed(plan, often, parameters=parameters, features=features)


def _composed(plan: Plan, often: Mapping[Purpose, int], *, parameters: int, features: int) -> float:
    return epsilon(_events(plan, often, parameters=parameters, features=features), plan.privacy.delta)


def _events(plan: Plan, often: Mapping[Purpose, int], *, parameters: int, features: int) -> list[Event]:
    """The events of sums that are made so often."""
    return [
        replace(event, count=often[purpose] * event.count)
        for purpose, table in tables_of(plan, Sizes(weights=parameters, features=features)).items()
        for event in events_of(plan, purpose, table, shares_of(plan, purpose, table))
        if often.get(purpose)
    ]


def affordable_rounds(plan: Plan, *, parameters: int, features: int) -> int:
    """Count the rounds that a plan's epsilon has room for at its noise, beside its statistics and its evaluation.

    Every round is counted with all of its attempts.
    """
    rules, sizes = plan.privacy, {"parameters": parameters, "features": features}
    once = _events(plan, {"statistics": plan.max_attempts, "evaluation": plan.max_attempts}, **sizes)
    return affordable(once, _events(plan, {"training": plan.max_attempts}, **sizes), Budget(rules.epsilon, rules.delta))


def epsilon_so_far(plan: Plan, made: Iterable[tuple[Purpose, int]], *, parameters: int, features: int) -> float | None:
    """Epsilon of the sums made so far, each with the number of attempts that it took; ``None`` without privacy."""
    if plan.privacy.unit == "none":
        return None
    tried = Counter[Purpose]()
    for purpose, attempts in made:
        tried[purpose] += attempts
    return _composed(plan, tried, parameters=parameters, features=features)


def charge_of(
    plan: Plan, purpose: Purpose, segments: Sequence[Segment], shares: Mapping[str, float], group: str
) -> Charge | None:
    """What an attempt at a sum costs a budget group; ``None`` where it is not noised.

    Args:
        plan: the training's.
        purpose: what is summed.
        segments: the sum's table.
        shares: each site's sigma by segment, empty without privacy.
        group: the budget group of the data set.
    """
    if not shares:
        return None
    return Charge(group, tuple(map(astuple, events_of(plan, purpose, segments, shares))))


def charges_of(plan: Plan, *, parameters: int, features: int, group: str) -> list[Charge]:
    """What a whole training costs a budget group, where each round takes one attempt."""
    found = []
    for purpose, table in tables_of(plan, Sizes(weights=parameters, features=features)).items():
        charge = charge_of(plan, purpose, table, shares_of(plan, purpose, table), group)
        found += [charge] * times(plan, purpose, 1) if charge else []
    return found


def events_in(charged: Iterable[Charge]) -> list[Event]:
    """The events of charges."""
    return [Event(*event) for charge in charged for event in charge.events]


def afford(
    site: str,
    entries: Sequence[LedgerEntry],
    more: Sequence[Charge],
    budget: Budget,
    names: Collection[str] = (),
) -> None:
    """Refuse charges, all to one budget group, that its budget has no room for, or where the ledger cannot tell.

    Args:
        site: the site's name.
        entries: the ledger's.
        more: what is asked for.
        budget: the group's.
        names: of the group's data sets, which old lines hold.

    Raises:
        Refused: with the numbers.
    """
    if more:
        check_whole(site, entries)
        group = more[0].data
        check_budget(site, group, events_in(charges(entries, {group, *names})), events_in(more), budget)


def check_plan_kept(site: str, plan: Plan, entries: Iterable[LedgerEntry], charge: Charge) -> None:
    """Refuse an attempt with which this training would cost more than its plan says, whoever asks for it.

    Args:
        site: the site's name.
        plan: the training's.
        entries: the lines of the ledger that are this training's.
        charge: the attempt's.

    Raises:
        Refused: with the numbers.
    """
    rules = plan.privacy
    whole = epsilon(events_in([*standing(entries), charge]), rules.delta)
    if whole > rules.epsilon:
        raise Refused(site, "advertise", f"the plan's epsilon of {rules.epsilon:g} is used up: it would be {whole:.4g}")


def fingerprint(data: "SiteData") -> str:
    """Digest of a site's examples."""
    parts = []
    for examples in (data.train, data.test, data.validation):
        if examples is not None:
            arrays = (examples.features, examples.targets, examples.groups)
            parts += ["none" if one is None else hashlib.sha256(one.tobytes()).hexdigest() for one in arrays]
    return sha256("data", *parts)
