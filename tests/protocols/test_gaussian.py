"""The discrete Gaussian: every boundary to 192 bits, every rejection to its last bit, and the law against OpenDP's.

OpenDP's sampler (Canonne, Kamath, Steinke 2020) is exact and slow, and draws anew in every run. The chi-square tests
are at a significance of 1e-7: ours has fixed keys, and OpenDP's part raises a false alarm once in millions of runs.
"""

import hashlib
import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import opendp.prelude as opendp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, chi2_contingency

from protocols.gaussian import Table, discrete_gaussian, draw, make_table, tail
from protocols.masks import keystream

KEY = bytes(range(32))
SIGMAS = (2.0, 20.0, 1000.0, 50000.0)
SIGNIFICANCE = 1e-7
UNIT = Fraction(1, 2**192)


class Script:
    """A stream of bytes that gives what the test wrote, in pieces of the sizes that it expects to be asked for."""

    def __init__(self, pieces: Iterable[tuple[int, int]]) -> None:
        self.pieces = [value.to_bytes(size, "little") for value, size in pieces]

    def __call__(self, length: int) -> bytes:
        piece = self.pieces.pop(0)
        assert len(piece) == length
        return piece


def exponential(exponent: Fraction) -> Decimal:
    """exp(-exponent) to 150 digits."""
    return (-Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp()


def cumulative(sigma: float, table: Table) -> list[Decimal]:
    """The exact cumulative probabilities of the coarse magnitude, each weight an exponential of its own."""
    variance = Fraction(sigma) ** 2 / 4**table.shift
    weights = [exponential(x**2 / (2 * variance)) for x in range(int(18 * math.sqrt(variance)) + 20)]
    total = sum(weights)
    return [weight / total for weight in itertools.accumulate(weights)]


def worst_error(sigma: float, table: Table) -> Fraction:
    """How far a boundary is from the exact probability, and how much probability lies past the last one."""
    with localcontext() as context:
        context.prec = 150
        exact = cumulative(sigma, table)
        shown = zip(table.boundaries, exact, strict=False)
        errors = [abs(Fraction(boundary, 2**192) - Fraction(probability)) for boundary, probability in shown]
        return max(*errors, 1 - Fraction(exact[len(table.boundaries)]))


def law(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """The integers out to 12 sigma and their probabilities in binary64."""
    reach = math.ceil(12 * sigma) + 2
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x**2) / (2 * sigma**2))
    return x, weights / weights.sum()


def bins(sigma: float, count: int) -> np.ndarray:
    """Right ends of intervals of integers with an expectation of at least 200 each out of ``count``."""
    x, probabilities = law(sigma)
    steps = np.floor(np.cumsum(probabilities) * min(1000, count / 400)).astype(int)
    ends = x[np.flatnonzero(np.diff(steps))]
    return np.unique(ends)[:-1]


def observed(samples: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(ends, samples), minlength=len(ends) + 1)


def reference(sigma: float, count: int, stream: Script) -> list[int]:
    """One batch of SPEC 12.2, a sample at a time, in exact numbers; what is rejected is left out."""
    table, variance = make_table(sigma), Fraction(sigma) ** 2
    coarse = []
    for first in np.frombuffer(stream(8 * count), "<u8").tolist():
        tied = first in {boundary >> 128 for boundary in table.boundaries} and int.from_bytes(stream(16), "little")
        coarse.append(bisect_right(table.boundaries, first << 128 | tied))
    signs = np.frombuffer(stream(4 * count), "<u4").tolist()
    rejections = np.frombuffer(stream(4 * count), "<u4").tolist() if table.shift else [0] * count
    samples = []
    for x, sign, first in zip(coarse, signs, rejections, strict=True):
        low = sign % 2**table.shift
        magnitude = (x << table.shift) + low
        t = (magnitude**2 - (x << table.shift) ** 2) / (2 * variance)
        if Fraction(first, 2**32) < t:
            if t * (1 - t / 2) >= Fraction(first + 1, 2**32) + Fraction(1, 2**40):
                continue
            with localcontext() as context:
                context.prec = 150
                if Decimal(first << 160 | int.from_bytes(stream(20), "little")) < 2**192 * (1 - exponential(t)):
                    continue
        if magnitude or sign < 2**31:
            samples.append(-magnitude if sign >= 2**31 else magnitude)
    return samples


