"""The receipt: what a finished training leaves for whoever was not there (SPEC 11).

An entry for each finished sum holds what the sites have signed, adverts and confirmations, and what the coordinator
says of it: the digests of the sum and of the model that it made. Entries are chained by their digests, and the
coordinator signs the whole. There is nothing secret in a receipt. It shows who took part in what, under which plan; it
does not show that the coordinator has added right. ``protocols.audit`` checks one.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from protocols.contexts import SPEC_VERSION, AttemptContext, Digest, ListOf, SiteName, TrainingName, canonical, sha256
from protocols.keys import Identity, framed
from protocols.messages import Envelope, adapter

UNSIGNED = "0" * 128
_STRICT = ConfigDict(extra="forbid", strict=True)


class ReceiptError(Exception):
    """A receipt that does not verify: the field that is wrong, and how; one line without any of its content."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"receipt: {self.field}: {self.reason}"


class NotJson(Exception):
    """A receipt that is cut short or no JSON; one line."""


@plain_dataclass(frozen=True, slots=True)
class Evidence:
    """What a finished sum leaves, before the model that it gives is known; the fields are those of ``Entry``."""

    context: AttemptContext
    adverts: tuple[Envelope, ...]
    survivors: tuple[str, ...]
    confirmations: tuple[Envelope, ...]
    sum: str


@dataclass(frozen=True, slots=True, config=_STRICT)
class Entry:
    """One finished sum (SPEC 11.2).

    Attributes:
        context: the attempt that gave it.
        adverts: of U1, by sender; none in the plain protocol.
        survivors: U3, sorted.
        confirmations: the sites' confirmations of U3, by sender; in the plain protocol their ``plain`` messages.
        sum: SHA-256 of the unmasked vector, in its bytes on the wire.
        model: SHA-256 of the outgoing model's file.
        epsilon: of the training so far, as planned, at the plan's delta; null without privacy.
        previous: digest of the entry before it, or ``chain_start``.
        digest: over all other fields.
    """

    context: AttemptContext
    adverts: ListOf[Envelope]
    survivors: ListOf[SiteName]
    confirmations: ListOf[Envelope]
    sum: Digest
    model: Digest
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    previous: Digest
    digest: Digest

    @property
    def expected_digest(self) -> str:
        """What ``digest`` must be."""
        fields = asdict(self)
        del fields["digest"]
        return sha256(SPEC_VERSION, "receipt entry", canonical(fields))


@dataclass(frozen=True, slots=True, config=_STRICT)
class Tensor:
    """A named tensor of the model's file that makes a part of the vector (SPEC 11.3)."""

    name: Annotated[str, Field(min_length=1)]
    shape: ListOf[Annotated[int, Field(ge=1, le=2**40)]]

    @property
    def size(self) -> int:
        """Elements in it."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, config=_STRICT)
class Receipt:
    """A finished training (SPEC 11.3).

    Attributes:
        version: of the protocol.
        training: its name.
        plan: the plan's canonical JSON.
        coordinator, sites: the identity keys valid then; those of the plan's sites.
        rounds: an entry for each sum, in order.
        tensors: how the final vector is cut into named tensors, in order.
        signature: the coordinator's, 128 hex digits.
    """

    version: Literal["fedseal/1"]
    training: TrainingName
    plan: str
    coordinator: Digest
    sites: Mapping[SiteName, Digest]
    rounds: ListOf[Entry]
    tensors: ListOf[Tensor]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers: every other field (SPEC 11.3)."""
        fields = asdict(self)
        del fields["signature"]
        return framed(SPEC_VERSION, "receipt", canonical(fields))

    def to_json(self) -> str:
        """The receipt as JSON for people to read too; how it is laid out is not signed."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"


def chain_start(training: str, plan: str) -> str:
    """What the first entry has for the digest of the entry before it; ``plan`` is the plan's digest (SPEC 11.2)."""
    return sha256(SPEC_VERSION, "receipt start", training, plan)


def add_entry(last: Entry | None, evidence: Evidence, model: str, epsilon: float | None) -> Entry:
    """Chain a finished sum to the one before it (SPEC 11.2).

    Args:
        last: the entry before it.
        evidence: what the sum leaves.
        model: SHA-256 of the model that was made of it.
        epsilon: of the training so far; ``None`` without privacy.

    Raises:
        ValueError: if its round does not come after the last one's: each sum has one entry.
    """
    context = evidence.context
    if last is not None and context.round <= last.context.round:
        raise ValueError(f"round {context.round} does not come after round {last.context.round}")
    previous = last.digest if last else chain_start(context.training, context.plan)
    entry = Entry(
        context,
        _by_sender(evidence.adverts),
        tuple(sorted(evidence.survivors)),
        _by_sender(evidence.confirmations),
        evidence.sum,
        model,
        epsilon,
        previous,
        previous,
    )
    return replace(entry, digest=entry.expected_digest)


def sign_receipt(
    identity: Identity,
    training: str,
    plan: str,
    sites: Mapping[str, str],
    entries: Sequence[Entry],
    tensors: Sequence[Tensor],
) -> Receipt:
    """Close a training's receipt with the coordinator's signature (SPEC 11.3).

    Args:
        identity: the coordinator's.
        training: its name.
        plan: the plan's canonical JSON.
        sites: identity key by site of the plan.
        entries: of every sum.
        tensors: how the final vector is cut.
    """
    unsigned = Receipt(
        SPEC_VERSION, training, plan, identity.public, dict(sites), tuple(entries), tuple(tensors), UNSIGNED
    )
    return replace(unsigned, signature=identity.sign(unsigned.signed_bytes).hex())


def parse_receipt(content: bytes) -> Receipt:
    """Parse a receipt without believing a word of it: ``protocols.audit`` checks.

    A field that is named twice is refused: two readers could read two receipts.

    Raises:
        NotJson: it is cut short or no JSON.
        ReceiptError: naming the first field that is missing, unknown or malformed.
    """
    try:
        json.loads(content, object_pairs_hook=_distinct, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise NotJson("is cut short, no JSON, or names a field twice") from None
    try:
        return adapter(Receipt).validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise NotJson("is not JSON in UTF-8") from None
        raise ReceiptError(_path(first["loc"]), first["msg"].lower()) from None


def _path(location: tuple[int | str, ...]) -> str:
    """A field as ``rounds[3].survivors``; names that a stranger chose are not shown."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isascii() and part.replace("_", "").replace("-", "").isalnum() and len(part) <= 64:
            path += f".{part}"
        else:  # pydantic's own "[key]", or a name beyond the pattern
            break
    return path.removeprefix(".") or "content"


def _by_sender(messages: Iterable[Envelope]) -> tuple[Envelope, ...]:
    return tuple(sorted(messages, key=lambda message: message.sender))


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is named twice")
    return fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
