"""A site's five steps of secure aggregation, as pure functions (SPEC 4; Bonawitz et al. 2017, section 4, active).

``advertise -> share -> mask -> confirm -> reveal``: each takes the state that the step before it returned and a
request of the coordinator, and returns the next state and the answer. The type of a state says what the site has
done, so that no step can be skipped or repeated in memory; ``protocols.site`` keeps it that way on disk. The site
trusts its own host and the pinned identity keys, nobody else: everything the coordinator hands over is signed by its
author and checked here.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import field

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from protocols import shamir
from protocols.contexts import SPEC_VERSION, AttemptContext, check_context, round_context, sha256
from protocols.errors import BadMessage, BelowThreshold, Refused
from protocols.history import History
from protocols.keys import (
    Consortium,
    Entropy,
    Identity,
    InvalidKey,
    agree,
    derive,
    framed,
    public_of,
    seal,
    system_entropy,
    unseal,
)
from protocols.masks import Mask, apply_masks
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
    MaskedVector,
    Reveal,
    SealedShare,
    envelope,
    from_distinct,
    open_body,
)

SEED_BYTES = 32
_ANY_SECRET = bytes(range(32))  # a point of small order gives zero with every secret, so that a public one tells
_STATE = ConfigDict(extra="forbid", strict=True, ser_json_bytes="base64", val_json_bytes="base64")


@dataclass(frozen=True, slots=True, config=_STATE)
class Advertised:
    """After ``advertise``: the two fresh X25519 secrets, 32 bytes each."""

    context: AttemptContext
    mask_secret: bytes = field(repr=False)
    channel_secret: bytes = field(repr=False)
    advert: Envelope


@dataclass(frozen=True, slots=True, config=_STATE)
class Shared:
    """After ``share``: the peers' verified adverts, the round context and the self-mask seed *b*, 32 bytes."""

    advertised: Advertised
    adverts: Mapping[str, Advert]
    round: str
    seed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, config=_STATE)
class Masked:
    """After ``mask``: the shares received from each site of U2, 33 bytes each."""

    shared: Shared
    self_shares: Mapping[str, bytes] = field(repr=False)
    key_shares: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, config=_STATE)
class Confirmed:
    """After ``confirm``: the one survivor set U3, sorted."""

    masked: Masked
    survivors: tuple[str, ...]


def advertise(
    identity: Identity,
    consortium: Consortium,
    context: AttemptContext,
    history: History,
    entropy: Entropy = system_entropy,
    answers: str = "",
) -> tuple[Advertised, Envelope]:
    """Draw two fresh key pairs and sign the public halves (SPEC 4.1).

    Args:
        identity: the site's.
        consortium: the pinned keys.
        context: the attempt.
        history: what the advert says of the site's past; its ledger has this attempt's line.
        entropy: gives random bytes.
        answers: digest of the request; empty where there is none.

    Raises:
        Refused: if the attempt breaks a rule of SPEC 8.
        RingTooSmall: if a segment has no headroom.
    """
    check_context(context, identity.name, consortium.sites)
    if context.sites[identity.name] != identity.public:
        raise Refused(identity.name, "advertise", "the roster gives this site another identity key")
    mask_secret, channel_secret = entropy(SEED_BYTES), entropy(SEED_BYTES)
    keys = Advert.of(public_of(mask_secret).hex(), public_of(channel_secret).hex(), history)
    advert = envelope(identity, "advert", context.digest, EVERYONE, keys, answers)
    return Advertised(context, mask_secret, channel_secret, advert), advert


def share(
    identity: Identity, state: Advertised, request: AskShare, entropy: Entropy = system_entropy, answers: str = ""
) -> tuple[Shared, tuple[Envelope, ...]]:
    """Deal shares of the self-mask seed and of the masking key to every advertised site (SPEC 4.2).

    Each receiver's two shares are sealed to its channel key and committed to; the site deals to itself like to any
    other.

    Args:
        identity: the site's.
        state: after ``advertise``.
        request: the roster's adverts.
        entropy: gives random bytes.
        answers: digest of the request's envelope; so in every step.

    Raises:
        BadMessage: a forged, foreign or repeated advert; names its sender.
        BelowThreshold: if fewer sites than the threshold have advertised.
        Refused: if the roster does not hold this site's own advert.
    """
    adverts, round_digest = verify_adverts(state.context, request.adverts)
    if state.advert not in request.adverts:
        raise Refused(identity.name, "share", "the roster does not hold this site's own advert")
    seed = entropy(SEED_BYTES)
    threshold, receivers = state.context.threshold, sorted(adverts)
    self_shares = shamir.split(seed, threshold=threshold, holders=len(receivers), entropy=entropy)
    key_shares = shamir.split(state.mask_secret, threshold=threshold, holders=len(receivers), entropy=entropy)
    shares = []
    for receiver, self_share, key_share in zip(receivers, self_shares, key_shares, strict=True):
        key = _channel_key(state.channel_secret, adverts[receiver], round_digest, identity.name, receiver)
        sealed = seal(key, self_share + key_share, _channel(round_digest, identity.name, receiver), entropy)
        body = SealedShare(
            sealed.hex(),
            commit(round_digest, "seed", identity.name, "", seed),
            commit(round_digest, "self share", identity.name, receiver, self_share),
            commit(round_digest, "key share", identity.name, receiver, key_share),
        )
        shares.append(envelope(identity, "share", round_digest, receiver, body, answers))
    return Shared(state, adverts, round_digest, seed), tuple(shares)


