"""Three sites and a coordinator whose secrets everybody knows, one round of theirs, and the receipt of a training.

What the fuzzer makes is signed here with these keys, so that it comes through the door and to what lies behind it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from flows.model import GlobalModel
from flows.plan import make_plan, plan_digest
from flows.tables import tables_of
from ml_tasks.layout import Sizes
from ml_tasks.tabular import Standardisation
from protocols import secagg_coordinator, secagg_site
from protocols.contexts import AttemptContext, Purpose, round_context, sha256
from protocols.encoding import CLAMPED, Segment, vector_bytes
from protocols.history import NO_HISTORY, NONE_CONFIRMED, next_confirmed
from protocols.keys import Consortium, Identity
from protocols.messages import (
    COORDINATOR,
    EVERYONE,
    Advert,
    AskConfirm,
    AskMask,
    AskReveal,
    AskShare,
    Confirmation,
    Envelope,
    envelope,
)
from protocols.receipt import Entry, Evidence, Receipt, Tensor, add_entry, chain_start, sign_receipt
from tests.vectors.generate import entropy

SITES, ME = ("ann", "bob", "cat"), "ann"
IDENTITIES = {name: Identity.generate(name, entropy(f"fuzz identity {name}")) for name in (*SITES, COORDINATOR)}
CONSORTIUM = Consortium(IDENTITIES[COORDINATOR].public, {site: IDENTITIES[site].public for site in SITES})
RAW_PLAN = {"name": "tiny", "task": "tasks.tiny:Tiny", "data": "tiny", "sites": list(SITES), "rounds": 1}
PLAN = make_plan(RAW_PLAN, source="plan")
PARAMETERS, FEATURES = 2, 1
SIZES = Sizes(weights=PARAMETERS, features=FEATURES)
SEGMENTS = (
    Segment("wide", 2, 64, 2.0**20, 1000.0),
    Segment("update", 3, 32, 2.0**10, 8.0),
    Segment(CLAMPED, 1, 16, 1.0, 1000.0),
)
CONTEXT = AttemptContext("training", "tiny", 1, 1, PLAN.digest, CONSORTIUM.sites, 3, 1, sha256("model"), SEGMENTS, {})
SCALING = Standardisation(np.zeros(FEATURES, np.float32), np.ones(FEATURES, np.float32))
MODEL = GlobalModel(np.array([0.5, -0.25], np.float32), SCALING)
TENSORS = {
    "weight": MODEL.vector.reshape(1, 2),
    "standardisation.mean": SCALING.mean,
    "standardisation.scale": SCALING.scale,
}
MODEL_FILE = save(TENSORS)


def vector() -> NDArray[np.uint8]:
    """An encoded vector of ``SEGMENTS``, for a step to mask."""
    return np.zeros(vector_bytes(SEGMENTS), np.uint8)


def signed(messages: Iterable[Envelope], context: str | None = None) -> tuple[Envelope, ...]:
    """The same messages, in ``context`` if one is given, with good signatures where the sender is one of ours."""
    made = []
    for message in messages:
        moved = replace(message, context=context or message.context)
        if message.sender in IDENTITIES:
            moved = replace(moved, signature=IDENTITIES[message.sender].sign(moved.signed_bytes).hex())
        made.append(moved)
    return tuple(made)


class Round:
    """One round of the three sites: each one's state before each step, and every message."""

    def __init__(self) -> None:
        random = {site: entropy(f"fuzz/{site}") for site in SITES}
        mine = {site: IDENTITIES[site] for site in SITES}
        self.advertised = {
            site: secagg_site.advertise(mine[site], CONSORTIUM, CONTEXT, NO_HISTORY, random[site]) for site in SITES
        }
        self.roster = secagg_coordinator.open_roster(CONTEXT, self._messages(self.advertised))
        ask = AskShare(self.roster.envelopes)
        self.shared = {
            site: secagg_site.share(mine[site], self.advertised[site][0], ask, random[site]) for site in SITES
        }
        self.dealings = secagg_coordinator.inboxes(
            self.roster, {site: dealt for site, (_, dealt) in self.shared.items()}
        )
        inboxes = {site: AskMask(self.dealings.inbox(site)) for site in SITES}
        self.masked = {
            site: secagg_site.mask(mine[site], self.shared[site][0], inboxes[site], vector()) for site in SITES
        }
        self.confirmed = {
            site: secagg_site.confirm(mine[site], self.masked[site][0], AskConfirm(SITES)) for site in SITES
        }
        proof = AskReveal(tuple(self._messages(self.confirmed)))
        self.reveals = tuple(secagg_site.reveal(mine[site], self.confirmed[site][0], proof) for site in SITES)
        self.asks: dict[str, object] = {
            "ask/share": ask,
            "ask/mask": inboxes[ME],
            "ask/confirm": AskConfirm(SITES),
            "ask/reveal": proof,
        }
        self.answers = {
            "advert": self.roster.envelopes,
            "share": self.shared[ME][1],
            "masked": (self.masked[ME][1],),
            "confirmation": proof.confirmations,
            "reveal": self.reveals,
        }

    @staticmethod
    def _messages(answered: dict[str, tuple[Any, Envelope]]) -> list[Envelope]:
        return [message for _, message in answered.values()]


