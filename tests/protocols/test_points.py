"""Public keys: those of RFC 8032 and of any secret are points of the prime order; what is no key is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.keys import Identity, InvalidKey, verify
from protocols.points import P, check_public_key
from tests.vectors.load import outside

ORDER_8 = 2707385501144840649318225287225658788936804267575313519463743609750303021022
"""The y-coordinate of a point of order 8, as in the published lists of such keys."""
SMALL_ORDER = [1, P - 1, 0, 2**255, ORDER_8, ORDER_8 + 2**255, P - ORDER_8, P - ORDER_8 + 2**255]
TWICE_WRITTEN = [P, P + 1, P + 2**255, P + 1 + 2**255, 1 + 2**255, P - 1 + 2**255]


@pytest.mark.parametrize("case", outside("ed25519")["cases"])
def test_the_public_keys_of_rfc_8032_are_taken(case: dict[str, Any]) -> None:
    check_public_key(bytes.fromhex(case["public"]))


@given(st.binary(min_size=32, max_size=32))
def test_the_public_key_of_any_secret_is_taken(secret: bytes) -> None:
    check_public_key(bytes.fromhex(Identity("ann", secret).public))


@pytest.mark.parametrize("number", [*SMALL_ORDER, *TWICE_WRITTEN])
def test_points_of_small_order_and_points_written_in_a_second_way_are_refused(number: int) -> None:
    with pytest.raises(InvalidKey):
        check_public_key(number.to_bytes(32, "little"))


def test_under_a_key_of_small_order_anybody_can_sign() -> None:
    """Why they are refused: this signature, made without a secret, verifies over any message."""
    neutral = (1).to_bytes(32, "little")
    verify(neutral.hex(), b"any message", neutral + bytes(32))


@given(st.integers(0, 2**256 - 1))
def test_a_sum_with_a_point_of_small_order_is_no_key(number: int) -> None:
    """Of all 32 bytes, a sixteenth are keys: the half that are points, and of those one in eight."""
    public = number.to_bytes(32, "little")
    try:
        check_public_key(public)
    except InvalidKey:
        return
    flipped = ((P - number % 2**255) % P).to_bytes(32, "little")  # -y: the point of order 2 added
    with pytest.raises(InvalidKey):
        check_public_key(flipped)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_another_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidKey):
        check_public_key(bytes(length))
