"""Noise shares: the sum's law against exact convolutions, the ring against real noise, and delta's split."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.encoding import CLAMPED, Segment, add, encode, integers, vector_bytes
from protocols.errors import RingTooSmall
from protocols.gaussian import TOTAL_VARIATION, discrete_gaussian, tail
from protocols.privacy import noise
from protocols.privacy.noise import (
    ACCOUNTED,
    MIN_SHARE,
    SAMPLER,
    TAIL,
    add_noise,
    carried,
    check_noised_headroom,
    divergence,
    share,
    tail_probability,
    total_variation_budget,
)

SIGMAS = st.floats(1e-3, 1e9)
PARTIES = st.integers(1, 20).flatmap(lambda colluding: st.tuples(st.integers(colluding + 2, 60), st.just(colluding)))


def weights(variance: Fraction, reach: int) -> list[Decimal]:
    """The discrete Gaussian's probabilities from -reach to reach."""
    raw = [(-Decimal(x * x) / (2 * Decimal(float(variance)))).exp() for x in range(-reach, reach + 1)]
    total = sum(raw)
    return [one / total for one in raw]


def convolved(sigma: Fraction, count: int, reach: int) -> list[Decimal]:
    """The law of a sum of ``count`` samples, from -reach to reach."""
    one = weights(sigma**2, reach)
    total = one
    for _ in range(count - 1):
        total = [
            sum(one[k] * total[x - k + reach] for k in range(max(0, x - reach), min(2 * reach, x + reach) + 1))
            for x in range(2 * reach + 1)
        ]
    return total


@given(SIGMAS, PARTIES)
def test_the_fewest_honest_sites_carry_the_planned_noise_and_each_two_steps(
    sigma: float, parties: tuple[int, int]
) -> None:
    threshold, colluding = parties
    each = share(sigma, threshold=threshold, colluding=colluding)
    assert each >= MIN_SHARE
    assert Fraction(each) ** 2 * (threshold - colluding) >= Fraction(sigma) ** 2
    assert carried(each, threshold, threshold=threshold, colluding=colluding) >= sigma
    assert each <= max(MIN_SHARE, sigma / math.sqrt(threshold - colluding) * (1 + 1e-12))


@given(st.floats(2, 1e9), PARTIES, st.integers(0, 40))
def test_what_survivors_carry_is_never_overstated(each: float, parties: tuple[int, int], more: int) -> None:
    threshold, colluding = parties
    total = carried(each, threshold + more, threshold=threshold, colluding=colluding)
    assert Fraction(total) ** 2 <= (threshold + more - colluding) * Fraction(each) ** 2
    assert total == pytest.approx(each * math.sqrt(threshold + more - colluding), rel=1e-12)


@pytest.mark.parametrize(
    ("sigma", "count"), [(Fraction(1), 2), (Fraction(2), 2), (Fraction(2), 3), (Fraction(9, 4), 4)]
)
def test_no_probability_of_a_sum_is_further_from_the_discrete_gaussians_than_the_bound(
    sigma: Fraction, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "MIN_SHARE", 1.0)  # at 1 the difference is large enough to be seen well
    reach = int(16 * sigma * count)
    with localcontext() as context:
        context.prec = 60
        single, total = weights(count * sigma**2, reach), convolved(sigma, count, reach)
        middle = range(reach - int(4 * sigma), reach + int(4 * sigma) + 1)
        ratios = [abs((total[x] / single[x]).ln()) for x in middle]
    beta = divergence(float(sigma), count, 1) / 3
    assert 0 < max(ratios) <= beta
    assert count > 2 or float(max(ratios)) > beta / 3  # the bound is no idle one


@pytest.mark.parametrize("order", [2, 3, 8])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("rate", [Fraction(1), Fraction(1, 10)])
def test_the_divergence_of_a_shifted_sum_stays_below_the_gaussians_and_what_is_added(
    order: int, shift: int, rate: Fraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "MIN_SHARE", 1.0)
    sigma, count, reach = Fraction(1), 2, 60
    with localcontext() as context:
        context.prec = 60
        law = convolved(sigma, count, 2 * reach)[reach : 3 * reach + 1]
        moved = convolved(sigma, count, 2 * reach)[reach - shift : 3 * reach + 1 - shift]
        part = Decimal(rate.numerator) / rate.denominator
        mixed = [part * one + (1 - part) * other for one, other in zip(moved, law, strict=True)]
        divergences = [
            sum((p**order) * q ** (1 - order) for p, q in zip(left, right, strict=True)).ln() / (order - 1)
            for left, right in ((mixed, law), (law, mixed))
        ]
        exponent = Decimal(shift * shift) / (2 * count * Decimal(float(sigma)) ** 2)
        chances = [math.comb(order, k) * rate**k * (1 - rate) ** (order - k) for k in range(order + 1)]
        terms = [
            Decimal(chance.numerator) / chance.denominator * ((k * k - k) * exponent).exp()
            for k, chance in enumerate(chances)
        ]
        continuous = sum(terms).ln() / (order - 1)
    assert max(divergences) <= float(continuous) + divergence(float(sigma), count, 1)


def test_at_two_steps_a_million_coordinates_add_next_to_nothing() -> None:
    assert 0 < divergence(2.0, 100, 10**6) < 2e-10
    assert divergence(3.0, 100, 10**6) < 1e-30
    assert divergence(2.0, 1, 10**6) == 0


