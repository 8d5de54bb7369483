"""``fedseal plan``: what a plan costs and protects, and whether it is allowed, before anything runs (SPEC 6.7)."""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from rich.console import Console

from deploy.show import print_table
from flows.messages import Done
from flows.plan import Plan
from flows.privacy import affordable_rounds, cautions, metrics_noise, planned_epsilon, shares_of
from flows.report import UNCLEAR
from flows.steps import work_of
from flows.tables import tables_of
from ml_tasks.layout import Sizes
from ml_tasks.noised_metrics import WIDEST, expected_widths
from ml_tasks.task import Task
from protocols.contexts import AttemptContext, Purpose, sha256
from protocols.encoding import CLAMPED, Segment, check_headroom, encode, vector_bytes
from protocols.history import NO_HISTORY
from protocols.keys import KEY_BYTES, Consortium, Identity
from protocols.masks import Mask, apply_masks
from protocols.messages import (
    COORDINATOR,
    EVERYONE,
    AskShare,
    Confirmation,
    MaskedVector,
    Reveal,
    envelope,
)
from protocols.privacy.noise import add_noise
from protocols.secagg_site import advertise, share
from protocols.shamir import SHARE_BYTES

MEASURED_ELEMENTS = 1_000_000
"""A longer vector is timed on its first so many elements."""


@dataclass(frozen=True, slots=True)
class Price:
    """What one sum costs a site.

    Attributes:
        purpose: what is summed; times: how often in the whole training.
        segments: the vector's table.
        vector_bytes, message_bytes: what the site sends.
        seconds: of one core for encoding and masking, measured on this machine.
    """

    purpose: Purpose
    times: int
    segments: tuple[Segment, ...]
    vector_bytes: int
    message_bytes: int
    seconds: float


def price(plan: Plan, sizes: Sizes) -> list[Price]:
    """Price every sum of a plan.

    Raises:
        RingTooSmall: where a sum could overflow, with the numbers.
    """
    protected, prices = plan.protection.protocol != "plain", []
    for purpose, segments in tables_of(plan, sizes).items():
        check_headroom(segments, len(plan.sites))
        times = plan.rounds if purpose == "training" else 1
        messages = message_bytes(plan, purpose, segments) if protected else 0
        shares = shares_of(plan, purpose, segments)
        seconds = masking_seconds(segments, len(plan.sites) if protected else 0, shares)
        prices.append(Price(purpose, times, segments, vector_bytes(segments), messages, seconds))
    return prices


def message_bytes(plan: Plan, purpose: Purpose, segments: tuple[Segment, ...]) -> int:
    """The size of all messages that a site sends in one sum: made for real, with keys of the moment."""
    identities = {site: Identity.generate(site) for site in plan.sites}
    keys = {site: identity.public for site, identity in identities.items()}
    consortium, rules = Consortium(Identity.generate(COORDINATOR).public, keys), plan.protection
    digest, round_ = sha256("price"), 0 if purpose == "statistics" else 1
    name = plan.name.ljust(len(plan.name) + 21, "x")  # as long as the name that a training gets
    context = AttemptContext(
        purpose, name, round_, 1, plan.digest, keys, rules.threshold, rules.colluding, digest, segments, {}
    )
    opened = [advertise(identity, consortium, context, NO_HISTORY, answers=digest) for identity in identities.values()]
    me = identities[plan.sites[0]]
    _, shares = share(me, opened[0][0], AskShare(tuple(advert for _, advert in opened)), answers=digest)
    say = partial(envelope, me, answers=digest)
    masked = say("masked", digest, COORDINATOR, MaskedVector(digest, vector_bytes(segments)))
    confirmation = say("confirmation", digest, EVERYONE, Confirmation(plan.sites))
    revealed = Reveal({site: "0" * 2 * SHARE_BYTES for site in plan.sites}, {})
    done = [say("done", digest, COORDINATOR, Done()) for _ in work_of(plan, purpose)]
    sent = [opened[0][1], *shares, masked, confirmation, say("reveal", digest, COORDINATOR, revealed), *done]
    return sum(len(message.to_json()) for message in sent)


def masking_seconds(segments: tuple[Segment, ...], masks: int, shares: Mapping[str, float]) -> float:
    """Seconds of one core to encode, noise and mask a vector, measured here on at most ``MEASURED_ELEMENTS``."""
    total = sum(segment.length for segment in segments)
    share_of = min(1.0, MEASURED_ELEMENTS / total)
    part = tuple(
        Segment(one.name, max(1, int(one.length * share_of)), one.bits, one.scale, one.max_abs) for one in segments
    )
    values = {one.name: np.zeros(one.length, np.float32) for one in part if one.name != CLAMPED}
    began = time.perf_counter()
    vector = encode("price", values, part, os.urandom(KEY_BYTES))
    if shares:
        add_noise(vector, part, shares)
    apply_masks(vector, part, [Mask(os.urandom(KEY_BYTES), 1)] * masks)
    return (time.perf_counter() - began) * total / sum(one.length for one in part)