@pytest.mark.parametrize("sigma", [0.3, *SIGMAS, 511.999, 512.0, 2.0**39 + 1])
def test_every_boundary_is_exact_to_192_bits_and_nothing_is_left_past_the_last(sigma: float) -> None:
    assert worst_error(sigma, make_table(sigma)) < 2 * UNIT


def test_a_table_of_32_bits_would_be_noticed() -> None:
    table = make_table(20.0)
    rounded = replace(table, boundaries=tuple(boundary >> 160 << 160 for boundary in table.boundaries))
    assert worst_error(20.0, rounded) > 2**100 * UNIT


@pytest.mark.parametrize("terms", [60, 80])
def test_the_exponential_of_these_tests_lies_between_its_alternating_sums(terms: int) -> None:
    exponent = Fraction(1, 2 * 20**2)
    sums = list(itertools.accumulate((-exponent) ** k / math.factorial(k) for k in range(terms)))
    with localcontext() as context:
        context.prec = 150
        assert abs(Fraction(exponential(exponent)) - sums[-1]) <= abs(sums[-1] - sums[-2]) + Fraction(1, 10**149)


@pytest.mark.parametrize("sigma", [*SIGMAS, 2.0**39 + 1])
def test_a_draw_at_a_boundary_falls_above_it_and_the_one_before_below_it(sigma: float) -> None:
    table = make_table(sigma)
    for x, boundary in itertools.islice(enumerate(table.boundaries), 0, None, len(table.boundaries) // 30 or 1):
        for whole, expected in ((boundary, x + 1), (boundary - 1, x)):
            tie = [(whole % 2**128, 16)] if whole >> 128 in table.tops else []
            rest = [(0, 4), (0, 4)] if table.shift else [(0, 4)]
            script = Script([(whole >> 128, 8), *tie, *rest])
            if table.boundaries.count(boundary) == 1:
                assert draw(sigma, 1, script).tolist() == [expected << table.shift]
                assert script.pieces == []


@pytest.mark.parametrize("sigma", [700.0, 50000.0, 2.0**39 + 1])
@pytest.mark.parametrize("deviations", [0.001, 0.01, 0.5, 1, 3, 6])
@pytest.mark.parametrize("low_part", [1 / 128, 0.3, 1 - 1 / 128])
def test_a_sample_is_kept_from_the_exact_threshold_on(sigma: float, deviations: float, low_part: float) -> None:
    table, x = make_table(sigma), int(deviations * sigma) >> make_table(sigma).shift
    low = math.ceil(low_part * (2**table.shift - 1))
    first = int(table.tops[x]) - 1  # inside x, apart from its ends
    t = low * Fraction(2 * (x << table.shift) + low) / (2 * Fraction(sigma) ** 2)
    with localcontext() as context:
        context.prec = 150
        threshold = math.ceil(2**192 * (1 - exponential(t)))
    another = [(0, 8), (0, 4), (0, 4)]
    for whole, expected in ((threshold, (x << table.shift) + low), (threshold - 1, 0)):
        settled = Fraction(whole >> 160, 2**32) >= t
        further = [] if settled else [(whole % 2**160, 20)]
        candidate = [(first, 8), (low, 4), (whole >> 160, 4), *further]
        assert draw(sigma, 1, Script(candidate + another)).tolist() == [expected]


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.1, 60) | st.floats(500, 2000) | st.floats(2000, 2.0**39),
    st.binary(min_size=32, max_size=32),
    st.integers(1, 60),
)
def test_the_samples_are_those_of_the_exact_reference(sigma: float, key: bytes, count: int) -> None:
    expected, stream = [], keystream(key)
    while len(expected) < count:
        expected += reference(sigma, count - len(expected), stream)
    assert discrete_gaussian(sigma, count, key).tolist() == expected


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_law_is_that_of_the_formula(sigma: float) -> None:
    count, ends = 1_000_000, bins(sigma, 1_000_000)
    x, probabilities = law(sigma)
    expected = count * np.bincount(np.searchsorted(ends, x), probabilities)
    statistic = ((observed(discrete_gaussian(sigma, count, KEY), ends) - expected) ** 2 / expected).sum()
    assert expected.min() > 100
    assert chi2.sf(statistic, len(ends)) > SIGNIFICANCE