def mask(
    identity: Identity, state: Shared, request: AskMask, vector: NDArray[np.uint8], answers: str = ""
) -> tuple[Masked, Envelope]:
    """Mask the encoded vector in place, over U2: the sites whose shares have arrived (SPEC 4.3).

    ``vector + PRG(b) + sum over later peers PRG(s) - sum over earlier peers PRG(s)``, peers in the order of their
    names.

    Args:
        identity: the site.
        state: after ``share``.
        request: the shares sealed to this site, its own among them.
        vector: the encoded vector, shape (bytes,); becomes the masked vector.
        answers: digest of the request's envelope.

    Raises:
        BadMessage: a share that is forged, repeated, does not open or does not match its commitments; names the dealer.
        BelowThreshold: if U2 is smaller than the threshold.
        Refused: if this site's own share is missing.
    """
    me, context = identity.name, state.advertised.context
    envelopes = from_distinct(request.shares, state.adverts, step="mask")
    if me not in envelopes:
        raise Refused(me, "mask", "this site's own share is missing")
    if len(envelopes) < context.threshold:
        raise BelowThreshold(me, "mask", f"{len(envelopes)} sites have shared, {context.threshold} are needed")
    self_shares, key_shares = {}, {}
    for dealer, message in envelopes.items():
        self_shares[dealer], key_shares[dealer] = _open_share(identity, state, dealer, message)
    masks = [Mask(self_mask_seed(state.seed, state.round, me), 1)]
    secret = state.advertised.mask_secret
    masks += [pair_mask(secret, me, peer, state.adverts[peer], state.round) for peer in sorted(envelopes) if peer != me]
    apply_masks(vector, context.segments, masks)
    body = MaskedVector(hashlib.sha256(vector.data).hexdigest(), vector.nbytes)
    return Masked(state, self_shares, key_shares), envelope(identity, "masked", state.round, COORDINATOR, body, answers)


def confirm(identity: Identity, state: Masked, request: AskConfirm, answers: str = "") -> tuple[Confirmed, Envelope]:
    """Sign the survivor set U3, once and for all (SPEC 4.4).

    Raises:
        Refused: if U3 repeats a site, holds one outside U2, lacks this site, or is smaller than the threshold.
    """
    survivors, threshold = request.survivors, state.shared.advertised.context.threshold
    if len(set(survivors)) != len(survivors):
        raise Refused(identity.name, "confirm", "the survivor set names a site twice")
    if not set(survivors) <= set(state.self_shares):
        raise Refused(identity.name, "confirm", "the survivor set holds a site that did not share")
    if identity.name not in survivors:
        raise Refused(identity.name, "confirm", "the survivor set lacks this site, which has masked")
    if len(survivors) < threshold:
        raise Refused(identity.name, "confirm", f"{len(survivors)} survivors, {threshold} are needed")
    agreed = tuple(sorted(survivors))
    confirmation = envelope(identity, "confirmation", state.shared.round, EVERYONE, Confirmation(agreed), answers)
    return Confirmed(state, agreed), confirmation


def reveal(identity: Identity, state: Confirmed, request: AskReveal, answers: str = "") -> Envelope:
    """Reveal, for each site of U2, the self-mask share of a survivor or the key share of a dropped one (SPEC 4.5).

    The body depends on the confirmed survivor set alone, so that it may be asked for as often as it takes.

    Raises:
        BadMessage: a confirmation that is forged, repeated, or of another survivor set; names its sender.
        BelowThreshold: if fewer survivors than the threshold have confirmed.
    """
    shared = state.masked.shared
    count_confirmations(shared.advertised.context, shared.round, state.survivors, request.confirmations)
    survivors = set(state.survivors)
    body = Reveal(
        {dealer: share.hex() for dealer, share in state.masked.self_shares.items() if dealer in survivors},
        {dealer: share.hex() for dealer, share in state.masked.key_shares.items() if dealer not in survivors},
    )
    return envelope(identity, "reveal", shared.round, COORDINATOR, body, answers)


def verify_adverts(context: AttemptContext, messages: tuple[Envelope, ...]) -> tuple[dict[str, Advert], str]:
    """Check every advert of a roster; give them by site with the round context (SPEC 4.2).

    Raises:
        BadMessage: a forged, foreign, repeated or unusable advert; names the sender.
        BelowThreshold: if there are fewer than the threshold.
    """
    envelopes = from_distinct(messages, context.sites, step="roster")
    adverts = {site: check_advert(context, site, message) for site, message in envelopes.items()}
    if len(adverts) < context.threshold:
        raise BelowThreshold("roster", "share", f"{len(adverts)} sites advertised, {context.threshold} are needed")
    signed = (message.signed_bytes + bytes.fromhex(message.signature) for message in messages)
    return adverts, round_context(context.digest, signed)


