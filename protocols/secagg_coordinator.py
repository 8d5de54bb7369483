"""The coordinator's steps of secure aggregation, as pure functions (SPEC 4).

``open_roster -> inboxes -> sum_vectors -> recover_masks -> unmask``. The coordinator is trusted for progress and for
adding correctly, not with any site's input: it holds no secret. It checks every message before it passes it on, so
that a liar is found where it lied: ``unmask`` blames the revealer of a share that does not match its commitment, and
the dealer of shares that do match but give another secret than the one committed to.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np
from numpy.typing import NDArray

from protocols import shamir
from protocols.contexts import AttemptContext
from protocols.decode import decode
from protocols.encoding import add, vector_bytes
from protocols.errors import BadDealer, BadMessage, BelowThreshold, ProtocolError
from protocols.keys import public_of
from protocols.masks import Mask, apply_masks
from protocols.messages import (
    COORDINATOR,
    Advert,
    Envelope,
    MaskedVector,
    Reveal,
    SealedShare,
    from_distinct,
    open_body,
)
from protocols.secagg_site import commit, pair_mask, self_mask_seed, verify_adverts

MOST_COMBINATIONS = 10_000
"""Where there are no more sets of a threshold of shares, all are tried for a dealer that decoding has not helped."""


@dataclass(frozen=True, slots=True)
class Roster:
    """The sites of U1: who has advertised, and the round context that their adverts make."""

    context: AttemptContext
    envelopes: tuple[Envelope, ...]
    adverts: Mapping[str, Advert]
    round: str

    @property
    def sites(self) -> tuple[str, ...]:
        """U1 by name; a site's place, counted from 1, is its Shamir point."""
        return tuple(sorted(self.adverts))


@dataclass(frozen=True, slots=True)
class Dealings:
    """The sites of U2 with the shares that they dealt, by dealer and receiver; sealed still."""

    roster: Roster
    envelopes: Mapping[str, Mapping[str, Envelope]]
    shares: Mapping[str, Mapping[str, SealedShare]]

    @property
    def sites(self) -> tuple[str, ...]:
        """U2 by name."""
        return tuple(sorted(self.shares))

    def inbox(self, receiver: str) -> tuple[Envelope, ...]:
        """What U2 has dealt to ``receiver``."""
        return tuple(self.envelopes[dealer][receiver] for dealer in self.sites)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the reveals gave: the masks left in the sum, and what was wrong with the reveals that were set aside."""

    masks: tuple[Mask, ...]
    faults: tuple[ProtocolError, ...]


def open_roster(context: AttemptContext, adverts: Iterable[Envelope]) -> Roster:
    """Check the adverts and fix U1 (SPEC 4.1).

    Raises:
        BadMessage: a forged, foreign or repeated advert; names the sender.
        BelowThreshold: if fewer sites than the threshold have advertised.
    """
    envelopes = tuple(sorted(adverts, key=lambda advert: advert.sender))
    verified, round_digest = verify_adverts(context, envelopes)
    return Roster(context, envelopes, verified, round_digest)


def inboxes(roster: Roster, dealt: Mapping[str, Sequence[Envelope]]) -> Dealings:
    """Check the sealed shares and fix U2 (SPEC 4.2).

    Args:
        roster: U1.
        dealt: the envelopes of each dealer, one for each site of U1.

    Raises:
        BadMessage: shares that are forged, missing, or disagree on the seed's commitment; names the dealer.
        BelowThreshold: if fewer sites than the threshold have shared.
    """
    envelopes, shares = {}, {}
    for dealer, messages in dealt.items():
        envelopes[dealer], shares[dealer] = check_dealing(roster, dealer, messages)
    if len(shares) < roster.context.threshold:
        reason = f"{len(shares)} sites shared, {roster.context.threshold} are needed"
        raise BelowThreshold("inboxes", "share", reason)
    return Dealings(roster, envelopes, shares)


def check_dealing(
    roster: Roster, dealer: str, messages: Sequence[Envelope]
) -> tuple[dict[str, Envelope], dict[str, SealedShare]]:
    """Check what one dealer has dealt; give it by receiver (SPEC 4.2).

    Raises:
        BadMessage: shares that are forged, missing, repeated, or disagree on the seed's commitment; names the dealer.
    """
    by_receiver = {message.receiver: message for message in messages}
    if len(messages) != len(by_receiver) or set(by_receiver) != set(roster.sites):
        raise BadMessage(dealer, "share", "there is not exactly one share for each site of the roster")
    shares = {
        receiver: open_body(
            SealedShare,
            message,
            key=roster.context.sites[dealer],
            kind="share",
            context=roster.round,
            sender=dealer,
            receiver=receiver,
        )
        for receiver, message in by_receiver.items()
    }
    if len({share.seed_commitment for share in shares.values()}) != 1:
        raise BadMessage(dealer, "share", "the shares disagree on the seed's commitment")
    return by_receiver, shares


def check_masked(dealings: Dealings, site: str, message: Envelope) -> MaskedVector:
    """Check a site's word on its masked vector (SPEC 4.3).

    Raises:
        BadMessage: if it is forged, or the vector has the wrong size; names the site.
    """
    roster = dealings.roster
    body = open_body(
        MaskedVector,
        message,
        key=roster.context.sites[site],
        kind="masked",
        context=roster.round,
        sender=site,
        receiver=COORDINATOR,
    )
    if body.size != vector_bytes(roster.context.segments):
        raise BadMessage(site, "mask", "the masked vector has the wrong size")
    return body


def sum_vectors(context: AttemptContext, vectors: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Add the survivors' masked vectors, one in memory at a time (SPEC 4.6)."""
    total = np.zeros(vector_bytes(context.segments), np.uint8)
    for vector in vectors:
        add(total, vector, context.segments)
    return total