@pytest.mark.slow
@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_law_is_that_of_opendps_exact_sampler(sigma: float) -> None:
    count = 100_000
    opendp.enable_features("contrib")
    space = opendp.vector_domain(opendp.atom_domain(T=int)), opendp.l2_distance(T=float)
    theirs = np.array(opendp.m.make_gaussian(*space, scale=sigma)([0] * count))
    ends = bins(sigma, count)
    counts = [observed(samples, ends) for samples in (theirs, discrete_gaussian(sigma, count, KEY))]
    assert chi2_contingency(counts).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("sigma", [1000.0, 50000.0])
def test_the_low_bits_are_as_even_as_the_law_makes_them(sigma: float) -> None:
    count, cells = 1_000_000, 4 << make_table(sigma).shift
    residues = np.bincount(discrete_gaussian(sigma, count, KEY) % cells, minlength=cells)
    assert chi2.sf(((residues - count / cells) ** 2 / (count / cells)).sum(), cells - 1) > SIGNIFICANCE


def test_a_sigma_that_is_off_by_a_fiftieth_would_be_noticed() -> None:
    count, ends = 1_000_000, bins(1000.0, 1_000_000)
    x, probabilities = law(1000.0)
    expected = count * np.bincount(np.searchsorted(ends, x), probabilities)
    statistic = ((observed(discrete_gaussian(1020.0, count, KEY), ends) - expected) ** 2 / expected).sum()
    assert chi2.sf(statistic, len(ends)) < SIGNIFICANCE


@pytest.mark.parametrize(
    ("sigma", "first", "digest"),
    [
        (2.0, [2, 1, 3, -2, 1, -1], "408e62063444e09c10271ad1120035a3ca817d35ff32c33b58bba5aa4e6f4570"),
        (
            50000.0,
            [66262, 33815, 81586, -15143, -56355],
            "fd81cde22e2aebde181f2f04f3afd2d691c33f03dbc96f0f9cd8a35dfa6177e8",
        ),
        (2.0**39 + 1, [730042780758, 372026033175], "fe0dfdf20d1a8d132bfd15c376a339e35205b1da028d59fe85c6deca38e9e067"),
    ],
)
def test_a_key_gives_the_same_noise_for_ever(sigma: float, first: list[int], digest: str) -> None:
    samples = discrete_gaussian(sigma, 100_000, KEY)
    assert samples[: len(first)].tolist() == first
    assert hashlib.sha256(samples.astype("<i8").tobytes()).hexdigest() == digest


@pytest.mark.parametrize("length", [0, 1, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, 50_000])
def test_there_are_as_many_samples_as_asked_for(length: int) -> None:
    samples = discrete_gaussian(3.0, length, KEY)
    assert (samples.shape, samples.dtype) == ((length,), np.int64)


def test_another_key_gives_other_noise() -> None:
    assert (discrete_gaussian(1e6, 100, KEY) != discrete_gaussian(1e6, 100, bytes(32))).all()


@pytest.mark.parametrize("sigma", [0.3, 2.0, 20.0, 500.0])
@pytest.mark.parametrize("probability", [0.5, 1e-3, 1e-9])
def test_the_tail_holds_less_than_its_probability_and_half_the_bound_would_not_do(
    sigma: float, probability: float
) -> None:
    x, probabilities = law(sigma)
    bound = tail(sigma, probability)
    assert probabilities[abs(x) > bound].sum() <= probability
    if sigma > 1 and probability < 0.5:
        assert probabilities[abs(x) > bound // 2].sum() > probability


@pytest.mark.parametrize("sigma", [0.0, -1.0, 2.0**-7, 2.0**40, math.inf, math.nan])
def test_a_sigma_out_of_range_is_a_mistake(sigma: float) -> None:
    with pytest.raises(ValueError, match="another scale"):
        discrete_gaussian(sigma, 1, KEY)


@pytest.mark.parametrize("key", [b"", bytes(16), bytes(31), bytes(33)])
def test_a_key_of_another_length_is_a_mistake(key: bytes) -> None:
    with pytest.raises(ValueError, match="key"):
        discrete_gaussian(2.0, 1, key)


@pytest.mark.parametrize(("sigma", "probability"), [(0.0, 0.1), (math.inf, 0.1), (math.nan, 0.1), (1.0, 0), (1.0, 1)])
def test_a_tail_of_nothing_is_a_mistake(sigma: float, probability: float) -> None:
    with pytest.raises(ValueError, match="strictly between"):
        tail(sigma, probability)
