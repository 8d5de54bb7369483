"""The messages of the protocol: one signed envelope, a checked body for each kind (SPEC 5).

Every message travels in an ``Envelope`` whose Ed25519 signature covers the exact bytes of its body; it is verified
before the body is parsed. ``open_body`` is the only door in: it checks the signature, the kind, the context, the sender
and the receiver, and then every field. Bytes are lower-case hex. Nothing is ever unpickled.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from protocols.contexts import SPEC_VERSION, AttemptContext, Digest, ListOf, SiteName, canonical, sha256
from protocols.errors import BadMessage
from protocols.history import History, Past, Seen
from protocols.keys import Identity, InvalidKey, framed, verify

COORDINATOR = "@coordinator"
EVERYONE = "@everyone"
UNSIGNED = "0" * 128

Step = Literal["advertise", "share", "mask", "confirm", "reveal"]
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]
Commitment = Digest
ShareHex = Annotated[str, Field(pattern=r"^[0-9a-f]{66}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True, config=_STRICT)
class Envelope:
    """A signed message (SPEC 5.1).

    Attributes:
        kind: the body's kind, as in ``ask/share`` or ``advert``.
        context: the attempt or round context it belongs to, 64 hex digits.
        sender: a site's name or ``@coordinator``.
        receiver: a site's name, ``@coordinator`` or ``@everyone``.
        body: JSON text; the signature covers its exact bytes.
        signature: Ed25519, 128 hex digits.
        answers: digest of the request that this answers, 64 hex digits; empty in a request.
    """

    kind: Annotated[str, Field(pattern=r"^[a-z/]{1,32}$")]
    context: Digest
    sender: Annotated[str, Field(pattern=r"^([a-z0-9-]{1,32}|@coordinator)$")]
    receiver: Annotated[str, Field(pattern=r"^([a-z0-9-]{1,32}|@coordinator|@everyone)$")]
    body: str
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
    answers: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers (SPEC 5.1)."""
        place = (self.kind, self.context, self.sender, self.receiver, self.answers)
        return framed(SPEC_VERSION, "envelope", *place, self.body)

    @property
    def digest(self) -> str:
        """SHA-256 over the signed bytes and the signature: the message's identity in journals."""
        return sha256(self.signed_bytes, self.signature)

    def to_json(self) -> str:
        """The envelope as canonical JSON."""
        return canonical(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Envelope":
        """Parse an envelope without believing a word of it: ``open_body`` verifies.

        Raises:
            BadMessage: if it is not an envelope.
        """
        return parse(cls, text, party="unknown", step="envelope")


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Advert:
    """A site's fresh public keys, and what it says of its past (SPEC 4.1). Kind ``advert``, to everyone.

    Attributes:
        mask_key: X25519 public key for pairwise masks, 64 hex digits.
        channel_key: X25519 public key for sealed shares.
        ledger_entries, ledger_head: how many lines the site's ledger has, and its digest.
        previous_entries, previous_head: the same, as the site's advert before this one said them.
        answers: how many answers the site has journaled before. With the four above, peers can witness that its vault
            is never put back.
        confirmed_sums, confirmed_head: how many sums of this training the site has confirmed, and their digest, so
            that no receipt can leave one out.
    """

    mask_key: Digest
    channel_key: Digest
    ledger_entries: Count
    ledger_head: Digest
    previous_entries: Count
    previous_head: Digest
    answers: Count
    confirmed_sums: Count
    confirmed_head: Digest

    @classmethod
    def of(cls, mask_key: str, channel_key: str, history: History) -> "Advert":
        """Put keys and history together."""
        return cls(mask_key=mask_key, channel_key=channel_key, **asdict(history))

    def seen(self, context: AttemptContext) -> Seen:
        """What a witness keeps of it, given the attempt that it was made in."""
        past = Past(
            self.previous_entries,
            self.previous_head,
            self.answers,
            context.training,
            context.round,
            context.attempt,
            self.confirmed_sums,
            self.confirmed_head,
        )
        return Seen(self.ledger_entries, self.ledger_head, past)


@dataclass(frozen=True, slots=True, config=_STRICT)
class SealedShare:
    """One dealer's shares for one receiver, sealed, with commitments (SPEC 4.2). Kind ``share``, to that receiver.

    Attributes:
        sealed: nonce ‖ AES-256-GCM ciphertext of the self-mask share (33) ‖ the key share (33) ‖ tag.
        seed_commitment: to the self-mask seed *b*; the same in all shares of a dealer.
        self_commitment: to the self-mask share inside.
        key_commitment: to the key share inside.
    """

    sealed: Hex
    seed_commitment: Commitment
    self_commitment: Commitment
    key_commitment: Commitment


@dataclass(frozen=True, slots=True, config=_STRICT)
class MaskedVector:
    """The digest of a site's masked vector, which travels by itself (SPEC 4.3). Kind ``masked``, to the coordinator."""

    vector: Digest
    size: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True, config=_STRICT)
class Confirmation:
    """A site's word on the one survivor set of this round (SPEC 4.4). Kind ``confirmation``, to everyone."""

    survivors: ListOf[SiteName]


