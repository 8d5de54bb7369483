"""Check a receipt, offline, with nothing but the consortium's keys and the plan (SPEC 11.4).

Whoever checks trusts neither the coordinator nor the file. Each check names the field that is wrong. Where a field and
the signed messages that speak of it differ, the field is blamed if none of them agrees with it, else the message. The
coordinator's signature is checked last, so that a changed field is named and not the signature over it; nothing counts
as verified before.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, ParamSpec, TypeVar

from protocols.confirmed import ConfirmedSums
from protocols.contexts import AttemptContext, Purpose, check_context, round_context
from protocols.encoding import Segment
from protocols.errors import ProtocolError
from protocols.keys import Consortium, InvalidKey, verify
from protocols.messages import EVERYONE, Confirmation, Envelope, open_body
from protocols.plain import check_submitted
from protocols.receipt import Entry, Receipt, ReceiptError, chain_start
from protocols.secagg_site import check_advert

VECTOR = frozenset({"update", "buffers"})
"""The segments of a training's sum that carry the model's vector (SPEC 3.5)."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Terms:
    """What the plan demands of a receipt; this layer cannot read plans.

    Attributes:
        plan: the plan's digest.
        sites: the invited sites.
        threshold, colluding: as in every context.
        protocol: ``secagg`` or ``plain``.
        rounds: how many at most.
        patience: rounds without improvement before stopping; 0: never.
        keep: which model the final evaluation is made on.
        tables: the segments of each purpose.
        private: whether the sums are noised: then every round is made.
    """

    plan: str
    sites: frozenset[str]
    threshold: int
    colluding: int
    protocol: Literal["secagg", "plain"]
    rounds: int
    patience: int
    keep: Literal["last", "best"]
    tables: Mapping[Purpose, tuple[Segment, ...]]
    private: bool = False


def check_receipt(receipt: Receipt, consortium: Consortium, terms: Terms) -> None:
    """Check everything that a receipt can show (SPEC 11.4).

    Raises:
        ReceiptError: naming the first field that is wrong.
    """
    check_names(receipt, terms)
    check_keys(receipt, consortium, terms)
    check_order(receipt, terms)
    previous = chain_start(receipt.training, terms.plan)
    for place, entry in enumerate(receipt.rounds):
        check_entry(f"rounds[{place}]", entry, receipt, terms)
        if entry.previous != previous:
            raise ReceiptError(f"rounds[{place}].previous", "is not the digest of the entry before it")
        previous = entry.digest
    check_confirmed(receipt)
    check_tables(receipt, consortium, terms)
    check_models(receipt, terms)
    try:
        verify(consortium.coordinator, receipt.signed_bytes, bytes.fromhex(receipt.signature))
    except InvalidKey:
        reason = "the coordinator has not signed this: tensors, a digest with its chain, or the signature was changed"
        raise ReceiptError("signature", reason) from None


def check_names(receipt: Receipt, terms: Terms) -> None:
    """Check that training and plan are those that the contexts are about."""
    if not receipt.rounds:
        raise ReceiptError("rounds", "is empty: a finished training has sums")
    contexts = [entry.context for entry in receipt.rounds]
    for field, value in (("training", receipt.training), ("plan", terms.plan)):
        said = {f"rounds[{place}].context.{field}": getattr(one, field) for place, one in enumerate(contexts)}
        _blame(field, value, said)


def check_keys(receipt: Receipt, consortium: Consortium, terms: Terms) -> None:
    """Check that the receipt's keys are the consortium's, and those of the plan's sites."""
    if receipt.coordinator != consortium.coordinator:
        raise ReceiptError("coordinator", "is not the consortium's key")
    if set(receipt.sites) != terms.sites:
        raise ReceiptError("sites", "are not the plan's")
    for site, key in receipt.sites.items():
        if consortium.sites.get(site) != key:
            raise ReceiptError(f"sites.{site}", "is not the consortium's key")


def check_order(receipt: Receipt, terms: Terms) -> None:
    """Check that there is exactly one entry for each sum, in the order of a training (SPEC 3.5)."""
    found: list[tuple[str, int]] = [(entry.context.purpose, entry.context.round) for entry in receipt.rounds]
    first = [("statistics", 0)] if found[0][0] == "statistics" else []
    trained = len(found) - len(first) - 1
    if trained < 1:
        raise ReceiptError("rounds", "holds no round of training and an evaluation after it")
    due = [*first, *(("training", number) for number in range(1, trained + 1)), ("evaluation", terms.rounds + 1)]
    for place, (one, other) in enumerate(zip(found, due, strict=True)):
        if one != other:
            reason = f"is {one[0]} in round {one[1]}, where {other[0]} in round {other[1]} is due"
            raise ReceiptError(f"rounds[{place}].context", reason)
    check_length(receipt, terms, trained)


