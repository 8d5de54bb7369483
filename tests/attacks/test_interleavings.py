"""Rules 1 to 5 over every order of steps, retries, crashes and lies that a search comes up with (SPEC 8).

Four sites over real vaults; a coordinator that proposes any attempt, shows any roster, inbox, survivor set or set of
confirmations, repeats itself and mixes its messages up; sites that are restarted, or die in the middle of a step; and
one site that acts with the coordinator. ``Witness`` hears every answer. For a longer search:

    pytest tests/attacks/test_interleavings.py --hypothesis-profile=thorough --timeout=0
"""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from protocols import secagg_site
from protocols.contexts import AttemptContext, sha256
from protocols.encoding import Segment
from protocols.errors import ProtocolError
from protocols.keys import Identity
from protocols.messages import (
    COORDINATOR,
    EVERYONE,
    AskAdvertise,
    AskConfirm,
    AskMask,
    AskReveal,
    AskShare,
    Confirmation,
    Reveal,
    SealedShare,
    envelope,
    parse,
)
from protocols.secagg_site import Advertised, Masked
from protocols.shamir import SHARE_BYTES
from tests.attacks.hostile import make, reopen
from tests.attacks.witness import Round, Witness, state_of
from tests.simulator import ROUNDING_KEY, Answers, Values, durable

SITES, LIAR, THRESHOLD = ("a", "b", "c", "d"), "d", 3
ABSENT = Identity("e", bytes(32))  # in the consortium, but of no plan: with five sites three are too few
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there: each commit waits for a real disk
SITE = st.sampled_from(SITES)
FEW = st.sets(SITE, min_size=1).map(lambda sites: tuple(sorted(sites)))
SOME = st.just(SITES) | st.sampled_from(tuple(combinations(SITES, THRESHOLD))) | FEW
TWICE = st.lists(SITE, min_size=THRESHOLD, max_size=4).map(tuple)
ROUND, ATTEMPT = st.integers(1, 2), st.integers(1, 3)
STEPS = st.sampled_from((0, 1, 2, 3, 3))
HITCHES = ("is in no roster", "does not share", "does not mask", "is dealt a lie", "confirms another set")
HITCH = st.tuples(st.sampled_from((*HITCHES, "is as the others")), SITE)
BACK = st.sampled_from((0, 0, 0, 1, 2))
ANY_ROUND = precondition(lambda machine: machine.witness.rounds)
ANY = st.integers(0, 999)

Change = Callable[[AttemptContext, str], AttemptContext]
UNSAFE: dict[str, Change] = {
    "two survivor sets reach the threshold": lambda context, _: replace(
        context, sites={**context.sites, ABSENT.name: ABSENT.public}
    ),
    "a sum may be of one honest site": lambda context, _: replace(context, threshold=4, colluding=3),
    "the threshold is above the sites": lambda context, _: replace(context, threshold=5),
    "another plan": lambda context, _: replace(context, plan=sha256("another plan")),
    "a roster without the site": lambda context, site: replace(
        context, sites={one: key for one, key in context.sites.items() if one != site}
    ),
    "a stranger": lambda context, _: replace(context, sites={**context.sites, "stranger": sha256("key")}),
    "another key": lambda context, _: replace(context, sites={**context.sites, "a": sha256("key")}),
    "statistics in a round of training": lambda context, _: replace(context, purpose="statistics"),
    "no headroom": lambda context, _: replace(
        context, segments=(Segment("wide", 3, 16, 1.0, 9000.0), *context.segments[1:])
    ),
    "no clamped count": lambda context, _: replace(context, segments=context.segments[:-1]),
}


class Killed(BaseException):
    """The site's process has died: no handler of the site's may see it."""


class Dying:
    """A connection whose process dies just before a statement; SQLite sees what it sees of a killed process."""

    def __init__(self, connection: sqlite3.Connection, statements: int) -> None:
        self._connection = connection
        self._left = statements

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self._left -= 1
        if self._left < 0:
            raise Killed
        return self._connection.execute(*arguments)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    @property
    def total_changes(self) -> int:
        return self._connection.total_changes

    def close(self) -> None:
        self._connection.close()


