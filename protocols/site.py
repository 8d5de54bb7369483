"""A site's five steps over its vault: the rules that must hold under retries, crashes and lies (SPEC 7, 8).

Each function verifies a request of the coordinator, runs the pure step of ``protocols.secagg_site`` once, journals
the answer durably, and only then gives it. Asked the same again, it replays the identical bytes; asked anything else
for the same step of the same context, it refuses. So one mask serves one vector, each peer's share of one kind only
is revealed, and one survivor set is confirmed, however often an orchestrator retries.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from protocols import secagg_site
from protocols.contexts import AttemptContext, canonical
from protocols.encoding import encode
from protocols.errors import Refused
from protocols.keys import Consortium, Entropy, Identity, system_entropy
from protocols.ledger import Charge, LedgerEntry, check_chain, unspent
from protocols.messages import (
    COORDINATOR,
    AskAdvertise,
    AskConfirm,
    AskMask,
    AskReveal,
    AskShare,
    Body,
    Envelope,
    adapter,
    open_body,
    readdressed,
)
from protocols.privacy.noise import add_noise
from protocols.secagg_site import Advertised, Confirmed, Masked, Shared
from protocols.vault import Context, Entry, Vault

State = Advertised | Shared | Masked | Confirmed
S = TypeVar("S", Advertised, Shared, Masked, Confirmed)
Answer = tuple[Envelope, ...]
Transition = Callable[[], tuple[State, Answer]]


def advertise(
    vault: Vault,
    consortium: Consortium,
    request: Envelope,
    entropy: Entropy = system_entropy,
    charge: Charge | None = None,
    afford: Callable[[Sequence[LedgerEntry], Charge], None] = lambda entries, charge: None,
    admit: Callable[[AttemptContext], None] = lambda context: None,
) -> Answer:
    """Join an attempt (SPEC 4.1), unless a rule forbids it; enter it into the ledger (SPEC 12.8).

    A new attempt supersedes every other context of its training: their secrets are erased, and what they had reserved
    and not spent is released.

    Args:
        vault: the site's.
        consortium: the pinned keys.
        request: the coordinator's.
        entropy: gives random bytes.
        charge: what the attempt's sum costs, where it is noised.
        afford: raises Refused where the ledger's entries leave no room for the charge.
        admit: remembers the roster, or raises Refused where its sums and earlier ones say too much (SPEC 12.10).

    Raises:
        Refused: a ledger that was changed, or a charge that it has no room for; another plan than the one agreed to; an
            attempt or a round that is not newer than the last one; a round or an incoming model from which a sum was
            confirmed; an unsafe threshold, roster or segment table.
        BadMessage: if the request is not the coordinator's.
    """
    identity = vault.identity
    context = _ask(AskAdvertise, identity, consortium, request, "advertise").context
    if request.context != context.digest:
        raise Refused(identity.name, "advertise", "the request is signed for another context")
    with vault.exclusive():
        if (known := vault.find(context.digest)) is not None:
            refuse_erased(known, identity, "advertise")
        else:
            _check_new(vault, identity, context)
            check_chain(identity.name, vault.ledger_lines())
            _close(vault, context.training)
            if charge is not None:
                afford(vault.ledger(), charge)
            admit(context)
            vault.add(context)
            vault.enter(LedgerEntry("reserve" if charge else "joined", context.digest, charge))

        def step() -> tuple[State, Answer]:
            history = vault.history(context.training)
            state, advert = secagg_site.advertise(identity, consortium, context, history, entropy, request.digest)
            return state, (advert,)

        return _once(vault, identity, context.digest, "advertise", request, step)


def share(vault: Vault, consortium: Consortium, request: Envelope, entropy: Entropy = system_entropy) -> Answer:
    """Deal the shares, once for one roster (SPEC 4.2).

    Raises:
        Refused: for another roster, or one with a site whose vault was put back.
        BadMessage, BelowThreshold: as ``secagg_site.share``.
    """
    identity = vault.identity
    ask = _ask(AskShare, identity, consortium, request, "share")
    with vault.exclusive():
        context = _open_context(vault, identity, request, "share")

        def step() -> tuple[State, Answer]:
            state, shares = secagg_site.share(
                identity, _state(Advertised, context, identity, "share"), ask, entropy, request.digest
            )
            for peer, advert in state.adverts.items():
                key = state.advertised.context.sites[peer]
                if not vault.witness(key, *advert.seen(state.advertised.context), name=peer):
                    raise Refused(
                        identity.name, "share", f"the vault of {peer} was put back: it has said another thing"
                    )
            return state, shares

        return _once(vault, identity, context.attempt_context, "share", request, step)


def mask(
    vault: Vault,
    consortium: Consortium,
    request: Envelope,
    values: Mapping[str, NDArray[np.floating]],
    rounding_key: bytes,
    entropy: Entropy = system_entropy,
    content: str | None = None,
) -> Answer:
    """Encode, noise and mask one vector, once (SPEC 4.3, 12.5, rule 1). The masked bytes lie in ``vault.masked_path``.

    Args:
        vault: the site's.
        consortium: the pinned keys.
        request: the coordinator's, in the round context.
        values: one float array a segment; a retry must bring the same ones.
        rounding_key: 32 bytes for stochastic rounding; not part of what a retry must repeat.
        entropy: gives random bytes, for the noise.
        content: the vault's fingerprint of the data, for the ledger's line.

    Raises:
        Refused: if another vector or another inbox was masked under this context.
        BadInput: NaN, infinity or a wrong shape.
        BadMessage, BelowThreshold: as ``secagg_site.mask``.
    """
    identity = vault.identity
    ask = _ask(AskMask, identity, consortium, request, "mask")
    with vault.exclusive():
        context = _open_context(vault, identity, request, "mask")

        def step() -> tuple[State, Answer]:
            state = _state(Shared, context, identity, "mask")
            attempt = state.advertised.context
            private = bool(attempt.noise)
            vector = encode(identity.name, values, attempt.segments, rounding_key, count_clamped=not private)
            if private:
                add_noise(vector, attempt.segments, attempt.noise, entropy)
            masked, message = secagg_site.mask(identity, state, ask, vector, request.digest)
            vault.keep_masked(context.attempt_context, vector.data)
            if content is not None:
                vault.add_summed(context.training, content)
            if unspent(vault.ledger_of(context.attempt_context)):
                vault.enter(LedgerEntry("spent", context.attempt_context, content=content))
            return masked, (message,)

        return _once(vault, identity, context.attempt_context, "mask", request, step, _values_digest(values))


def confirm(vault: Vault, consortium: Consortium, request: Envelope) -> Answer:
    """Confirm one survivor set (SPEC 4.4, rule 3). Raises as ``secagg_site.confirm``, and Refused for another set."""
    identity = vault.identity
    ask = _ask(AskConfirm, identity, consortium, request, "confirm")
    with vault.exclusive():
        context = _open_context(vault, identity, request, "confirm")

        def step() -> tuple[State, Answer]:
            before = _state(Masked, context, identity, "confirm")
            state, confirmation = secagg_site.confirm(identity, before, ask, request.digest)
            vault.add_confirmed(context.training, request.context, state.survivors)
            return state, (confirmation,)

        return _once(vault, identity, context.attempt_context, "confirm", request, step)


def reveal(vault: Vault, consortium: Consortium, request: Envelope) -> Answer:
    """Reveal what unmasks the confirmed sum (SPEC 4.5, rule 2); the same body whenever it is asked.

    The first request must carry enough confirmations; a later one may carry others, since the body is fixed by then,
    and is answered under its own name.
    """
    identity = vault.identity
    ask = _ask(AskReveal, identity, consortium, request, "reveal")
    with vault.exclusive():
        context = _open_context(vault, identity, request, "reveal")
        if (entry := vault.entry(context.attempt_context, "reveal")) is not None:
            return tuple(readdressed(identity, message, request.digest) for message in _replay(entry))

        def step() -> tuple[State, Answer]:
            state = _state(Confirmed, context, identity, "reveal")
            return state, (secagg_site.reveal(identity, state, ask, request.digest),)

        return _once(vault, identity, context.attempt_context, "reveal", request, step)


def finish(vault: Vault, training: str) -> None:
    """Erase the secrets of a training that has ended, and release what it had reserved and not spent."""
    with vault.exclusive():
        _close(vault, training)


def _close(vault: Vault, training: str) -> None:
    held = [context.attempt_context for context in vault.of_training(training) if context.state is not None]
    vault.erase(held)
    vault.forget_unmasked(training)
    for attempt_context in held:
        if unspent(vault.ledger_of(attempt_context)):
            vault.enter(LedgerEntry("release", attempt_context))


def _once(
    vault: Vault, identity: Identity, attempt: str, step: str, request: Envelope, run: Transition, input_: str = ""
) -> Answer:
    """Run a step and journal its answer; or replay it; or refuse what differs from the first request."""
    if (entry := vault.entry(attempt, step)) is not None:
        if (entry.request, entry.input) != (request.digest, input_):
            raise Refused(identity.name, step, "this step was answered before, to another request")
        return _replay(entry)
    state, answer = run()
    confirmed = isinstance(state, Confirmed)
    round_context = None if isinstance(state, Advertised) else _shared(state).round
    vault.advance(attempt, _dump(state), round_context=round_context, confirmed=confirmed)
    vault.journal(attempt, step, Entry(request.digest, input_, canonical([message.to_json() for message in answer])))
    return answer


def _replay(entry: Entry) -> Answer:
    return tuple(Envelope.from_json(text) for text in json.loads(entry.answer or "[]"))


def _ask(cls: type[Body], identity: Identity, consortium: Consortium, request: Envelope, step: str) -> Body:
    return open_body(
        cls,
        request,
        key=consortium.coordinator,
        kind=f"ask/{step}",
        context=request.context,
        sender=COORDINATOR,
        receiver=identity.name,
    )


def _check_new(vault: Vault, identity: Identity, context: AttemptContext) -> None:
    """Rules 3 and 4: what this site may still join."""

    def refuse(reason: str) -> Refused:
        return Refused(identity.name, "advertise", reason)

    if vault.agreed(context.training) != context.plan:
        raise refuse("this is not the plan that the site agreed to")
    for old in vault.of_training(context.training):
        if old.confirmed and old.round == context.round:
            raise refuse(f"round {old.round} was confirmed in attempt {old.attempt}: it can be finished, not restarted")
        if old.confirmed and (old.purpose, old.model) == (context.purpose, context.model):
            raise refuse(f"round {old.round} was confirmed on this incoming model: no other sum is made from it")
        if (old.round, old.attempt) >= (context.round, context.attempt):
            raise refuse(f"attempt {old.round}.{old.attempt} is not older than this one")


def _open_context(vault: Vault, identity: Identity, request: Envelope, step: str) -> Context:
    context = vault.find(request.context)
    if context is None:
        raise Refused(identity.name, step, "this site has not advertised in this context")
    refuse_erased(context, identity, step)
    expected = context.attempt_context if step == "share" else context.round_context
    if request.context != expected:
        raise Refused(identity.name, step, "the request is signed for another context")
    return context


def refuse_erased(context: Context, identity: Identity, step: str) -> None:
    """Refuse a step in a context whose secrets are erased.

    Args:
        context: as the vault knows it.
        identity: the site's.
        step: the step that was asked for.

    Raises:
        Refused: it is over.
    """
    if context.state is None:
        raise Refused(identity.name, step, "this context is over: its secrets are erased")


def _state(cls: type[S], context: Context, identity: Identity, step: str) -> S:
    stored = json.loads(context.state or "{}")
    if stored.get("phase") != cls.__name__:
        raise Refused(identity.name, step, "this step does not follow the last one")
    try:
        return adapter(cls).validate_json(canonical(stored["state"]))
    except ValidationError:  # whose text would hold the secrets
        raise Refused(identity.name, step, "the stored state is of another version of fedseal") from None


def _dump(state: State) -> str:
    return canonical({"phase": type(state).__name__, "state": adapter(type(state)).dump_python(state, mode="json")})


def _shared(state: Shared | Masked | Confirmed) -> Shared:
    match state:
        case Shared():
            return state
        case Masked():
            return state.shared
        case Confirmed():
            return state.masked.shared


def _values_digest(values: Mapping[str, NDArray[np.floating]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        array = np.ascontiguousarray(values[name])
        digest.update(canonical([name, str(array.dtype), list(array.shape)]).encode())
        digest.update(array.data)
    return digest.hexdigest()