def recover_masks(dealings: Dealings, survivors: Sequence[str], reveals: Iterable[Envelope]) -> Recovered:
    """Reconstruct the masks that do not cancel: survivors' self masks, pair masks with the dropped (SPEC 4.6).

    A reveal that is forged, incomplete or does not match a commitment is set aside with its blame; the others serve
    as long as they are enough.

    Raises:
        BelowThreshold: if fewer than ``threshold`` good reveals are left; the reason names each that was set aside.
        BadDealer: if matching shares do not give the committed seed or the advertised key; names the dealer.
    """
    roster, good = dealings.roster, dict[str, Reveal]()
    faults: list[ProtocolError] = []
    for site, message in from_distinct(reveals, survivors, step="unmask").items():
        try:
            good[site] = _check_reveal(dealings, survivors, site, message)
        except BadMessage as fault:
            faults.append(fault)
    threshold = roster.context.threshold
    if len(good) < threshold:
        blamed = "".join(f"; {fault}" for fault in faults)
        raise BelowThreshold("unmask", "reveal", f"{len(good)} good reveals, {threshold} are needed{blamed}")
    masks: list[Mask] = []
    for dealer in dealings.sites:
        if dealer in survivors:
            shares = {site: body.self_shares[dealer] for site, body in good.items()}
            what = "self-mask seed that this site committed to"
            seed = _combine(dealings, dealer, shares, what, _committed_seed, faults)
            masks.append(Mask(self_mask_seed(seed, roster.round, dealer), -1))
        else:
            shares = {site: body.key_shares[dealer] for site, body in good.items()}
            what = "masking key that this site advertised"
            secret = _combine(dealings, dealer, shares, what, _advertised_key, faults)
            peers = sorted(survivors)
            masks += [pair_mask(secret, dealer, peer, roster.adverts[peer], roster.round) for peer in peers]
    return Recovered(tuple(masks), tuple(faults))


def unmask(total: NDArray[np.uint8], context: AttemptContext, recovered: Recovered) -> None:
    """Take the recovered masks out of the sum, in place (SPEC 4.6)."""
    apply_masks(total, context.segments, recovered.masks)


def _check_reveal(dealings: Dealings, survivors: Sequence[str], site: str, message: Envelope) -> Reveal:
    round_digest = dealings.roster.round
    body = open_body(
        Reveal,
        message,
        key=dealings.roster.context.sites[site],
        kind="reveal",
        context=round_digest,
        sender=site,
        receiver=COORDINATOR,
    )
    if set(body.self_shares) != set(survivors) or set(body.key_shares) != set(dealings.sites) - set(survivors):
        raise BadMessage(site, "reveal", "the shares are not those of the survivors and the dropped")
    for dealer, share in body.self_shares.items():
        committed = dealings.shares[dealer][site].self_commitment
        if commit(round_digest, "self share", dealer, site, bytes.fromhex(share)) != committed:
            raise BadMessage(site, "reveal", f"the self-mask share of {dealer} does not match its commitment")
    for dealer, share in body.key_shares.items():
        committed = dealings.shares[dealer][site].key_commitment
        if commit(round_digest, "key share", dealer, site, bytes.fromhex(share)) != committed:
            raise BadMessage(site, "reveal", f"the key share of {dealer} does not match its commitment")
    return body


def _combine(
    dealings: Dealings,
    dealer: str,
    shares: Mapping[str, str],
    what: str,
    is_right: Callable[[Dealings, str, bytes], bool],
    faults: list[ProtocolError],
) -> bytes:
    """Combine a dealer's shares, each matching its commitment, to the secret that the dealer is bound to.

    Where the first shares do not give it, others may: the dealer has dealt a wrong one, which is noted as its fault,
    and must not be able to stop a round that is confirmed.
    """
    points = {site: point for point, site in enumerate(dealings.roster.sites, 1)}
    by_point = {points[site]: bytes.fromhex(share) for site, share in sorted(shares.items())}
    for tried, secret in enumerate(_candidates(by_point, dealings.roster.context.threshold)):
        if secret is not None and is_right(dealings, dealer, secret):
            if tried:
                faults.append(BadDealer(dealer, "unmask", "this site dealt a wrong share; the others sufficed"))
            return secret
    raise BadDealer(dealer, "unmask", f"the shares do not give the {what}")


def _candidates(shares: Mapping[int, bytes], threshold: int) -> Iterator[bytes | None]:
    """What the secret may be: by the first shares; by decoding all, and all but one; by every set of them, if few.

    Decoding without one more share puts one more error right where the number of superfluous shares is odd.
    """
    yield shamir.combine(dict(islice(shares.items(), threshold)))
    yield decode(shares, threshold=threshold)
    if (len(shares) - threshold) % 2:
        for left_out in shares:
            yield decode({point: share for point, share in shares.items() if point != left_out}, threshold=threshold)
    if comb(len(shares), threshold) <= MOST_COMBINATIONS:
        for chosen in combinations(shares.items(), threshold):
            yield shamir.combine(dict(chosen))


def _committed_seed(dealings: Dealings, dealer: str, seed: bytes) -> bool:
    committed = dealings.shares[dealer][dealer].seed_commitment
    return commit(dealings.roster.round, "seed", dealer, "", seed) == committed


def _advertised_key(dealings: Dealings, dealer: str, secret: bytes) -> bool:
    return public_of(secret).hex() == dealings.roster.adverts[dealer].mask_key
