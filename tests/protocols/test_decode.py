"""Decoding: as many wrong shares as the code allows are put right, wherever they are and whatever they say."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import shamir
from protocols.decode import decode
from protocols.shamir import PRIME, SHARE_BYTES


def spoiled(shares: list[bytes], wrong: list[int], values: list[int]) -> dict[int, bytes]:
    """The shares by point, those of some holders replaced."""
    found = dict(enumerate(shares, start=1))
    return found | {point: value.to_bytes(SHARE_BYTES, "little") for point, value in zip(wrong, values, strict=True)}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_half_as_many_wrong_shares_as_there_are_too_many_are_put_right(data: st.DataObject) -> None:
    holders = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, holders))
    secret = data.draw(st.binary(min_size=32, max_size=32))
    present = data.draw(st.sets(st.integers(1, holders), min_size=threshold))
    count = data.draw(st.integers(0, (len(present) - threshold) // 2))
    wrong = data.draw(st.permutations(sorted(present)))[:count]
    values = [data.draw(st.integers(0, PRIME - 1)) for _ in wrong]
    shares = spoiled(shamir.split(secret, threshold=threshold, holders=holders), wrong, values)
    given_ = {point: shares[point] for point in data.draw(st.permutations(sorted(present)))}
    assert decode(given_, threshold=threshold) == secret


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.binary(min_size=32, max_size=32))
def test_without_wrong_shares_it_gives_what_interpolation_gives(threshold: int, secret: bytes) -> None:
    shares = dict(enumerate(shamir.split(secret, threshold=threshold, holders=threshold + 3), start=1))
    assert decode(shares, threshold=threshold) == shamir.combine(shares) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, b"\x01" + bytes(31)])
@pytest.mark.parametrize("kind", ["zeros", "one less", "those of another polynomial"])
def test_wrong_shares_of_every_kind_and_secrets_at_the_ends_of_the_range(secret: bytes, kind: str) -> None:
    shares = shamir.split(secret, threshold=3, holders=9)
    other = shamir.split(bytes(range(32)), threshold=3, holders=9)
    said = {
        "zeros": lambda at: 0,
        "one less": lambda at: (int.from_bytes(shares[at - 1], "little") - 1) % PRIME,
        "those of another polynomial": lambda at: int.from_bytes(other[at - 1], "little"),
    }[kind]
    assert decode(spoiled(shares, [1, 2, 9], [said(at) for at in (1, 2, 9)]), threshold=3) == secret


def test_more_wrong_shares_give_none_or_another_secret_and_never_an_error() -> None:
    shares = shamir.split(bytes(range(32)), threshold=3, holders=7)
    assert decode(spoiled(shares, [1, 4, 6], [5, 6, 7]), threshold=3) is None
    other = shamir.split(b"\xaa" * 32, threshold=3, holders=7)
    assert decode(dict(enumerate([*other[:5], *shares[5:]], start=1)), threshold=3) == b"\xaa" * 32
    too_large = dict.fromkeys(range(1, 8), (PRIME - 1).to_bytes(SHARE_BYTES, "little"))
    assert decode(too_large, threshold=3) is None
    assert decode(dict.fromkeys(range(1, 8), bytes(SHARE_BYTES)), threshold=3) == bytes(32)


def test_too_few_shares_or_short_ones_are_a_mistake_of_the_caller() -> None:
    shares = dict(enumerate(shamir.split(bytes(32), threshold=3, holders=3), start=1))
    with pytest.raises(ValueError, match="fewer shares than the threshold"):
        decode({1: shares[1], 2: shares[2]}, threshold=3)
    with pytest.raises(ValueError, match="33 bytes"):
        decode({**shares, 2: shares[2][1:]}, threshold=3)


def test_a_hundred_sites_with_as_many_wrong_shares_as_can_be_put_right_are_decoded_in_no_time() -> None:
    """Finding 9: trying sets of shares does not end from some twenty sites on."""
    draw = random.Random(1)
    wrong = sorted(draw.sample(range(1, 101), 24))
    shares = spoiled(
        shamir.split(b"\x5a" * 32, threshold=51, holders=100), wrong, [draw.randrange(PRIME) for _ in wrong]
    )
    began = time.process_time()
    assert decode(shares, threshold=51) == b"\x5a" * 32
    assert time.process_time() - began < 0.1
