"""Floats to ring elements and back: exact where exactness is claimed, unbiased elsewhere, refused where it cannot hold.

No standard has vectors for this encoding; the outside check is Python's own integers and fractions.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pydantic import ValidationError

from protocols.encoding import CLAMPED, Segment, add, check_headroom, decode, elements, encode, integers, vector_bytes
from protocols.errors import BadInput, Refused, RingTooSmall
from protocols.masks import keystream

KEY = bytes(range(32))
COUNT = Segment(CLAMPED, 1, 32, 1.0, 1000.0)
RINGS = st.sampled_from((16, 32, 64))


@st.composite
def segments_with_headroom(draw: st.DrawFn) -> tuple[Segment, int]:
    """A segment, and the largest number of sites that it has room for; often the ring is nearly full."""
    bits = draw(RINGS)
    sites = draw(st.integers(1, 50))
    room = (2 ** (bits - 1) - 1) // sites - 1
    max_abs = draw(st.floats(2.0**-10, 2.0**10))
    scale = min(2.0**62, room / max_abs) * draw(st.floats(0.5, 1) | st.just(1 - 2.0**-50))
    segment = Segment("x", draw(st.integers(1, 9)), bits, scale, max_abs)
    return segment, (2 ** (bits - 1) - 1) // segment.bound


def encoded(segment: Segment, values: Sequence[float] | np.ndarray, key: bytes = KEY) -> np.ndarray:
    vector = encode("site", {segment.name: np.array(values)}, (segment, COUNT), key)
    return integers(vector, (segment, COUNT))[segment.name]


@given(segments_with_headroom(), st.data())
def test_each_element_is_one_of_the_two_integers_next_to_the_scaled_value(
    drawn: tuple[Segment, int], data: st.DataObject
) -> None:
    segment, _ = drawn
    limits = st.floats(-2 * segment.max_abs, 2 * segment.max_abs)
    values = data.draw(arrays.arrays(np.float64, segment.length, elements=limits))
    for value, element in zip(values, encoded(segment, values), strict=True):
        exact = max(-segment.max_abs, min(segment.max_abs, float(value))) * segment.scale
        assert element in (math.floor(exact), math.ceil(exact))
        assert abs(element) <= segment.bound


@given(segments_with_headroom(), st.data())
def test_the_sum_of_as_many_sites_as_have_room_is_the_integer_sum_bit_for_bit(
    drawn: tuple[Segment, int], data: st.DataObject
) -> None:
    segment, room = drawn
    table, sites = (segment, COUNT), min(room, 20)
    check_headroom((segment,), room)
    extreme = st.sampled_from((-segment.max_abs, segment.max_abs)) | st.floats(-segment.max_abs, segment.max_abs)
    total, expected = np.zeros(vector_bytes(table), np.uint8), [0] * segment.length
    for _ in range(sites):
        values = data.draw(arrays.arrays(np.float64, segment.length, elements=extreme))
        vector = encode("site", {"x": values}, table, KEY)
        expected = [total + int(one) for total, one in zip(expected, integers(vector, table)["x"], strict=True)]
        add(total, vector, table)
    assert integers(total, table)["x"].tolist() == expected
    assert decode(total, table)["x"].tolist() == [one / segment.scale for one in expected]


@given(segments_with_headroom())
def test_one_site_more_than_has_room_is_refused_with_the_numbers(drawn: tuple[Segment, int]) -> None:
    segment, room = drawn
    with pytest.raises(RingTooSmall, match=f"{(room + 1) * segment.bound}"):
        check_headroom((COUNT, segment), room + 1)


@given(st.integers(-(2**52), 2**52), RINGS)
def test_an_integer_stays_what_it_is(integer: int, bits: int) -> None:
    limit = 2 ** min(bits - 3, 53)
    if abs(integer) > limit:
        integer %= limit
    segment = Segment("x", 3, bits, 1.0, float(limit))
    assert encoded(segment, [float(integer)] * 3).tolist() == [integer] * 3


@pytest.mark.parametrize("integer", [2**40 - 1, -(2**40) + 1, 2**52 - 1])
def test_a_large_integer_stays_what_it_is_under_every_rounding(integer: int) -> None:
    segment = Segment("x", 1 << 16, 64, 1.0, 2.0**53)
    assert (encoded(segment, np.full(1 << 16, float(integer))) == integer).all()


@pytest.mark.parametrize("value", [0.3, -0.3, 1e-3, 1234.75, -1234.999])
def test_rounding_is_up_as_often_as_the_fraction_says(value: float) -> None:
    count = 200_000
    rounded = encoded(Segment("x", count, 32, 1.0, 2000.0), np.full(count, value))
    fraction = float(Fraction(value) - math.floor(value))
    deviation = math.sqrt(fraction * (1 - fraction) / count)
    assert abs(float(np.mean(rounded - math.floor(value))) - fraction) < 6 * deviation


def test_rounding_follows_the_keystream_of_its_key() -> None:
    draws = struct.unpack("<5I", keystream(KEY)(20))
    values = [0.1, 0.5, -0.5, 0.9, 3.25]
    expected = [math.floor(Fraction(value) + Fraction(draw, 2**32)) for value, draw in zip(values, draws, strict=True)]
    assert encoded(Segment("x", 5, 32, 1.0, 10.0), values).tolist() == expected


def test_another_rounding_key_rounds_otherwise() -> None:
    segment = Segment("x", 1000, 32, 1.0, 1.0)
    values = np.full(1000, 0.5)
    assert (encoded(segment, values, KEY) != encoded(segment, values, bytes(32))).any()


def test_the_wire_holds_little_endian_elements_one_after_another() -> None:
    table = (Segment("a", 1, 16, 1.0, 300.0), Segment("b", 1, 64, 2.0, 9.0), Segment("c", 2, 32, 1.0, 9.0), COUNT)
    values = {"a": np.array([-258.0]), "b": np.array([3.0]), "c": np.array([-1.0, 10.0])}
    assert encode("site", values, table, KEY).tobytes() == struct.pack("<hqiiI", -258, 6, -1, 9, 1)


def test_the_last_segment_counts_the_clamped_values_of_all_segments_up_to_its_limit() -> None:
    table = (Segment("a", 3, 32, 1.0, 1.0), Segment("b", 2, 16, 1.0, 2.0), replace(COUNT, max_abs=4.0))
    some = {"a": np.array([1.0, -1.1, 7.0]), "b": np.array([-2.0, 2.5])}
    every = {"a": np.array([1.5, -1.1, 7.0]), "b": np.array([-3.0, 2.5])}
    assert integers(encode("site", some, table, KEY), table)[CLAMPED].tolist() == [3]
    assert integers(encode("site", every, table, KEY), table)[CLAMPED].tolist() == [4]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_encoding_leaves_its_input_alone_whatever_its_type(dtype: type[np.floating]) -> None:
    values = np.array([1.5, -9.0, 0.25], dtype)
    before = values.copy()
    assert encoded(Segment("x", 3, 32, 4.0, 8.0), values).tolist() == [6, -32, 1]
    assert (values == before).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_refused_and_names_the_site(bad: float) -> None:
    values = np.zeros(100_000)
    values[99_999] = bad
    with pytest.raises(BadInput, match=r"^site-7: encode: segment x holds NaN or infinity$"):
        encode("site-7", {"x": values}, (Segment("x", 100_000, 32, 1.0, 1.0), COUNT), KEY)


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1), ()])
def test_a_value_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="shape"):
        encode("site", {"x": np.zeros(shape)}, (Segment("x", 3, 32, 1.0, 1.0), COUNT), KEY)


@pytest.mark.parametrize("names", [(), ("x", "y"), ("y",), ("x", CLAMPED)])
def test_values_that_are_not_those_of_the_table_are_refused_and_blame_no_data(names: tuple[str, ...]) -> None:
    with pytest.raises(Refused, match="has not done its local work"):
        encode("site", {name: np.zeros(1) for name in names}, (Segment("x", 1, 32, 1.0, 1.0), COUNT), KEY)


@pytest.mark.parametrize("length", [0, 7, 9])
def test_a_vector_of_another_length_is_a_mistake(length: int) -> None:
    with pytest.raises(ValueError, match="length"):
        list(elements(np.zeros(length, np.uint8), (Segment("x", 1, 32, 1.0, 1.0), COUNT)))


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "X"},
        {"name": ""},
        {"length": 0},
        {"bits": 8},
        {"bits": "32"},
        {"scale": 0.0},
        {"scale": math.nan},
        {"scale": math.inf},
        {"max_abs": -1.0},
        {"max_abs": 1e300},
    ],
)
def test_a_malformed_segment_cannot_be_made(changed: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        replace(COUNT, **changed)
