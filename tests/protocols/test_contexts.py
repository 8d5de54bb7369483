"""Contexts: every field counts, order does not, and no unsafe attempt passes a site's check."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.contexts import (
    AttemptContext,
    canonical,
    check_context,
    round_context,
    sha256,
    threshold_refusal,
)
from protocols.encoding import CLAMPED, Segment
from protocols.errors import BadMessage, Refused, RingTooSmall
from protocols.messages import parse

KEYS = {name: sha256(name) for name in ("ann", "bob", "cat", "dan")}
COUNT = Segment(CLAMPED, 1, 32, 1.0, 1000.0)
CONTEXT = AttemptContext(
    "training", "trial", 1, 1, sha256("plan"), KEYS, 3, 1, sha256("model"), (Segment("x", 2, 32, 4.0, 1.0), COUNT), {}
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def test_the_digest_of_the_empty_list_of_parts_is_nists_digest_of_no_bytes() -> None:
    assert sha256() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_attempt_context_is_the_hash_of_framed_label_and_json() -> None:
    text = json.dumps(asdict(CONTEXT), sort_keys=True, separators=(",", ":")).encode()
    parts = (b"fedseal/1", b"attempt context", text)
    assert (
        CONTEXT.digest == hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in parts)).hexdigest()
    )


@given(JSON)
def test_canonical_json_is_ascii_and_comes_back_the_same(value: Any) -> None:
    text = canonical(value)
    assert text.isascii()
    assert json.loads(text) == value
    assert canonical(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers()))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, int]) -> None:
    assert canonical(dict(reversed(value.items()))) == canonical(value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_json_has_no_number_for_is_a_mistake(bad: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical([bad])


CHANGES: dict[str, Any] = {
    "purpose": "evaluation",
    "training": "other",
    "round": 2,
    "attempt": 2,
    "plan": sha256("other plan"),
    "sites": KEYS | {"dan": sha256("other key")},
    "threshold": 4,
    "colluding": 2,
    "model": sha256("other model"),
    "segments": (Segment("x", 2, 32, 4.0, 1.0 + 2.0**-52), COUNT),
    "noise": {"x": 2.0, "clamped": 2.0},
}


def test_every_field_of_the_attempt_changes_its_digest() -> None:
    assert set(CHANGES) == set(asdict(CONTEXT))
    digests = {replace(CONTEXT, **{name: value}).digest for name, value in CHANGES.items()}
    assert len(digests | {CONTEXT.digest}) == len(CHANGES) + 1


def test_the_attempt_read_back_from_json_has_the_same_digest() -> None:
    read = parse(AttemptContext, canonical(asdict(CONTEXT)), party="site", step="test")
    assert read == CONTEXT
    assert read.digest == CONTEXT.digest


@given(
    st.lists(st.binary(max_size=9), max_size=5, unique=True), st.randoms(use_true_random=False), st.binary(max_size=9)
)
def test_the_round_context_depends_on_the_set_of_adverts_alone(adverts: list[bytes], chance: Any, other: bytes) -> None:
    shuffled = list(adverts)
    chance.shuffle(shuffled)
    digest = round_context(CONTEXT.digest, adverts)
    assert round_context(CONTEXT.digest, shuffled) == digest
    assert round_context(CONTEXT.digest, [*adverts, other]) != digest
    assert round_context(sha256("another attempt"), adverts) != digest


@given(st.integers(1, 8), st.integers(-1, 9), st.integers(-1, 5))
def test_a_threshold_that_passes_leaves_an_honest_witness_and_two_honest_inputs(
    sites: int, threshold: int, colluding: int
) -> None:
    if threshold_refusal(sites, threshold, colluding) is not None:
        return
    everyone = range(sites)
    dishonest = set(range(colluding))
    for left in itertools.combinations(everyone, threshold):
        assert len(set(left) - dishonest) >= 2
        for right in itertools.combinations(everyone, threshold):
            assert set(left) & set(right) - dishonest


@pytest.mark.parametrize(
    ("sites", "threshold", "colluding", "reason"),
    [
        (3, 3, 0, "colluding must be at least 1"),
        (3, 4, 1, "exceeds the 3 sites"),
        (5, 3, 1, "must exceed sites"),
        (3, 3, 2, "must be at least 2"),
        (1, 1, 1, "2 x threshold"),
    ],
)
def test_an_unsafe_threshold_is_refused_for_its_reason(sites: int, threshold: int, colluding: int, reason: str) -> None:
    assert reason in str(threshold_refusal(sites, threshold, colluding))


@pytest.mark.parametrize(("sites", "threshold", "colluding"), [(3, 3, 1), (4, 3, 1), (5, 4, 1), (20, 12, 2)])
def test_a_safe_threshold_passes(sites: int, threshold: int, colluding: int) -> None:
    assert threshold_refusal(sites, threshold, colluding) is None


def test_a_safe_attempt_passes_the_sites_check() -> None:
    check_context(CONTEXT, "ann", KEYS | {"eve": sha256("eve")})


SHARED_KEY = KEYS | {"dan": KEYS["cat"]}


@pytest.mark.parametrize(
    ("changed", "consortium", "reason"),
    [
        ({"threshold": 2}, KEYS, "2 x threshold"),
        ({"sites": {name: KEYS[name] for name in ("bob", "cat", "dan")}}, KEYS, "does not hold this site"),
        ({"sites": KEYS | {"eve": sha256("eve")}, "threshold": 4}, KEYS, "key of eve is not the one"),
        ({}, KEYS | {"bob": sha256("other")}, "key of bob is not the one"),
        ({"sites": SHARED_KEY}, SHARED_KEY, "two sites of the roster have one identity key"),
        ({"segments": ()}, KEYS, "segment table"),
        ({"segments": (COUNT, COUNT)}, KEYS, "segment table"),
        ({"segments": (COUNT, Segment("x", 1, 32, 1.0, 1.0))}, KEYS, "segment table"),
    ],
)
def test_an_attempt_that_breaks_a_rule_is_refused(
    changed: dict[str, Any], consortium: Mapping[str, str], reason: str
) -> None:
    with pytest.raises(Refused, match=reason):
        check_context(replace(CONTEXT, **changed), "ann", consortium)


def test_an_attempt_whose_sum_could_overflow_is_refused() -> None:
    with pytest.raises(RingTooSmall, match="segment x"):
        check_context(replace(CONTEXT, segments=(Segment("x", 1, 16, 1.0, 9000.0), COUNT)), "ann", KEYS)


@pytest.mark.parametrize(
    "changed",
    [
        {"purpose": "other"},
        {"training": "Trial"},
        {"training": ""},
        {"round": -1},
        {"round": 2**31},
        {"round": 1.0},
        {"round": "1"},
        {"round": True},
        {"attempt": 0},
        {"plan": "00"},
        {"plan": "A" * 64},
        {"model": "0" * 64 + "\n"},
        {"sites": {"@coordinator": "0" * 64}},
        {"sites": {"a" * 33: "0" * 64}},
        {"threshold": 0},
        {"colluding": 0},
        {"segments": None},
        {"extra": 1},
    ],
)
def test_a_malformed_attempt_does_not_parse(changed: dict[str, Any]) -> None:
    with pytest.raises(BadMessage, match=r"^@coordinator: ask: the message does not parse$"):
        parse(AttemptContext, json.dumps(asdict(CONTEXT) | changed), party="@coordinator", step="ask")
