"""Envelopes: the one door in lets nothing through that is not signed, in place and well formed."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from protocols.contexts import canonical, sha256
from protocols.errors import BadMessage
from protocols.history import NO_HISTORY
from protocols.keys import Identity
from protocols.messages import (
    COORDINATOR,
    EVERYONE,
    Advert,
    Confirmation,
    Envelope,
    MaskedVector,
    Refusal,
    Reveal,
    SealedShare,
    check_answers,
    envelope,
    from_distinct,
    open_body,
    parse,
    readdressed,
)
from tests.bodies import BODIES
from tests.vectors.load import own

ANN = Identity("ann", bytes(range(32)))
CONTEXT = sha256("a context")
ADVERT = Advert.of(sha256("mask"), sha256("channel"), replace(NO_HISTORY, ledger_entries=7))
MESSAGE = envelope(ANN, "advert", CONTEXT, EVERYONE, ADVERT)
EXPECTED = {"key": ANN.public, "kind": "advert", "context": CONTEXT, "sender": "ann", "receiver": EVERYONE}
OF_THE_ROUND = [Envelope(**sent) for kind in own("round_of_4_one_dropped")["envelopes"].values() for sent in kind]


def opened(message: Envelope, **other: str) -> Advert:
    return open_body(Advert, message, **(EXPECTED | other))


@pytest.mark.parametrize("message", OF_THE_ROUND, ids=lambda message: f"{message.kind}-{message.sender}")
def test_every_envelope_of_a_whole_round_comes_back_from_json_with_its_body(message: Envelope) -> None:
    assert Envelope.from_json(message.to_json()) == message
    cls = BODIES[message.kind]
    body = parse(cls, message.body, party=message.sender, step="test")
    assert canonical(asdict(body)) == message.body


@given(
    st.builds(Refusal, st.text(), st.text(), st.text()), st.sampled_from((COORDINATOR, EVERYONE, "a", "z-9" + "x" * 29))
)
def test_a_signed_body_opens_for_its_receiver_whatever_its_text(body: Refusal, receiver: str) -> None:
    message = Envelope.from_json(envelope(ANN, "refusal", CONTEXT, receiver, body).to_json())
    expected = EXPECTED | {"kind": "refusal", "receiver": receiver}
    assert open_body(Refusal, message, **expected) == body


@pytest.mark.parametrize(
    ("name", "other"),
    [("kind", "share"), ("context", sha256("other")), ("sender", "bob"), ("receiver", COORDINATOR)],
)
def test_an_envelope_that_belongs_elsewhere_does_not_open(name: str, other: str) -> None:
    with pytest.raises(BadMessage, match=f"the message's {name} is not the expected one"):
        opened(MESSAGE, **{name: other})
    with pytest.raises(BadMessage, match="signature"):
        opened(replace(MESSAGE, **{name: other}), **{name: other})


@given(st.integers(0, 511))
def test_a_flipped_bit_of_the_signature_does_not_verify(bit: int) -> None:
    signature = (int(MESSAGE.signature, 16) ^ 1 << bit).to_bytes(64, "big").hex()
    with pytest.raises(BadMessage, match=r"^ann: advert: the signature does not verify$"):
        opened(replace(MESSAGE, signature=signature))


@given(st.integers(0), st.characters(exclude_categories=["Cs"]))
def test_a_changed_character_of_the_body_does_not_verify(place: int, character: str) -> None:
    place %= len(MESSAGE.body)
    body = MESSAGE.body[:place] + character + MESSAGE.body[place + 1 :]
    if body != MESSAGE.body:
        with pytest.raises(BadMessage, match="signature"):
            opened(replace(MESSAGE, body=body))


def test_a_body_signed_by_another_does_not_open() -> None:
    forged = envelope(Identity("ann", bytes(32)), "advert", CONTEXT, EVERYONE, ADVERT)
    with pytest.raises(BadMessage, match="signature"):
        opened(forged)


def signed(text: str) -> Envelope:
    """An envelope of ann's around any text."""
    unsigned = replace(MESSAGE, body=text)
    return replace(unsigned, signature=ANN.sign(unsigned.signed_bytes).hex())


@given(st.text() | st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=9).map(json.dumps))
def test_a_signed_body_that_is_no_advert_is_a_bad_message(text: str) -> None:
    with pytest.raises(BadMessage, match=r"^ann: advert: the message does not parse$"):
        opened(signed(text))


def changed(**fields: Any) -> str:
    return json.dumps(asdict(ADVERT) | fields)


