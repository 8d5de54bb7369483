"""The one simulator: a consortium in memory and on disk, whose sites drop, delay, replay and lie (python-tuf's idea).

It runs the real steps of ``protocols.site`` over real vaults and the real steps of the coordinator, without Prefect and
without training. A test says how each site behaves, and may play the coordinator by hand with ``ask``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.collect import Absent, collect
from protocols import secagg_coordinator as coordinator
from protocols import site as durable
from protocols.contexts import AttemptContext, sha256
from protocols.encoding import CLAMPED, Segment, encode, integers
from protocols.errors import ProtocolError
from protocols.keys import Consortium, Identity
from protocols.messages import (
    COORDINATOR,
    AskAdvertise,
    AskConfirm,
    AskMask,
    AskReveal,
    AskShare,
    Envelope,
    envelope,
)
from protocols.secagg_site import check_advert, check_confirmation
from protocols.vault import Vault

STEPS = ("advertise", "share", "mask", "confirm", "reveal")
ROUNDING_KEY = bytes(range(32))
Answers = tuple[Envelope, ...]
Values = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True)
class Behaviour:
    """How a site behaves.

    Attributes:
        silent: steps that it is never reached for.
        late: steps that it does, but whose answer comes too late.
        repeats: whether each request reaches it twice, the second answer being the one that counts.
        lies: what it makes of its honest answer, by step.
    """

    silent: frozenset[str] = frozenset()
    late: frozenset[str] = frozenset()
    repeats: bool = False
    lies: Mapping[str, Callable[[Answers], Answers]] = field(default_factory=dict)


HONEST = Behaviour()


def gone_from(step: str) -> Behaviour:
    """A site that is gone from ``step`` on."""
    return Behaviour(silent=frozenset(STEPS[STEPS.index(step) :]))


@dataclass(frozen=True)
class Outcome:
    """A finished sum: its survivors, the integers by segment, and whom ``unmask`` blamed."""

    survivors: tuple[str, ...]
    integers: Mapping[str, NDArray[np.int64]]
    faults: tuple[ProtocolError, ...]


def small_segments() -> tuple[Segment, ...]:
    """A table with each ring in it."""
    return (
        Segment("wide", 3, 64, 2.0**20, 1000.0),
        Segment("update", 5, 32, 2.0**10, 8.0),
        Segment("counts", 4, 16, 1.0, 500.0),
        Segment(CLAMPED, 1, 32, 1.0, 1000.0),
    )


class Simulator:
    """``sites`` vaults and a coordinator in ``folder``."""

    def __init__(self, folder: Path, sites: Sequence[str], *, threshold: int, colluding: int = 1) -> None:
        self.coordinator = Identity.generate(COORDINATOR)
        self.vaults: dict[str, Vault] = {}
        for site in sites:
            self.vaults[site] = Vault(folder / site)
            self.vaults[site].keep_identity(Identity.generate(site))
        keys = {site: vault.identity.public for site, vault in self.vaults.items()}
        self.consortium = Consortium(self.coordinator.public, keys)
        self.context = AttemptContext(
            "training", "trial", 1, 1, sha256("plan"), keys, threshold, colluding, sha256("model"), small_segments(), {}
        )
        for vault in self.vaults.values():
            assert vault.agree("trial", self.context.plan)

    def close(self) -> None:
        """Close every vault."""
        for vault in self.vaults.values():
            vault.close()

    def at(self, round_: int, attempt: int, model: str | None = None) -> AttemptContext:
        """The context of another round or attempt; each round has a model of its own unless told."""
        digest = sha256(model or f"model {round_}") if (model or round_ > 1) else self.context.model
        return replace(self.context, round=round_, attempt=attempt, model=digest)

    def random_values(self, generator: np.random.Generator, segments: Sequence[Segment]) -> dict[str, Values]:
        """Test inputs (not secrets) for every site, some beyond the range so that they are clamped."""
        return {
            site: {
                segment.name: generator.uniform(-1.2, 1.2, segment.length) * segment.max_abs
                for segment in segments
                if segment.name != CLAMPED
            }
            for site in self.vaults
        }

    def ask(self, site: str, step: str, context: str, body: object, values: Values | None = None) -> Answers:
        """Sign a request and give the site's answer, as the coordinator would; refusals are raised."""
        request = envelope(self.coordinator, f"ask/{step}", context, site, body)
        vault = self.vaults[site]
        if step == "mask":
            assert values is not None
            return durable.mask(vault, self.consortium, request, values, ROUNDING_KEY)
        steps = {
            "advertise": durable.advertise,
            "share": durable.share,
            "confirm": durable.confirm,
            "reveal": durable.reveal,
        }
        return steps[step](vault, self.consortium, request)

    def masked(self, site: str, attempt_context: str) -> NDArray[np.uint8]:
        """The masked vector that a site has journaled."""
        return np.fromfile(self.vaults[site].masked_path(attempt_context), np.uint8)

    def run(
        self,
        values: Mapping[str, Values],
        behaviours: Mapping[str, Behaviour] | None = None,
        context: AttemptContext | None = None,
    ) -> Outcome:
        """Run one attempt from ``advertise`` to ``unmask``.

        Raises:
            BelowThreshold: if too few sites are left.
            BadDealer: if a dealer lied.
        """
        context = context or self.context
        behaviours = behaviours or {}
        threshold = context.threshold

        def poll(
            step: str, sites: Sequence[str], digest: str, body: Callable[[str], object]
        ) -> dict[str, Answers | Absent]:
            answers = {}
            for site in sites:
                answers[site] = self._poll(site, step, digest, body(site), behaviours.get(site, HONEST), values[site])
            return answers

        adverts = collect(
            "advertise",
            poll("advertise", sorted(context.sites), context.digest, lambda _: AskAdvertise(context)),
            lambda site, answer: (check_advert(context, site, answer[0]), answer[0])[1],
            threshold=threshold,
        )
        roster = coordinator.open_roster(context, adverts.present.values())
        dealt = collect(
            "share",
            poll("share", roster.sites, context.digest, lambda _: AskShare(roster.envelopes)),
            lambda site, answer: (coordinator.check_dealing(roster, site, answer), answer)[1],
            threshold=threshold,
        )
        dealings = coordinator.inboxes(roster, dealt.present)
        masked = collect(
            "mask",
            poll("mask", dealings.sites, roster.round, lambda site: AskMask(dealings.inbox(site))),
            lambda site, answer: coordinator.check_masked(dealings, site, answer[0]),
            threshold=threshold,
        )
        survivors = masked.sites
        confirmed = collect(
            "confirm",
            poll("confirm", survivors, roster.round, lambda _: AskConfirm(survivors)),
            lambda site, answer: (check_confirmation(context, roster.round, survivors, site, answer[0]), answer[0])[1],
            threshold=threshold,
        )
        ask = AskReveal(tuple(confirmed.present.values()))
        reveals = collect(
            "reveal",
            poll("reveal", confirmed.sites, roster.round, lambda _: ask),
            lambda _, answer: answer[0],
            threshold=threshold,
        )
        recovered = coordinator.recover_masks(dealings, survivors, reveals.present.values())
        total = coordinator.sum_vectors(context, (self.masked(site, context.digest) for site in survivors))
        coordinator.unmask(total, context, recovered)
        return Outcome(survivors, integers(total, context.segments), recovered.faults)

    def _poll(
        self, site: str, step: str, digest: str, body: object, behaviour: Behaviour, values: Values
    ) -> Answers | Absent:
        if step in behaviour.silent:
            return Absent("not reached")
        try:
            answer = self.ask(site, step, digest, body, values)
            if behaviour.repeats:
                assert self.ask(site, step, digest, body, values) == answer
        except ProtocolError as refusal:
            return Absent(str(refusal))
        if step in behaviour.late:
            return Absent("too late")
        return behaviour.lies.get(step, lambda honest: honest)(answer)


def plain_sum(values: Mapping[str, Values], sites: Sequence[str], segments: Sequence[Segment]) -> dict[str, list[int]]:
    """The integer sum of the encoded inputs in plain Python integers: what every secure sum must equal bit for bit."""
    totals = {segment.name: [0] * segment.length for segment in segments}
    for site in sites:
        vector = encode(site, values[site], segments, ROUNDING_KEY)
        for name, encoded in integers(vector, segments).items():
            totals[name] = [total + int(one) for total, one in zip(totals[name], encoded, strict=True)]
    return totals
