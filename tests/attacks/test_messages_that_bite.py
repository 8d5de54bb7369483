"""Rule 6: whatever bytes arrive, a message is parsed whole or it is a BadMessage with fixed text (SPEC 5.2)."""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from protocols import messages
from protocols.contexts import canonical
from protocols.errors import BadMessage
from protocols.history import NO_HISTORY
from protocols.messages import (
    Advert,
    AskAdvertise,
    AskConfirm,
    Confirmation,
    Envelope,
    MaskedVector,
    Refusal,
    Reveal,
    SealedShare,
    envelope,
    parse,
)
from tests.attacks.hostile import make
from tests.bodies import BODIES
from tests.simulator import Simulator, durable

PARSED = (Envelope, *BODIES.values())
HEX = "ab" * 32


class Bomb:
    """Unpickling it would be noticed."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


HOSTILE = {
    "a pickle": pickle.dumps(Bomb()).decode("latin-1"),
    "a pickle in protocol 0": pickle.dumps(Bomb(), protocol=0).decode("latin-1"),
    "nothing": "",
    "null": "null",
    "a number": "1",
    "a string": '"text"',
    "deep arrays": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "deep arrays, open": "[" * 1_000_000,
    "a huge number": "9" * 100_000,
    "a huge exponent": "1e999999999",
    "NaN": "NaN",
    "a lone surrogate": '"\\ud800"',
    "a raw lone surrogate": '{"a": "\ud800"}',
    "a null byte": "\x00",
    "two values": "{} {}",
    "a trailing comma": '{"survivors": [],}',
    "a type name": '{"__type__": "os.system", "args": ["true"]}',
    "a Prefect record": '{"metadata": {"serializer": {"type": "pickle"}}, "result": "gASV"}',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("body", PARSED, ids=lambda body: body.__name__)
def test_hostile_text_is_a_bad_message_with_fixed_text(body: type, text: str) -> None:
    with pytest.raises(BadMessage) as caught:
        parse(body, text, party="b", step="share")
    assert str(caught.value) == "b: share: the message does not parse"
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


GOOD: dict[type, dict[str, object]] = {
    Envelope: {"kind": "advert", "context": HEX, "sender": "a", "receiver": "b", "body": "{}", "signature": "ab" * 64},
    Advert: {"mask_key": HEX, "channel_key": HEX, **asdict(NO_HISTORY)},
    SealedShare: {"sealed": "ab", "seed_commitment": HEX, "self_commitment": HEX, "key_commitment": HEX},
    MaskedVector: {"vector": HEX, "size": 1},
    Confirmation: {"survivors": ["a"]},
    Reveal: {"self_shares": {"a": "ab" * 33}, "key_shares": {}},
    Refusal: {"step": "mask", "error": "Refused", "reason": "no"},
    AskConfirm: {"survivors": ["a"]},
}

WRONG: tuple[object, ...] = (
    *(
        None,
        True,
        1,
        -1,
        2**70,
        1.5,
        float("1e300"),
        "",
        "x",
        "AB" * 32,
        HEX + "\n",
        HEX + "0",
        " " + HEX,
        "\uff10" * 64,
    ),
    *([], {}, [None], [["a"]], {"a": None}, {"a": 1}, ["a", 1], ["A"], ["a\n"], ["é"], ["a" * 33], {"a": "zz"}),
)


@pytest.mark.parametrize("body", GOOD, ids=lambda body: body.__name__)
def test_every_field_refuses_what_is_not_its_own(body: type) -> None:
    good = GOOD[body]
    assert parse(body, json.dumps(good), party="b", step="share")
    allowed = {
        "body": lambda value: isinstance(value, str),
        "step": lambda value: isinstance(value, str),
        "error": lambda value: isinstance(value, str),
        "reason": lambda value: isinstance(value, str),
        "sealed": lambda value: value in ("", "ab"),
        "size": lambda value: type(value) is int and value >= 0,
        **dict.fromkeys(
            ("ledger_entries", "previous_entries", "answers", "confirmed_sums"),
            lambda value: type(value) is int and value >= 0,
        ),
        "survivors": lambda value: value == [],
        "self_shares": lambda value: value == {},
        "key_shares": lambda value: value == {},
        "kind": lambda value: value == "x",
        "sender": lambda value: value == "x",
        "receiver": lambda value: value == "x",
    }
    for field in good:
        for value in WRONG:
            if allowed.get(field, lambda _: False)(value):
                continue
            with pytest.raises(BadMessage):
                parse(body, json.dumps({**good, field: value}), party="b", step="share")
                pytest.fail(f"{field} took {value!r}")
        with pytest.raises(BadMessage):
            parse(body, json.dumps({key: one for key, one in good.items() if key != field}), party="b", step="share")
    with pytest.raises(BadMessage):
        parse(body, json.dumps({**good, "extra": 1}), party="b", step="share")


def context_as_json(simulator: Simulator) -> dict:
    return json.loads(canonical(asdict(AskAdvertise(simulator.context))))


@pytest.mark.parametrize(
    "path, value",
    [
        ("round", -1),
        ("round", 2**31),
        ("round", 10**4000),
        ("round", 1.0),
        ("round", "1"),
        ("round", True),
        ("attempt", 0),
        ("attempt", 2**63),
        ("threshold", 0),
        ("colluding", 0),
        ("colluding", -1),
        ("purpose", "other"),
        ("training", "Trial"),
        ("training", "../trial"),
        ("model", "AB" * 32),
        ("sites", {"a": "ab"}),
        ("sites", ["a"]),
        ("sites", {"../a": HEX}),
        ("segments", {}),
        ("segments.0.bits", 8),
        ("segments.0.bits", "32"),
        ("segments.0.length", 0),
        ("segments.0.length", 2**41),
        ("segments.0.scale", 0),
        ("segments.0.scale", -1.0),
        ("segments.0.scale", float("nan")),
        ("segments.0.scale", float("inf")),
        ("segments.0.scale", 1e308),
        ("segments.0.max_abs", float("nan")),
        ("segments.0.max_abs", float("inf")),
        ("segments.0.max_abs", 1e308),
        ("segments.0.name", "../x"),
        ("segments.0.extra", 1),
    ],
    ids=lambda case: str(case)[:20],
)
def test_a_proposed_context_with_a_field_out_of_range_is_a_bad_message(
    tmp_path: Path, path: str, value: object
) -> None:
    """Signed by the true coordinator: a number that SQLite or a float cannot hold must not surface as another error."""
    simulator, _ = make(tmp_path)
    proposal = context_as_json(simulator)
    node = proposal["context"]
    *parents, last = path.split(".")
    for parent in parents:
        node = node[int(parent) if parent.isdigit() else parent]
    node[last] = value
    unsigned = Envelope("ask/advertise", HEX, "@coordinator", "a", json.dumps(proposal), "0" * 128)
    signed = replace(unsigned, signature=simulator.coordinator.sign(unsigned.signed_bytes).hex())
    with pytest.raises(BadMessage, match=r"^@coordinator: ask/advertise: the message does not parse$"):
        durable.advertise(simulator.vaults["a"], simulator.consortium, signed)


def test_the_largest_numbers_that_parse_are_refused_as_such(tmp_path: Path) -> None:
    """2^40 elements of 64 bits: refused or joined, but never an untyped error."""
    simulator, _ = make(tmp_path)
    first, *rest = simulator.context.segments
    widest = replace(first, length=2**40, scale=2.0**-30)
    context = replace(simulator.context, segments=(widest, *rest), round=2**31 - 1, attempt=2**31 - 1)
    assert simulator.ask("a", "advertise", context.digest, AskAdvertise(context))


def test_a_signature_is_checked_before_the_body_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulator, _ = make(tmp_path)
    good = envelope(
        simulator.coordinator, "ask/advertise", simulator.context.digest, "a", AskAdvertise(simulator.context)
    )

    def never(*_: object, **__: object) -> None:
        raise AssertionError("parsed before it was verified")

    monkeypatch.setattr(messages, "parse", never)
    with pytest.raises(BadMessage, match="signature"):
        durable.advertise(simulator.vaults["a"], simulator.consortium, replace(good, signature="0" * 128))
    with pytest.raises(AssertionError):
        durable.advertise(simulator.vaults["a"], simulator.consortium, good)


def test_what_a_signature_covers_cannot_be_cut_differently() -> None:
    """Each field is framed by its length: no byte moves from one to the next."""
    one = Envelope("ab", HEX, "c", "d", "e", "0" * 128)
    for other in (
        replace(one, kind="a", sender="bc"),
        replace(one, sender="cd", receiver="d"),
        replace(one, body="de"),
        replace(one, answers=HEX),
    ):
        assert other.signed_bytes != one.signed_bytes
    assert replace(one, receiver="de", body="").signed_bytes != one.signed_bytes


@hypothesis_settings(max_examples=150)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70) | st.just(HEX),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from([field for good in GOOD.values() for field in good]), inner, max_size=6)
        ),
        max_leaves=12,
    ),
    st.sampled_from(PARSED),
)
def test_arbitrary_json_parses_or_is_a_bad_message(value: object, body: type) -> None:
    try:
        parsed = parse(body, json.dumps(value), party="b", step="share")
    except BadMessage as error:
        assert str(error) == "b: share: the message does not parse"
    else:
        assert isinstance(value, Mapping)
        assert parse(body, canonical(asdict(parsed)), party="b", step="share") == parsed


@hypothesis_settings(max_examples=150)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_envelope(data: bytes) -> None:
    with pytest.raises(BadMessage, match=r"^unknown: envelope: the message does not parse$"):
        Envelope.from_json(data.decode("latin-1"))
