"""Clipping and sensitivity: exact in fractions, and never exceeded by what neighbours do to the encoded vector."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocols.encoding import CLAMPED, Segment, encode, integers
from protocols.errors import BadInput
from protocols.privacy.clipping import Noised, clip, noise_multiplier, sensitivity
from protocols.rotation import rotate

KEY = bytes(range(32))
FLOATS = st.floats(-1e150, 1e150) | st.floats(-2, 2)
VECTORS = arrays.arrays(np.float64, st.integers(1, 30), elements=FLOATS)
BOUNDS = st.floats(1e-6, 1e6)


def squared(vector: np.ndarray) -> Fraction:
    """The exact square of a norm."""
    return sum((Fraction(float(one)) ** 2 for one in vector), Fraction(0))


@given(VECTORS, BOUNDS)
def test_no_clipped_vector_is_longer_than_the_bound_in_exact_numbers(vector: np.ndarray, bound: float) -> None:
    assert squared(clip("site", vector, bound)) <= Fraction(bound) ** 2


def test_what_a_computed_norm_loses_does_not_slip_past_the_bound() -> None:
    vector = np.full(1 << 16, 2.0**-27.6)  # beside 1, the square of each is lost; together they are not
    vector[0] = 1.0
    assert squared(vector) > 1
    assert squared(clip("site", vector, 1.0)) <= 1


@given(arrays.arrays(np.float64, st.integers(1, 30), elements=st.floats(0.5, 2)), st.floats(0.1, 1))
def test_a_vector_that_is_too_long_is_hardly_shorter_than_the_bound_and_points_the_same_way(
    vector: np.ndarray, part: float
) -> None:
    bound = part * float(np.linalg.norm(vector))
    clipped = clip("site", vector, bound)
    assert np.linalg.norm(clipped) >= bound * (1 - 1e-14)
    assert clipped == pytest.approx(vector * part, rel=1e-13)


@given(arrays.arrays(np.float64, st.integers(1, 30), elements=st.floats(-1, 1)))
def test_a_short_vector_stays_what_it_is(vector: np.ndarray) -> None:
    assert clip("site", vector, 6.0).tolist() == vector.tolist()


def test_each_row_is_clipped_by_itself_and_the_input_is_left_alone() -> None:
    rows = np.array([[3, 4], [0.3, 0.4], [0, 0]], np.float32)
    before = rows.copy()
    clipped = clip("site", rows, 1.0)
    assert clipped.dtype == np.float64
    assert clipped == pytest.approx(np.array([[0.6, 0.8], [0.3, 0.4], [0, 0]]), rel=1e-6)
    assert (rows == before).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_a_number_that_cannot_be_squared_is_refused_and_names_the_site(bad: float) -> None:
    with pytest.raises(BadInput, match=r"^site-7: clip: "):
        clip("site-7", np.array([0.0, bad]), 1.0)


@settings(max_examples=200)
@given(
    st.floats(0.01, 100),
    st.floats(1, 2**20),
    st.integers(1, 40),
    st.integers(1, 50),
    st.booleans(),
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**32 - 1),
)
def test_one_record_more_moves_the_encoded_vector_by_no_more_than_the_sensitivity(
    bound: float, scale: float, length: int, records: int, rotated: bool, key: bytes, number: int
) -> None:
    rows = clip("site", np.random.default_rng(number).normal(size=(records, length)) * bound, bound)
    table = (Segment("x", length, 64, scale, 100 * bound), Segment(CLAMPED, 1, 32, 1.0, 100.0))
    encoded = []
    for present in (rows, rows[1:]):
        vector = present.sum(axis=0)
        if rotated:
            rotate(vector, KEY)
        encoded.append(integers(encode("site", {"x": vector}, table, key), table)["x"])
    moved = math.sqrt(sum(int(one) ** 2 for one in encoded[0] - encoded[1]))
    assert moved <= sensitivity(bound, scale, length, summed=records)


@pytest.mark.parametrize(
    ("length", "summed", "slack"), [(1, 2**20, 2.0**-11), (2**32, 1, 2.0**-20), (1, 1, 2.0**-38), (1, 64, 2.0**-32)]
)
def test_the_slack_grows_with_the_square_of_what_is_summed_and_with_the_length(
    length: int, summed: int, slack: float
) -> None:
    exact = 2.0**60 + math.sqrt(length)
    assert 1 + slack <= sensitivity(1.0, 2.0**60, length, summed=summed) / exact < 1 + 1.1 * slack


def test_rounding_alone_can_move_every_coordinate_by_a_step() -> None:
    length, table = 400, (Segment("x", 400, 32, 1.0, 10.0), Segment(CLAMPED, 1, 32, 1.0, 400.0))
    bound, moved = 0.02, 0
    for number in range(200):  # steps are rare for so short a vector; the largest move found is far above bound * scale
        step = encode("site", {"x": np.full(length, bound / 20)}, table, bytes([number]) * 32)
        moved = max(moved, int((integers(step, table)["x"] ** 2).sum()))
    assert bound < math.sqrt(moved) <= sensitivity(bound, 1.0, length)


@given(BOUNDS, st.floats(1e-3, 1e6), st.integers(1, 10**9), st.integers(1, 2**24))
def test_the_sensitivity_is_clip_times_scale_and_the_root_of_the_length(
    bound: float, scale: float, length: int, summed: int
) -> None:
    least = bound * scale + math.sqrt(length)
    assert (
        least
        < sensitivity(bound, scale, length, summed=summed)
        <= least * (1 + (2 * summed**2 + length) * 2.0**-51 + 1e-4)
    )


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(1, 1e4), st.floats(2, 1e4)), min_size=1, max_size=4),
    st.floats(0.1, 10),
    st.integers(0, 2**32 - 1),
)
def test_a_joint_clip_costs_no_less_than_the_worst_share_out_of_the_bound(
    parts: list[tuple[int, float, float]], bound: float, number: int
) -> None:
    segments = [Noised(*part) for part in parts]
    shares = np.abs(np.random.default_rng(number).normal(size=len(parts)))
    shares *= bound / np.linalg.norm(shares)
    whole = sum(
        ((share * one.scale + math.sqrt(one.length)) / one.sigma) ** 2
        for share, one in zip(shares, segments, strict=True)
    )
    assert 1 / noise_multiplier(bound, segments) >= math.sqrt(whole) * (1 - 1e-12)


def test_more_noise_in_every_segment_raises_the_multiplier_in_proportion() -> None:
    parts = (Noised(10, 2.0, 3.0), Noised(1, 9.0, 4.0))
    twice = tuple(Noised(one.length, one.scale, 2 * one.sigma) for one in parts)
    assert noise_multiplier(1.5, twice) == pytest.approx(2 * noise_multiplier(1.5, parts), rel=1e-12)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf, 1e-101, 1e101])
def test_a_bound_out_of_range_is_a_mistake(bound: float) -> None:
    for use in (lambda: clip("site", np.ones(2), bound), lambda: sensitivity(bound, 1.0, 1)):
        with pytest.raises(ValueError, match="clip of"):
            use()


@pytest.mark.parametrize(
    ("length", "scale", "sigma"),
    [(0, 1.0, 1.0), (1, 0.0, 1.0), (1, math.inf, 1.0), (1, 1.0, 0.0), (1, 1.0, -2.0), (1, 1.0, math.nan)],
)
def test_a_segment_without_noise_or_length_is_a_mistake(length: int, scale: float, sigma: float) -> None:
    with pytest.raises(ValueError, match=r"at least 1|must be above 0"):
        Noised(length, scale, sigma)


@pytest.mark.parametrize("summed", [0, -1, 2**24 + 1])
def test_a_sum_that_binary64_cannot_hold_well_is_a_mistake(summed: int) -> None:
    with pytest.raises(ValueError, match="smaller batches"):
        sensitivity(1.0, 1.0, 1, summed=summed)
    with pytest.raises(ValueError, match="at least one segment"):
        noise_multiplier(1.0, ())