@dataclass(frozen=True, slots=True, config=_STRICT)
class Reveal:
    """Self-mask shares of survivors, key shares of the dropped, never both of one site (SPEC 4.5). Kind ``reveal``."""

    self_shares: Mapping[SiteName, ShareHex]
    key_shares: Mapping[SiteName, ShareHex]


@dataclass(frozen=True, slots=True, config=_STRICT)
class Refusal:
    """A site's no, and why (SPEC 8). Kind ``refusal``, to the coordinator."""

    step: str
    error: str
    reason: str


@dataclass(frozen=True, slots=True, config=_STRICT)
class AskAdvertise:
    """Asks for an advert. Kind ``ask/advertise``, in the attempt context, as all bodies below but from ``share`` on."""

    context: AttemptContext


@dataclass(frozen=True, slots=True, config=_STRICT)
class AskShare:
    """Asks for shares, handing over the signed adverts. Kind ``ask/share``."""

    adverts: ListOf[Envelope]


@dataclass(frozen=True, slots=True, config=_STRICT)
class AskMask:
    """Asks for the masked vector, handing over the shares sealed to this site. Kind ``ask/mask``."""

    shares: ListOf[Envelope]


@dataclass(frozen=True, slots=True, config=_STRICT)
class AskConfirm:
    """Asks to confirm the survivor set. Kind ``ask/confirm``."""

    survivors: ListOf[SiteName]


@dataclass(frozen=True, slots=True, config=_STRICT)
class AskReveal:
    """Asks for the shares that unmask, handing over the confirmations. Kind ``ask/reveal``."""

    confirmations: ListOf[Envelope]


Body = TypeVar("Body")

_adapters: dict[type, TypeAdapter[Any]] = {}


def envelope(identity: Identity, kind: str, context: str, receiver: str, body: Any, answers: str = "") -> Envelope:
    """Sign ``body`` into an envelope from ``identity``: a request, or what answers one (SPEC 5.1).

    Args:
        identity: the sender's.
        kind, context, receiver: as in ``Envelope``.
        body: the kind's dataclass.
        answers: as in ``Envelope``.
    """
    text = canonical(asdict(body))
    return signed(identity, Envelope(kind, context, identity.name, receiver, text, UNSIGNED, answers))


def readdressed(identity: Identity, message: Envelope, answers: str) -> Envelope:
    """The same words of ``identity``'s as the answer to another request; to the same request, the same bytes."""
    return signed(identity, replace(message, answers=answers))


def signed(identity: Identity, message: Envelope) -> Envelope:
    """The same envelope with the signature of ``identity``, its sender."""
    return replace(message, signature=identity.sign(message.signed_bytes).hex())


def open_body(
    cls: type[Body], message: Envelope, *, key: str, kind: str, context: str, sender: str, receiver: str
) -> Body:
    """Verify an envelope and parse its body (SPEC 5.2).

    Whether it answers the request that was made is for whoever has asked to see (``check_answers``).

    Args:
        cls: the body's dataclass.
        message: the envelope as received.
        key: the sender's pinned identity key.
        kind, context, sender, receiver: what the envelope must say.

    Raises:
        BadMessage: naming the sender; the text never holds the body.
    """
    said = (message.kind, message.context, message.sender, message.receiver)
    names = ("kind", "context", "sender", "receiver")
    for name, is_, must in zip(names, said, (kind, context, sender, receiver), strict=True):
        if is_ != must:
            raise BadMessage(sender, kind, f"the message's {name} is not the expected one")
    try:
        verify(key, message.signed_bytes, bytes.fromhex(message.signature))
    except InvalidKey:
        raise BadMessage(sender, kind, "the signature does not verify") from None
    return parse(cls, message.body, party=sender, step=kind)


def check_answers(messages: Iterable[Envelope], request: Envelope) -> None:
    """Check that each of these answers names this very request: a genuine answer to another is none (SPEC 5.2).

    Raises:
        BadMessage: naming the sender of one that does not.
    """
    for message in messages:
        if message.answers != request.digest:
            raise BadMessage(message.sender, "answer", "it answers another request")


def adapter(cls: type[Body]) -> TypeAdapter[Body]:
    """The parser of a checked dataclass; made once, since making one takes longer than using it."""
    if cls not in _adapters:
        _adapters[cls] = TypeAdapter(cls)
    return _adapters[cls]


def parse(cls: type[Body], text: str, *, party: str, step: str) -> Body:
    """Parse JSON into a checked dataclass; every way to fail is a ``BadMessage`` with fixed text."""
    try:
        return adapter(cls).validate_json(text)
    except ValidationError:
        raise BadMessage(party, step, "the message does not parse") from None


def from_distinct(messages: Iterable[Envelope], known: Iterable[str], *, step: str) -> dict[str, Envelope]:
    """Index messages by sender.

    Raises:
        BadMessage: naming a sender that appears twice or is not ``known``.
    """
    senders = set(known)
    found: dict[str, Envelope] = {}
    for message in messages:
        if message.sender not in senders:
            raise BadMessage(message.sender, step, "this sender is not expected here")
        if message.sender in found:
            raise BadMessage(message.sender, step, "this sender appears twice")
        found[message.sender] = message
    return found