def show_price(plan: Plan, task: Task, sizes: Sizes, prices: list[Price]) -> None:
    """Print what a plan costs and protects."""
    console, rules = Console(highlight=False), plan.protection
    write = partial(console.print, soft_wrap=True)
    write(f"{plan.name}: {task.title}. Plan {plan.digest}, code {plan.code or 'not named'}")
    write(
        f"{len(plan.sites)} sites, {plan.rounds} rounds, at most {plan.max_attempts} attempts at each; threshold "
        f"{rules.threshold}, colluding {rules.colluding}: allowed."
    )
    heads = ("sum", "segment", "elements", "bits", "scale", "range", "free bits")
    rings = [
        (
            one.purpose,
            segment.name,
            f"{segment.length:,}",
            str(segment.bits),
            power(segment.scale),
            f"±{segment.max_abs:g}",
            str(segment.bits - 1 - (len(plan.sites) * segment.bound).bit_length()),
        )
        for one in prices
        for segment in one.segments
    ]
    print_table(console, "Rings: no sum can overflow", heads, rings, left=2)
    heads_of_costs = ("sum", "times", "vector bytes", "message bytes", "mask seconds (here)")
    costs = [
        (one.purpose, str(one.times), f"{one.vector_bytes:,}", f"{one.message_bytes:,}", f"{one.seconds:.4f}")
        for one in prices
    ]
    print_table(console, "What a site sends and computes", heads_of_costs, costs)
    whole = sum(one.times * (one.vector_bytes + one.message_bytes) for one in prices)
    write(f"The whole training: {whole:,} bytes a site, where every first attempt succeeds.")
    for line in promises(plan, sizes.parameters, sizes.features):
        write(line)


def power(scale: float) -> str:
    """A scale as a power of two, where it is one."""
    exponent = math.log2(scale)
    return f"2^{exponent:.0f}" if exponent.is_integer() else f"{scale:g}"


def promises(plan: Plan, parameters: int, features: int) -> list[str]:
    """Say what protects what under this plan."""
    rules = plan.protection
    if rules.protocol == "plain":
        return ["NOT PROTECTED: the plain protocol shows every site's update and counts to the coordinator."]
    return [
        f"Smallest survivor set: {rules.threshold} sites, at least {rules.threshold - rules.colluding} of them honest "
        f"if {rules.colluding} collude(s); up to {len(plan.sites) - rules.threshold} may drop out of a round.",
        "Masks hide every update, weight, metric and statistic; the coordinator learns the sums. Signatures and "
        "contexts bind plan, model, roster and table; the journal keeps a retry from using a mask twice.",
        *privacy_promises(plan, parameters, features),
        *(f"Careful: {caution}." for caution in cautions(plan, parameters)),
    ]


def privacy_promises(plan: Plan, parameters: int, features: int) -> list[str]:
    """Say what differential privacy the plan gives, to whom, and what it is reckoned with."""
    rules, protection = plan.privacy, plan.protection
    if rules.unit == "none":
        return ["No differential privacy: the sums and the model themselves may tell of single records."]
    tables = tables_of(plan, Sizes(weights=parameters, features=features))
    shares = {purpose: shares_of(plan, purpose, table) for purpose, table in tables.items()}
    update = next(one for one in tables["training"] if one.name == "update")
    honest, sites = protection.threshold - protection.colluding, len(plan.sites) - protection.colluding

    def at(attempts: int, rounds: int) -> float:
        return planned_epsilon(
            plan.model_copy(update={"rounds": rounds}), parameters=parameters, features=features, attempts=attempts
        )

    whole, usual, first = at(plan.max_attempts, plan.rounds), at(1, plan.rounds), at(1, 1)
    noise = shares["training"]["update"] / update.scale
    spread = math.sqrt(sites / honest)
    lines = [
        f"Differential privacy: epsilon {whole:.4g} at delta {rules.delta:g} for adding or removing one {rules.unit} "
        f"{'' if rules.unit == 'site' else '(a patient, where the task says whose a record is) '}"
        f"with every attempt that the plan allows; {usual:.4g} where each round takes one, {first:.4g} if it has one "
        "round.",
        f"At this noise, epsilon {rules.epsilon:g} has room for "
        f"{affordable_rounds(plan, parameters=parameters, features=features):,} rounds.",
    ]
    if rules.noise == "local":
        noise = rules.training_noise
        lines.append(
            f"Each site adds noise of {noise:.4g} clips to each of its {plan.private_steps} steps a round, all by "
            f"itself: {math.sqrt(honest):.2f} times what it would add if {honest} sites shared it, at every step."
        )
    else:
        lines.append(
            f"Each site adds noise of {noise:.4g} clips to a round. It holds with the noise of {honest} sites; all "
            f"{sites} that do not collude carry {spread:.2f} times as much."
        )
    if rules.unit == "site":
        adapts = f", which follows the {rules.quantile:g}-quantile of their lengths" if rules.adaptive else ""
        lines.append(f"Update and weight of a site are clipped jointly; updates to {rules.clip:g}{adapts}.")
    else:
        lines.append(
            f"A step samples each unit with probability {rules.sampling_rate:g}. The statistics "
            + (f"take {rules.statistics_share:.0%} of epsilon." if rules.statistics == "noised" else "are the bounds'.")
        )
    return [
        *lines,
        f"The final metrics take {rules.metrics_share:.0%} of epsilon; no round is measured, and none stops early.",
        *foretold(plan),
    ]


def foretold(plan: Plan) -> list[str]:
    """Say how wide the noised metrics' intervals will be, and which metrics will have no number."""
    rules, counting = plan.privacy, plan.counting
    widths = expected_widths(rules.test_examples, metrics_noise(plan, len(plan.sites)), counting)
    del widths["examples"]
    clear = ", ".join(f"{name} ±{width:.2g}" for name, width in widths.items() if width <= WIDEST)
    unclear = ", ".join(name for name, width in widths.items() if width > WIDEST)
    lines = [
        f"They are counted in {counting.bins} bins a class, a loss up to {counting.loss_cap:g}. Their 90 % intervals, "
        f"of the noise alone, for about {rules.test_examples:,} test examples of all sites (privacy.test_examples), "
        f"half of them positive, and a calibrated model of accuracy .75: {clear or 'none that says anything'}."
    ]
    return [*lines, f"{unclear}: {UNCLEAR}."] if unclear else lines