def receipt() -> Receipt:
    """The receipt of a training of one round, with statistics before and an evaluation after it."""
    first, scaled = sha256("first model"), sha256("scaled model")
    last = hashlib.sha256(MODEL.to_bytes()).hexdigest()
    entries: list[Entry] = []
    for purpose, round_, incoming, outgoing in (
        ("statistics", 0, first, scaled),
        ("training", 1, scaled, last),
        ("evaluation", 2, last, last),
    ):
        previous = entries[-1] if entries else None
        entries.append(add_entry(previous, evidence(purpose, round_, incoming, entries), outgoing, None))
    tensors = [Tensor("weight", (1, 2))]
    return sign_receipt(IDENTITIES[COORDINATOR], "tiny", PLAN.to_json(), CONSORTIUM.sites, entries, tensors)


def evidence(purpose: Purpose, round_: int, model: str, before: Sequence[Entry]) -> Evidence:
    """What a sum leaves whose sites have confirmed the sums ``before``."""
    head = NONE_CONFIRMED
    for entry in before:
        head = next_confirmed(head, entry.confirmations[0].context, entry.survivors)
    history = replace(NO_HISTORY, confirmed_sums=len(before), confirmed_head=head)
    table = tables_of(PLAN, SIZES)[purpose]
    context = replace(CONTEXT, purpose=purpose, round=round_, model=model, segments=table)
    keys = Advert.of("09" + "00" * 31, "09" + "00" * 31, history)
    adverts = tuple(envelope(IDENTITIES[site], "advert", context.digest, EVERYONE, keys) for site in SITES)
    digest = secagg_coordinator.open_roster(context, adverts).round
    said = Confirmation(SITES)
    confirmations = tuple(envelope(IDENTITIES[site], "confirmation", digest, EVERYONE, said) for site in SITES)
    return Evidence(context, adverts, SITES, confirmations, sha256("sum"))


def resigned(made: Receipt) -> Receipt:
    """A receipt with the contexts and signatures of its messages, the chain and its own signature made anew."""
    previous, entries = chain_start(made.training, plan_digest(made.plan)), []
    for entry in made.rounds:
        adverts = signed(entry.adverts, entry.context.digest)
        digest = round_context(
            entry.context.digest, (one.signed_bytes + bytes.fromhex(one.signature) for one in adverts)
        )
        confirmations = signed(entry.confirmations, digest if adverts else entry.context.digest)
        chained = replace(entry, adverts=adverts, confirmations=confirmations, previous=previous)
        entries.append(replace(chained, digest=chained.expected_digest))
        previous = entries[-1].digest
    unsigned = replace(made, rounds=tuple(entries))
    return replace(unsigned, signature=IDENTITIES[COORDINATOR].sign(unsigned.signed_bytes).hex())