def check_advert(context: AttemptContext, site: str, message: Envelope) -> Advert:
    """Check one advert (SPEC 4.1).

    Raises:
        BadMessage: if it is forged, foreign, or a key is of small order and would give a secret known to all.
    """
    advert = open_body(
        Advert,
        message,
        key=context.sites[site],
        kind="advert",
        context=context.digest,
        sender=site,
        receiver=EVERYONE,
    )
    for key in (advert.mask_key, advert.channel_key):
        try:
            agree(_ANY_SECRET, bytes.fromhex(key))
        except InvalidKey:
            raise BadMessage(site, "advertise", "an advertised key gives no shared secret") from None
    return advert


def count_confirmations(
    context: AttemptContext, round_digest: str, survivors: tuple[str, ...], messages: tuple[Envelope, ...]
) -> None:
    """Check that at least ``threshold`` survivors have signed exactly this survivor set (SPEC 4.5).

    Raises:
        BadMessage: a confirmation that is forged, repeated, or of another survivor set; names its sender.
        BelowThreshold: if there are too few.
    """
    for site, message in from_distinct(messages, survivors, step="reveal").items():
        check_confirmation(context, round_digest, survivors, site, message)
    if len(messages) < context.threshold:
        raise BelowThreshold("confirmations", "reveal", f"{len(messages)} of {context.threshold} needed are here")


def check_confirmation(
    context: AttemptContext, round_digest: str, survivors: tuple[str, ...], site: str, message: Envelope
) -> None:
    """Check that ``site`` has signed exactly this survivor set, sorted (SPEC 4.4).

    Raises:
        BadMessage: if it is forged or of another survivor set; names the site.
    """
    said = open_body(
        Confirmation,
        message,
        key=context.sites[site],
        kind="confirmation",
        context=round_digest,
        sender=site,
        receiver=EVERYONE,
    )
    if said.survivors != survivors:
        raise BadMessage(site, "reveal", "this site confirmed another survivor set")


def commit(round_digest: str, what: str, dealer: str, receiver: str, secret: bytes) -> str:
    """Commit to a uniformly random secret by its hash, bound to the round, the purpose and the parties (SPEC 4.2)."""
    return sha256(SPEC_VERSION, "commitment", round_digest, what, dealer, receiver, secret)


def self_mask_seed(seed: bytes, round_digest: str, site: str) -> bytes:
    """The AES key of a site's self mask, from its 32-byte *b* (SPEC 4.3)."""
    return derive(seed, salt=bytes.fromhex(round_digest), info=framed(SPEC_VERSION, "self mask", site))


def pair_mask(secret: bytes, site: str, peer: str, advert: Advert, round_digest: str) -> Mask:
    """The mask that ``site`` shares with ``peer`` (its advert is checked), and its sign at ``site`` (SPEC 4.3)."""
    agreed = agree(secret, bytes.fromhex(advert.mask_key))
    first, second = sorted((site, peer))
    info = framed(SPEC_VERSION, "pair mask", first, second)
    return Mask(derive(agreed, salt=bytes.fromhex(round_digest), info=info), 1 if site == first else -1)


def _channel(round_digest: str, dealer: str, receiver: str) -> bytes:
    return framed(SPEC_VERSION, "share channel", round_digest, dealer, receiver)


def _channel_key(secret: bytes, peer: Advert, round_digest: str, dealer: str, receiver: str) -> bytes:
    agreed = agree(secret, bytes.fromhex(peer.channel_key))
    return derive(agreed, salt=bytes.fromhex(round_digest), info=_channel(round_digest, dealer, receiver))


def _open_share(identity: Identity, state: Shared, dealer: str, message: Envelope) -> tuple[bytes, bytes]:
    me = identity.name
    body = open_body(
        SealedShare,
        message,
        key=state.advertised.context.sites[dealer],
        kind="share",
        context=state.round,
        sender=dealer,
        receiver=me,
    )
    key = _channel_key(state.advertised.channel_secret, state.adverts[dealer], state.round, dealer, me)
    try:
        opened = unseal(key, bytes.fromhex(body.sealed), _channel(state.round, dealer, me))
    except InvalidKey:
        raise BadMessage(dealer, "mask", "the sealed share does not open") from None
    self_share, key_share = opened[: shamir.SHARE_BYTES], opened[shamir.SHARE_BYTES :]
    if (
        len(key_share) != shamir.SHARE_BYTES
        or commit(state.round, "self share", dealer, me, self_share) != body.self_commitment
        or commit(state.round, "key share", dealer, me, key_share) != body.key_commitment
    ):
        raise BadMessage(dealer, "mask", "the sealed share does not match its commitment")
    return self_share, key_share