def check_length(receipt: Receipt, terms: Terms, trained: int) -> None:
    """Check that the training ended where the plan lets it: after its rounds, out of patience, or converged.

    What a sum's model is only the coordinator says, and a noised one never converges: there every round is due.
    """
    last = receipt.rounds[-2]
    ended = not terms.private and (last.model == last.context.model or 0 < terms.patience < trained)
    if trained > terms.rounds or (trained < terms.rounds and not ended):
        raise ReceiptError("rounds", f"holds {trained} rounds of training, where the plan has {terms.rounds}")


def check_entry(place: str, entry: Entry, receipt: Receipt, terms: Terms) -> None:
    """Check one sum: its context against the plan, what the sites have signed, its own digest."""
    wanted = {"sites": dict(receipt.sites), "threshold": terms.threshold, "colluding": terms.colluding}
    for field, value in wanted.items():
        if getattr(entry.context, field) != value:
            raise ReceiptError(f"{place}.context.{field}", "is not the plan's and the consortium's")
    survivors = entry.survivors
    if list(survivors) != sorted(set(survivors)) or not set(survivors) <= terms.sites:
        raise ReceiptError(f"{place}.survivors", "are not sorted, or name a site twice or one that was not invited")
    if len(survivors) < terms.threshold:
        raise ReceiptError(f"{place}.survivors", f"are {len(survivors)}, {terms.threshold} are needed")
    if terms.protocol == "secagg":
        check_confirmations(place, entry, check_adverts(place, entry))
    else:
        check_plain(place, entry)
    if entry.digest != entry.expected_digest:
        raise ReceiptError(place, "is not what its digest says")


def check_adverts(place: str, entry: Entry) -> str:
    """Check what U1 has signed (SPEC 4.1); gives the round context that its adverts make."""
    field, context = f"{place}.adverts", entry.context
    _check_senders(field, entry.adverts, context)
    _blame(f"{place}.context", context.digest, _contexts(field, entry.adverts))
    for at, message in enumerate(entry.adverts):
        _check(f"{field}[{at}]", check_advert, context, message.sender, message)
    signed = [message.signed_bytes + bytes.fromhex(message.signature) for message in entry.adverts]
    return round_context(context.digest, signed)


def check_confirmations(place: str, entry: Entry, round_digest: str) -> None:
    """Check that survivors have confirmed exactly this survivor set, in this round context (SPEC 4.4)."""
    confirmations, survivors, said = f"{place}.confirmations", entry.survivors, {}
    _check_senders(confirmations, entry.confirmations, entry.context)
    _blame(f"{place}.adverts", round_digest, _contexts(confirmations, entry.confirmations))
    for at, message in enumerate(entry.confirmations):
        body = _check(f"{confirmations}[{at}]", _confirmation, entry.context, round_digest, message)
        said[f"{confirmations}[{at}].body"] = body.survivors
    _blame(f"{place}.survivors", survivors, said)
    if not set(survivors) <= {message.sender for message in entry.adverts}:
        raise ReceiptError(f"{place}.survivors", "name a site that has not advertised")
    for at, message in enumerate(entry.confirmations):
        if message.sender not in survivors:
            raise ReceiptError(f"{confirmations}[{at}].sender", "is not a survivor")


def check_plain(place: str, entry: Entry) -> None:
    """Check the sites' words on their unmasked vectors (SPEC 4.7)."""
    if entry.adverts:
        raise ReceiptError(f"{place}.adverts", "are not empty: the plain protocol has none")
    field = f"{place}.confirmations"
    _check_senders(field, entry.confirmations, entry.context)
    _blame(f"{place}.context", entry.context.digest, _contexts(field, entry.confirmations))
    for at, message in enumerate(entry.confirmations):
        _check(f"{field}[{at}]", check_submitted, entry.context, message.sender, message)
    senders = {message.sender for message in entry.confirmations}
    if senders < set(entry.survivors):
        raise ReceiptError(field, "are not one from each survivor")
    if senders != set(entry.survivors):
        raise ReceiptError(f"{place}.survivors", "are not the sites that have submitted a vector")


