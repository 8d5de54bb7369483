"""A witness of everything that sites have answered, to whomever and in whatever order: the rules must hold over it all.

It keeps what a coordinator that forgets nothing would keep, and fails as soon as a rule of SPEC 8 is broken: by an
answer that contradicts an earlier one, by one that should have been refused, or by what can be read of it all together.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocols import secagg_coordinator as coordinator
from protocols.contexts import AttemptContext, canonical
from protocols.encoding import integers
from protocols.errors import ProtocolError
from protocols.messages import AskAdvertise, AskMask, AskReveal, AskShare, Body, Confirmation, Envelope, adapter, parse
from protocols.secagg_coordinator import Dealings, Roster
from protocols.vault import Vault
from tests.attacks.hostile import body_of, readable
from tests.simulator import Answers, Simulator, Values, plain_sum

_BEFORE = {"Confirmed": "masked", "Masked": "shared", "Shared": "advertised"}


@dataclass(eq=False)
class Round:
    """What was heard under one roster of one attempt."""

    roster: Roster
    dealt: dict[str, dict[str, Envelope]] = field(default_factory=dict)
    inboxes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    vectors: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)
    confirmations: list[Envelope] = field(default_factory=list)
    reveals: list[Envelope] = field(default_factory=list)

    def said(self, confirmation: Envelope) -> tuple[str, ...]:
        """The survivor set that a confirmation is of."""
        return parse(Confirmation, confirmation.body, party="test", step="confirm").survivors


class Witness:
    """Hears every answer of the sites of ``simulator``.

    Args:
        simulator: the consortium.
        liar: the site that may act with the coordinator: rules bind the others, and no sum may show one of them.
    """

    def __init__(self, simulator: Simulator, liar: str) -> None:
        self.simulator = simulator
        self.liar = liar
        self.threshold = simulator.context.threshold
        self.contexts: dict[str, AttemptContext] = {}
        self.adverts: dict[str, dict[str, Envelope]] = {}
        self.rounds: dict[str, Round] = {}
        self.sums = 0
        self._facts: dict[tuple[str, ...], object] = {}

    def hears(self, site: str, step: str, request: Envelope, body: object, values: Values, answer: Answers) -> None:
        """Take note of an answer, and hold it against all that was answered before."""
        brought = canonical({name: array.tobytes().hex() for name, array in values.items()}) if step == "mask" else ""
        said = tuple(message.to_json() for message in answer)
        self._once("equal requests, equal answers", site, request.digest, brought, said=said)
        getattr(self, f"_{step}")(site, request.context, body, values, answer)

    def confirmed(self, site: str, round_context: str) -> object:
        """The survivor set that a site has confirmed in a round."""
        return self._facts.get(("one survivor set", site, round_context))

    def check_sums(self, round_: Round) -> None:
        """Put together whatever a round's answers give, honestly and not (rules 3 and 5)."""
        if len({message.sender for message in round_.reveals}) < self.threshold:
            return  # no secret can be put together of so few shares
        for survivors in {round_.said(message) for message in round_.confirmations}:
            with suppress(ProtocolError):
                self._unmask_honestly(round_, survivors)
        roster = Dealings(round_.roster, {}, {})
        read = readable(self.simulator, round_.values, roster, round_.vectors, round_.reveals, round_.inboxes)
        honest = {frozenset(sites) - {self.liar} for sites in read}
        for sites in honest:
            assert len(sites) >= self.threshold - self.simulator.context.colluding, "a sum shows a single site"
            context = round_.roster.context
            self._once("one sum a round", str(context.round), said=(round_.roster.round, sites))
            self._once("one sum from a model", context.purpose, context.model, said=(round_.roster.round, sites))

    def _once(self, rule: str, *about: str, said: object) -> None:
        first = self._facts.setdefault((rule, *about), said)
        assert first == said, f"{rule}: {about} said {first} before, and now {said}"

    def _advertise(self, site: str, context: str, ask: AskAdvertise, values: Values, answer: Answers) -> None:
        new = ask.context
        for old in self._joined(site):
            assert (old.round, old.attempt) <= (new.round, new.attempt), "joined an attempt that is older than another"
            if old != new and self._has_confirmed(site, old):
                assert old.round != new.round, "joined a round again that it had confirmed"
                assert (old.purpose, old.model) != (new.purpose, new.model), "joined a second sum from one model"
        self.contexts[context] = new
        self.adverts.setdefault(context, {})[site] = answer[0]

    def _share(self, site: str, context: str, ask: AskShare, values: Values, answer: Answers) -> None:
        assert len(ask.adverts) >= self.threshold, "dealt shares below the threshold"
        assert self.adverts[context][site] in ask.adverts, "dealt shares to a roster without itself"
        self._once("one dealing", site, context, said=answer[0].context)
        roster = coordinator.open_roster(self.contexts[context], ask.adverts)
        round_ = self.rounds.setdefault(roster.round, Round(roster))
        round_.dealt[site] = {message.receiver: message for message in answer}

    def _mask(self, site: str, context: str, ask: AskMask, values: Values, answer: Answers) -> None:
        round_ = self.rounds[context]
        vector = self.simulator.masked(site, round_.roster.context.digest)
        self._once("one mask, one vector", site, context, said=vector.tobytes())
        assert {(share.context, share.receiver) for share in ask.shares} == {(context, site)}, "opened another's shares"
        assert len(ask.shares) >= self.threshold, "masked below the threshold"
        round_.vectors[site], round_.values[site] = vector, values
        round_.inboxes[site] = tuple(sorted(share.sender for share in ask.shares))

    def _confirm(self, site: str, context: str, ask: object, values: Values, answer: Answers) -> None:
        round_ = self.rounds[context]
        survivors = round_.said(answer[0])
        self._once("one survivor set", site, context, said=survivors)
        assert len(survivors) >= self.threshold and site in survivors, "confirmed a survivor set that it must not"
        assert len(set(survivors)) == len(survivors), "confirmed a site twice"
        assert set(survivors) <= set(round_.inboxes.get(site, survivors)), "confirmed a site that had not shared"
        round_.confirmations.append(answer[0])

    def _reveal(self, site: str, context: str, ask: AskReveal, values: Values, answer: Answers) -> None:
        round_, survivors = self.rounds[context], self.confirmed(site, context)
        body = body_of(answer[0])
        self._once("one reveal", site, context, said=answer[0].body)
        assert not set(body.self_shares) & set(body.key_shares), "revealed both shares of a peer"
        if survivors is not None:  # it may have confirmed, and died before it said so
            assert set(body.self_shares) == set(survivors), "revealed other shares than those of the survivors"
            agreed = {message.sender for message in round_.confirmations if round_.said(message) == survivors}
            assert len(agreed) >= self.threshold, "revealed before enough sites had confirmed"
        if answer[0].body not in {heard.body for heard in round_.reveals if heard.sender == site}:
            round_.reveals.append(answer[0])
            self.check_sums(round_)

    def _joined(self, site: str) -> Iterator[AttemptContext]:
        return (self.contexts[context] for context, adverts in self.adverts.items() if site in adverts)

    def _has_confirmed(self, site: str, context: AttemptContext) -> bool:
        return any(
            self.confirmed(site, round_context) is not None
            for round_context, round_ in self.rounds.items()
            if round_.roster.context == context
        )

    def _unmask_honestly(self, round_: Round, survivors: tuple[str, ...]) -> None:
        """Make the sum as the coordinator does, where its sites have masked over one U2; it must be the plain one."""
        inboxes = {round_.inboxes.get(site) for site in survivors}
        if len(inboxes) != 1 or None in inboxes:
            return
        context, dealers = round_.roster.context, inboxes.pop()
        dealings = coordinator.inboxes(round_.roster, {one: tuple(round_.dealt[one].values()) for one in dealers or ()})
        reveals = {message.sender: message for message in round_.reveals if message.sender in survivors}
        recovered = coordinator.recover_masks(dealings, survivors, reveals.values())
        total = coordinator.sum_vectors(context, (round_.vectors[site] for site in survivors))
        coordinator.unmask(total, context, recovered)
        self.sums += 1
        assert as_lists(integers(total, context.segments)) == plain_sum(round_.values, survivors, context.segments)


def as_lists(sums: Mapping[str, NDArray[np.int64]]) -> dict[str, list[int]]:
    """Integers by segment, as ``plain_sum`` gives them."""
    return {name: [int(one) for one in array] for name, array in sums.items()}


def state_of(vault: Vault, context: str, cls: type[Body]) -> Body | None:
    """What a step has left in a site's own vault, if the site has come so far in this context."""
    found = vault.find(context)
    if found is None or not found.state:
        return None
    stored = json.loads(found.state)
    phase, state = stored["phase"], stored["state"]
    while phase != cls.__name__:
        if phase not in _BEFORE:
            return None
        phase, state = _BEFORE[phase].capitalize(), state[_BEFORE[phase]]
    return adapter(cls).validate_json(canonical(state))