@pytest.mark.parametrize(
    "text",
    [
        changed(extra=1),
        changed(mask_key=None),
        changed(mask_key="00"),
        changed(mask_key=ADVERT.mask_key.upper()),
        changed(mask_key=ADVERT.mask_key + "\n"),
        changed(mask_key=[ADVERT.mask_key]),
        json.dumps({"mask_key": ADVERT.mask_key}),
        changed()[:-1],
        changed() + "x",
        "NaN",
        "[" * 100_000,
        '{"mask_key":' * 10_000,
    ],
    ids=range(12),
)
def test_a_signed_body_with_a_wrong_field_is_a_bad_message_without_its_text(text: str) -> None:
    with pytest.raises(BadMessage) as caught:
        opened(signed(text))
    assert str(caught.value) == "ann: advert: the message does not parse"
    assert caught.value.__suppress_context__


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_text_that_is_no_envelope_is_a_bad_message(text: str) -> None:
    with pytest.raises(BadMessage):
        Envelope.from_json(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "Advert"},
        {"kind": "x" * 33},
        {"context": "0" * 63},
        {"sender": "@everyone"},
        {"sender": "Ann"},
        {"receiver": "@nobody"},
        {"body": 1},
        {"body": "\ud800"},
        {"signature": "0" * 127},
        {"signature": "0" * 128 + "\n"},
        {"answers": "0" * 63},
        {"answers": None},
        {"note": ""},
    ],
)
def test_an_envelope_with_a_wrong_field_is_a_bad_message(fields: dict[str, Any]) -> None:
    with pytest.raises(BadMessage):
        Envelope.from_json(json.dumps(asdict(MESSAGE) | fields))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Confirmation(("ann", "@coordinator")),
        lambda: Reveal({"ann": "0" * 65}, {}),
        lambda: Reveal({"ANN": "0" * 66}, {}),
        lambda: MaskedVector(sha256("v"), -1),
        lambda: SealedShare("abc", CONTEXT, CONTEXT, CONTEXT),
    ],
)
def test_a_body_with_a_wrong_field_cannot_be_made(make: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        make()


@pytest.mark.parametrize("name", ["kind", "context", "sender", "receiver", "body", "signature", "answers"])
def test_the_digest_of_a_message_covers_each_field(name: str) -> None:
    other = {"kind": "x", "context": sha256("x"), "sender": "x", "receiver": "x", "body": "x", "signature": "0" * 128}
    other |= {"answers": sha256("x")}
    assert replace(MESSAGE, **{name: other[name]}).digest != MESSAGE.digest


REQUEST = envelope(ANN, "ask/share", CONTEXT, "bob", ADVERT)


def test_an_answer_names_its_request_under_the_signature() -> None:
    answer = envelope(ANN, "advert", CONTEXT, EVERYONE, ADVERT, REQUEST.digest)
    check_answers([answer, answer], REQUEST)
    assert opened(answer) == ADVERT
    with pytest.raises(BadMessage, match="signature"):
        opened(replace(answer, answers=MESSAGE.digest))
    for other in (MESSAGE, envelope(ANN, "advert", CONTEXT, EVERYONE, ADVERT, MESSAGE.digest)):
        with pytest.raises(BadMessage, match=r"^ann: answer: it answers another request$"):
            check_answers([answer, other], REQUEST)


def test_the_same_words_to_another_request_are_signed_anew_and_to_the_same_are_the_same_bytes() -> None:
    answer = envelope(ANN, "advert", CONTEXT, EVERYONE, ADVERT, MESSAGE.digest)
    other = readdressed(ANN, answer, REQUEST.digest)
    assert opened(other) == ADVERT and other.body == answer.body
    check_answers([other], REQUEST)
    assert readdressed(ANN, other, MESSAGE.digest).to_json() == answer.to_json()


def test_messages_are_found_by_sender() -> None:
    other = envelope(Identity("bob", bytes(32)), "advert", CONTEXT, EVERYONE, ADVERT)
    assert from_distinct([MESSAGE, other], ("ann", "bob", "cat"), step="test") == {"ann": MESSAGE, "bob": other}


def test_a_sender_that_appears_twice_or_is_unknown_is_named() -> None:
    with pytest.raises(BadMessage, match=r"^ann: test: this sender appears twice$"):
        from_distinct([MESSAGE, MESSAGE], ("ann",), step="test")
    with pytest.raises(BadMessage, match=r"^ann: test: this sender is not expected here$"):
        from_distinct([MESSAGE], ("bob",), step="test")