def check_confirmed(receipt: Receipt) -> None:
    """Check that no sum is left out that sites have confirmed: each advert binds what its site had confirmed before."""
    sums = ConfirmedSums()
    for place, entry in enumerate(receipt.rounds):
        wrong = []
        for at, message in enumerate(entry.adverts):
            advert = _check(f"rounds[{place}].adverts[{at}]", check_advert, entry.context, message.sender, message)
            wrong += [] if sums.allow(message.sender, advert) else [at]
        if wrong and len(wrong) == len(entry.adverts):
            raise ReceiptError(
                "rounds", f"leave out or change a sum before rounds[{place}] that its sites have confirmed"
            )
        if wrong:
            raise ReceiptError(
                f"rounds[{place}].adverts[{wrong[0]}]", "binds other confirmed sums than the receipt has"
            )
        sums.add(entry)


def check_tables(receipt: Receipt, consortium: Consortium, terms: Terms) -> None:
    """Check each sum's segments and rule 4 (SPEC 3.5, 8), and that the tensors make a vector of that length."""
    lengths = {
        f"rounds[{place}].context.segments": sum(one.length for one in entry.context.segments if one.name in VECTOR)
        for place, entry in enumerate(receipt.rounds)
        if entry.context.purpose == "training"
    }
    _blame("tensors", sum(tensor.size for tensor in receipt.tensors), lengths)
    for place, entry in enumerate(receipt.rounds):
        context = entry.context
        if context.segments != terms.tables.get(context.purpose):
            raise ReceiptError(f"rounds[{place}].context.segments", "is not the plan's table")
        _check(f"rounds[{place}].context", check_context, context, min(context.sites), consortium.sites)


def check_models(receipt: Receipt, terms: Terms) -> None:
    """Check that every incoming model is the one that the plan wants: the last one, or one that was measured.

    With ``keep = "best"`` the final evaluation may be of any round's incoming model, since the receipt holds no
    metrics; where no round has the plan's metric, the last model is kept.
    """
    *before, evaluation = receipt.rounds
    for place, (old, new) in enumerate(pairwise(before), 1):
        if new.context.model != old.model:
            raise ReceiptError(f"rounds[{place}].context.model", "is not the model that the entry before it made")
    measured = [entry.context.model for entry in before if entry.context.purpose == "training"]
    if len(set(measured)) != len(measured):
        raise ReceiptError("rounds", "two rounds were made from one model")
    allowed = {before[-1].model, *(measured if terms.keep == "best" else ())}
    last = f"rounds[{len(before)}]"
    if evaluation.context.model not in allowed:
        raise ReceiptError(f"{last}.context.model", f"is not a model that the plan keeps ({terms.keep})")
    if evaluation.model != evaluation.context.model:
        raise ReceiptError(f"{last}.model", "is not the evaluated one: an evaluation changes no model")


def _confirmation(context: AttemptContext, round_digest: str, message: Envelope) -> Confirmation:
    sender = message.sender
    key = context.sites[sender]
    return open_body(
        Confirmation,
        message,
        key=key,
        kind="confirmation",
        context=round_digest,
        sender=sender,
        receiver=EVERYONE,
    )


def _check_senders(field: str, messages: Sequence[Envelope], context: AttemptContext) -> None:
    """Messages are sorted by sender, at least ``threshold``, each of another invited site."""
    for at, message in enumerate(messages):
        if message.sender not in context.sites:
            raise ReceiptError(f"{field}[{at}].sender", "was not invited")
    if any(one.sender >= other.sender for one, other in pairwise(messages)):
        raise ReceiptError(field, "are not sorted by sender, or one is there twice")
    if len(messages) < context.threshold:
        raise ReceiptError(field, f"are {len(messages)}, {context.threshold} are needed")


def _contexts(field: str, messages: Iterable[Envelope]) -> dict[str, str]:
    return {f"{field}[{at}].context": message.context for at, message in enumerate(messages)}


def _blame(field: str, value: object, said: Mapping[str, object]) -> None:
    """Blame a field if nothing that speaks of it agrees with it, else what does not."""
    wrong = [place for place, one in said.items() if one != value]
    if wrong and len(wrong) == len(said):
        raise ReceiptError(field, "is not what was signed for it")
    if wrong:
        raise ReceiptError(wrong[0], f"does not agree with {field}")


def _check(field: str, check: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Run a check of the protocol's; what it finds is wrong with this field."""
    try:
        return check(*arguments, **named)
    except ProtocolError as error:
        raise ReceiptError(field, error.reason) from None