@given(st.integers(2, 50), st.floats(2, 300), st.sampled_from((16, 32)), st.floats(0.5, 100))
def test_a_plan_with_headroom_has_none_for_a_larger_range(sites: int, each: float, bits: int, scale: float) -> None:
    probability = 1e-12
    room = (2 ** (bits - 1) - 1) // sites - 1 - tail(each, probability)
    if room < scale:
        return
    fitting, larger = (Segment("x", 5, bits, scale, (room + more) / scale * (1 - 1e-12)) for more in (0, 2))
    check_noised_headroom(fitting, each, sites, probability)
    with pytest.raises(
        RingTooSmall, match=rf"{sites} sites x .* of noise\) = {sites * (larger.bound + tail(each, 1e-12))}"
    ):
        check_noised_headroom(larger, each, sites, probability)


def test_a_noised_sum_of_extreme_values_is_the_integer_sum_bit_for_bit() -> None:
    sites, each, length = 5, 400.0, 100_000
    probability = tail_probability(1e-6, sites * length)
    room = (2**15 - 1) // sites - 1 - tail(each, probability)
    table = (Segment("x", length, 16, 1.0, float(room)), Segment(CLAMPED, 1, 16, 1.0, 10.0))
    check_noised_headroom(table[0], each, sites, probability)
    total, expected = np.zeros(vector_bytes(table), np.uint8), np.zeros(length, np.int64)
    for number in range(sites):
        vector = encode("site", {"x": np.full(length, float(room))}, table, bytes(32))
        add_noise(vector, table, {"x": each, CLAMPED: 2.0}, lambda size, number=number: bytes([number]) * size)
        add(total, vector, table)
        expected += room + discrete_gaussian(each, length, bytes([number]) * 32)
    assert integers(total, table)["x"].tolist() == expected.tolist()


def test_every_segment_is_noised_with_its_own_sigma_and_a_key_of_its_own() -> None:
    table = tuple(Segment(name, 20_000, bits, 1.0, 1.0) for name, bits in (("a", 16), ("b", 32), ("c", 64)))
    shares, keys = {"a": 20.0, "b": 20.0, "c": 1e6}, iter([b"1" * 32, b"2" * 32, b"3" * 32])
    vector = np.zeros(vector_bytes(table), np.uint8)
    add_noise(vector, table, shares, lambda size: next(keys)[:size])
    noises = integers(vector, table)
    for name, each in shares.items():
        assert noises[name].std() == pytest.approx(each, rel=0.05)
    assert abs(np.corrcoef(noises["a"], noises["b"])[0, 1]) < 0.05


@pytest.mark.parametrize("shares", [{}, {"x": 2.0}, {"x": 2.0, CLAMPED: 2.0, "y": 2.0}])
def test_a_segment_without_a_share_of_noise_is_a_mistake(shares: dict[str, float]) -> None:
    table = (Segment("x", 4, 16, 1.0, 1.0), Segment(CLAMPED, 1, 16, 1.0, 4.0))
    with pytest.raises(ValueError, match="shares of noise"):
        add_noise(np.zeros(vector_bytes(table), np.uint8), table, shares)


def test_the_parts_of_delta_make_the_whole_and_one_percent_is_for_what_is_not_the_accountants() -> None:
    assert Fraction("0.99") + Fraction("0.005") + Fraction("0.005") == 1
    assert (ACCOUNTED, SAMPLER, TAIL) == (0.99, 0.005, 0.005)


@given(st.floats(1e-12, 0.1), st.integers(1, 10**15))
def test_all_tails_together_have_half_a_percent_of_delta(delta: float, samples: int) -> None:
    assert tail_probability(delta, samples) * samples <= 0.005 * delta * (1 + 1e-12)


@given(st.floats(0.01, 20), st.floats(1e-12, 0.1), st.integers(1, 10**12))
def test_the_sampler_is_good_enough_for_any_training(epsilon: float, delta: float, samples: int) -> None:
    budget = total_variation_budget(epsilon, delta, samples)
    assert TOTAL_VARIATION <= budget
    assert (1 + math.exp(epsilon)) * samples * budget == pytest.approx(0.005 * delta)


def test_a_promise_that_the_sampler_cannot_keep_is_refused() -> None:
    with pytest.raises(ValueError, match="not exact enough"):
        total_variation_budget(120.0, 1e-6, 10**9)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_no_noise_is_a_mistake(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        share(sigma, threshold=3, colluding=1)


@pytest.mark.parametrize("each", [0.0, 1.99, math.inf, math.nan])
def test_a_share_below_two_steps_is_a_mistake(each: float) -> None:
    table = (Segment("x", 4, 16, 1.0, 1.0),)
    for use in (lambda: divergence(each, 3, 1), lambda: add_noise(np.zeros(8, np.uint8), table, {"x": each})):
        with pytest.raises(ValueError, match="finer scale"):
            use()


@pytest.mark.parametrize(
    ("survivors", "threshold", "colluding", "reason"),
    [(2, 3, 1, "no such sum"), (3, 3, 2, "raise the threshold"), (3, 3, -1, "raise the threshold")],
)
def test_survivors_that_make_no_sum_are_a_mistake(survivors: int, threshold: int, colluding: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        carried(2.0, survivors, threshold=threshold, colluding=colluding)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_a_delta_out_of_range_is_a_mistake(delta: float) -> None:
    for use in (lambda: tail_probability(delta, 1), lambda: total_variation_budget(1.0, delta, 1)):
        with pytest.raises(ValueError, match="delta is"):
            use()


@pytest.mark.parametrize(("epsilon", "samples"), [(0.0, 1), (math.inf, 1), (math.nan, 1), (1.0, 0)])
def test_a_budget_for_nothing_is_a_mistake(epsilon: float, samples: int) -> None:
    with pytest.raises(ValueError, match=r"epsilon is|at least 1"):
        total_variation_budget(epsilon, 1e-6, samples)