class Interleavings(RuleBasedStateMachine):
    """The coordinator, playing against the sites."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.simulator, first = make(Path(self.folder.name), SITES, THRESHOLD)
        keys = {**self.simulator.consortium.sites, ABSENT.name: ABSENT.public}
        self.simulator.consortium = replace(self.simulator.consortium, sites=keys)
        second = self.simulator.random_values(np.random.default_rng(8), self.simulator.context.segments)
        self.values = (first, second)
        self.witness = Witness(self.simulator, LIAR)
        self.dies_at: dict[str, int] = {}
        self.asked: list[tuple[str, str, str, object, Values]] = []

    def teardown(self) -> None:
        event(f"sums: {min(self.witness.sums, 3)}")
        self.simulator.close()
        self.folder.cleanup()

    def ask(self, site: str, step: str, context: str, body: object, values: Values | None = None) -> Answers | None:
        """Ask a site; ``None`` if it refuses, or dies before it has answered."""
        values = values or {}
        self.asked.append((site, step, context, body, values))
        request = envelope(self.simulator.coordinator, f"ask/{step}", context, site, body)
        vault, more = self.simulator.vaults[site], (values, ROUNDING_KEY) if step == "mask" else ()
        dies_at = self.dies_at.pop(site, None)
        if dies_at is not None:
            vault._db = Dying(vault._db, dies_at)
        try:
            answer = getattr(durable, step)(vault, self.simulator.consortium, request, *more)
            if dies_at is not None:
                raise Killed
        except (ProtocolError, Killed):
            return None
        finally:
            if dies_at is not None:
                reopen(self.simulator, site)
        self.witness.hears(site, step, request, body, values, answer)
        return answer

    def round(self, back: int) -> Round:
        """The newest round, or one so far back."""
        rounds = list(self.witness.rounds.values())
        return rounds[-1 - back % len(rounds)]

    @initialize(steps=STEPS, hitch=HITCH)
    def begin(self, steps: int, hitch: tuple[str, str]) -> None:
        self.run_honestly(1, 1, True, steps, hitch)

    @rule(number=ROUND, attempt=ATTEMPT, same=st.booleans(), steps=STEPS, hitch=HITCH)
    def run_honestly(self, number: int, attempt: int, same: bool, steps: int, hitch: tuple[str, str]) -> None:
        """An attempt as the honest coordinator makes it, up to some step; one site may be gone, or be lied to."""
        what, site = hitch
        others = tuple(one for one in SITES if one != site)
        self.propose(number, attempt, same, SITES)
        if self.witness.adverts:
            roster, asked = (others if what == one else SITES for one in HITCHES[:2])
            self.ask_for_shares(0, roster, asked)
        if self.witness.rounds and what == "is dealt a lie":
            self.deal_anything(0, site)
        for step in range(steps):
            if self.witness.rounds and (what, step) == ("confirms another set", 1):
                self.ask_to_confirm(0, others, (site,), None)  # a set without itself, which must not bind it
                self.ask_to_confirm(0, SITES, others, (site, *others[1:]))
            else:
                self.go_on(0, others if what == "does not mask" else SITES)

    @rule(number=ROUND, attempt=ATTEMPT, same=st.booleans(), sites=SOME)
    def propose(self, number: int, attempt: int, same: bool, sites: tuple[str, ...]) -> None:
        """An attempt, from the same incoming model as others or from another one."""
        context = self.simulator.at(number, attempt, "one model" if same else "another")
        for site in sites:
            self.ask(site, "advertise", context.digest, AskAdvertise(context))

    @rule(site=SITE)
    def propose_what_is_unsafe(self, site: str) -> None:
        """In a round that nothing else stands against."""
        for what, change in UNSAFE.items():
            context = change(self.simulator.at(3, 1), site)
            assert self.ask(site, "advertise", context.digest, AskAdvertise(context)) is None, what

    @precondition(lambda machine: machine.witness.adverts)
    @rule(back=BACK, roster=SOME, sites=SOME)
    def ask_for_shares(self, back: int, roster: tuple[str, ...], sites: tuple[str, ...]) -> None:
        context, adverts = list(self.witness.adverts.items())[-1 - back % len(self.witness.adverts)]
        ask = AskShare(tuple(adverts[site] for site in roster if site in adverts))
        for site in sites:
            self.ask(site, "share", context, ask)

    @ANY_ROUND
    @rule(back=BACK, dealers=SOME, sites=SOME, values=st.sampled_from((0, 0, 0, 1)))
    def ask_to_mask(self, back: int, dealers: tuple[str, ...], sites: tuple[str, ...], values: int) -> None:
        round_ = self.round(back)
        for site in sites:
            inbox = tuple(
                dealt[site] for dealer, dealt in sorted(round_.dealt.items()) if dealer in dealers and site in dealt
            )
            self.ask(site, "mask", round_.roster.round, AskMask(inbox), self.values[values][site])

    @ANY_ROUND
    @rule(back=BACK, survivors=SOME | TWICE, sites=SOME, others=st.none() | SOME)
    def ask_to_confirm(
        self, back: int, survivors: tuple[str, ...], sites: tuple[str, ...], others: tuple[str, ...] | None
    ) -> None:
        """Ask some sites to confirm a survivor set, and the rest another one."""
        for site in SITES:
            asked = survivors if site in sites else others
            if asked is not None:
                self.ask(site, "confirm", self.round(back).roster.round, AskConfirm(asked))

    @ANY_ROUND
    @rule(back=BACK, shown=SOME, sites=SOME, agreeing=st.booleans())
    def ask_to_reveal(self, back: int, shown: tuple[str, ...], sites: tuple[str, ...], agreeing: bool) -> None:
        """Show sites one confirmation of each sender: of the survivor set that they believe in, or of any."""
        round_ = self.round(back)
        for site in sites:
            own = self.witness.confirmed(site, round_.roster.round)
            words = [one for one in round_.confirmations if one.sender in shown]
            chosen = {one.sender: one for one in words if not agreeing or round_.said(one) == own}
            self.ask(site, "reveal", round_.roster.round, AskReveal(tuple(chosen.values())))

    @ANY_ROUND
    @rule(back=BACK, sites=SOME)
    def go_on(self, back: int, sites: tuple[str, ...]) -> None:
        """The next step of these sites, as the honest coordinator asks for it."""
        if not self.witness.rounds:
            return
        round_ = self.round(back)
        if not round_.vectors:
            self.ask_to_mask(back, SITES, sites, 0)
        elif not round_.confirmations:
            self.ask_to_confirm(back, tuple(sorted(round_.vectors)), sites, None)
        else:
            self.ask_to_reveal(back, SITES, sites, True)

    @rule(site=SITE)
    def restart(self, site: str) -> None:
        reopen(self.simulator, site)

    @rule(site=SITE, statements=st.integers(0, 14))
    def die_in_the_next_step(self, site: str, statements: int) -> None:
        self.dies_at[site] = statements

    @precondition(lambda self: self.asked)
    @rule(which=ANY)
    def ask_again(self, which: int) -> None:
        self.ask(*self.asked[which % len(self.asked)])

    @precondition(lambda self: self.asked)
    @rule(which=ANY, other=ANY, site=SITE)
    def mix_up(self, which: int, other: int, site: str) -> None:
        """What was said to one site in one context, to another site in another."""
        _, step, _, body, values = self.asked[which % len(self.asked)]
        _, _, context, _, _ = self.asked[other % len(self.asked)]
        self.ask(site, step, context, body, values)

    @ANY_ROUND
    @rule(back=BACK, survivors=SOME)
    def confirm_anything(self, back: int, survivors: tuple[str, ...]) -> None:
        """The lying site signs any survivor set, for whoever will believe it."""
        round_, identity = self.round(back), self.simulator.vaults[LIAR].identity
        body = Confirmation(survivors)
        round_.confirmations.append(envelope(identity, "confirmation", round_.roster.round, EVERYONE, body))

    @ANY_ROUND
    @rule(back=BACK, survivors=SOME, altered=st.sampled_from((None, *SITES)))
    def reveal_anything(self, back: int, survivors: tuple[str, ...], altered: str | None) -> None:
        """The lying site reveals both shares of everybody, or as for any survivor set, with a share altered."""
        round_, vault = self.round(back), self.simulator.vaults[LIAR]
        digest = round_.roster.round
        if (state := state_of(vault, digest, Masked)) is None:
            return
        self_shares = {dealer: share.hex() for dealer, share in state.self_shares.items()}
        key_shares = {dealer: share.hex() for dealer, share in state.key_shares.items()}
        if altered in self_shares:
            self_shares[altered] = "00" * SHARE_BYTES
            self_shares = {dealer: share for dealer, share in self_shares.items() if dealer in survivors}
            key_shares = {dealer: share for dealer, share in key_shares.items() if dealer not in survivors}
        body = Reveal(self_shares, key_shares)
        round_.reveals.append(envelope(vault.identity, "reveal", digest, COORDINATOR, body))
        self.witness.check_sums(round_)

    @ANY_ROUND
    @rule(back=BACK, receiver=SITE)
    def deal_anything(self, back: int, receiver: str) -> None:
        """The lying site deals one receiver shares of other secrets, as if they were of those it has committed to."""
        round_, vault = self.round(back), self.simulator.vaults[LIAR]
        roster = round_.roster
        state = state_of(vault, roster.context.digest, Advertised)
        if state is None or receiver not in round_.dealt.get(LIAR, {}) or round_.vectors:
            return
        _, dealt = secagg_site.share(vault.identity, state, AskShare(roster.envelopes))
        other = {message.receiver: message for message in dealt}[receiver]
        first, second = (
            parse(SealedShare, message.body, party="test", step="share")
            for message in (round_.dealt[LIAR][receiver], other)
        )
        body = replace(second, seed_commitment=first.seed_commitment)
        round_.dealt[LIAR][receiver] = envelope(vault.identity, "share", roster.round, receiver, body)


TestInterleavings = pytest.mark.slow(Interleavings.TestCase)
TestInterleavings.settings = settings(stateful_step_count=40)
