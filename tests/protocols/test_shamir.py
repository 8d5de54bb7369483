"""Secret sharing: a published worked example, every subset, and shares that were tampered with."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.shamir import PRIME, combine, split
from tests.vectors.load import outside

SECRETS = st.binary(min_size=32, max_size=32)


@st.composite
def sharings(draw: st.DrawFn) -> tuple[bytes, int, dict[int, bytes]]:
    """A secret, its threshold and all its shares by point."""
    secret, holders = draw(SECRETS), draw(st.integers(1, 12))
    threshold = draw(st.integers(1, holders))
    return secret, threshold, dict(enumerate(split(secret, threshold=threshold, holders=holders), 1))


def test_the_published_example_gives_its_shares_and_its_secret() -> None:
    example = outside("shamir")
    coefficients = iter(example["coefficients"])
    shares = split(
        example["secret"].to_bytes(32, "little"),
        threshold=example["threshold"],
        holders=len(example["shares"]),
        entropy=lambda length: next(coefficients).to_bytes(length, "little"),
    )
    assert [int.from_bytes(share, "little") for share in shares] == example["shares"]
    for chosen in itertools.combinations(enumerate(shares, 1), example["threshold"]):
        assert combine(dict(chosen)) == example["secret"].to_bytes(32, "little")


def test_the_field_is_the_smallest_prime_field_above_every_secret() -> None:
    assert PRIME > 2**256
    assert is_prime(PRIME)
    assert not any(is_prime(number) for number in range(2**256, PRIME))


@given(sharings(), st.randoms(use_true_random=False))
def test_any_threshold_shares_give_the_secret(
    sharing: tuple[bytes, int, dict[int, bytes]], chance: random.Random
) -> None:
    secret, threshold, shares = sharing
    points = chance.sample(sorted(shares), chance.randint(threshold, len(shares)))
    assert combine({point: shares[point] for point in points}) == secret


@given(SECRETS, SECRETS, st.integers(2, 6))
def test_fewer_shares_than_the_threshold_fit_every_secret(secret: bytes, other: bytes, threshold: int) -> None:
    shares = dict(enumerate(split(secret, threshold=threshold, holders=threshold), 1))
    # The value at zero is linear in the last share; so one can be made up that gives the other secret.
    weight = 1
    for point in range(1, threshold):
        weight = weight * point * pow(point - threshold, -1, PRIME) % PRIME
    difference = int.from_bytes(other, "little") - int.from_bytes(secret, "little")
    made_up = (int.from_bytes(shares[threshold], "little") + difference * pow(weight, -1, PRIME)) % PRIME
    assert combine(shares | {threshold: made_up.to_bytes(33, "little")}) == other


@given(sharings(), st.integers(0), st.integers(0, 255))
def test_a_share_with_a_flipped_bit_does_not_give_the_secret(
    sharing: tuple[bytes, int, dict[int, bytes]], place: int, bit: int
) -> None:
    secret, threshold, shares = sharing
    used = dict(list(shares.items())[:threshold])
    point = place % threshold + 1
    changed = int.from_bytes(used[point], "little") ^ 1 << bit
    assert combine(used | {point: changed.to_bytes(33, "little")}) != secret


def test_shares_of_something_that_is_no_32_byte_secret_give_none() -> None:
    beyond = (2**256 + 5).to_bytes(33, "little")
    assert combine({1: beyond, 2: beyond}) is None


def test_the_same_secret_is_shared_differently_each_time() -> None:
    assert split(bytes(32), threshold=2, holders=3) != split(bytes(32), threshold=2, holders=3)


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3), (-1, 3)])
def test_an_impossible_threshold_is_a_mistake(threshold: int, holders: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        split(bytes(32), threshold=threshold, holders=holders)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_secret_of_another_length_is_a_mistake(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        split(bytes(length), threshold=1, holders=1)


@pytest.mark.parametrize("length", [0, 32, 34])
def test_a_share_of_another_length_is_a_mistake(length: int) -> None:
    with pytest.raises(ValueError, match="33 bytes"):
        combine({1: bytes(length)})


def is_prime(number: int) -> bool:
    """Miller and Rabin, with the first 20 primes as bases."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        power = pow(base, odd, number)
        if power not in (1, number - 1) and not any(
            (power := power * power % number) == number - 1 for _ in range(twos - 1)
        ):
            return False
    return True
