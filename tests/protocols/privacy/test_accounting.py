"""Events to epsilon: against dp-accounting used directly, Opacus, and the formula of the Gaussian mechanism."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.privacy.accounting import ORDERS, Event, calibrate, epsilon, realised, realised_epsilon
from protocols.privacy.clipping import Noised, noise_multiplier, sensitivity
from protocols.privacy.noise import carried, divergence, share

DELTA = 1e-5
EVENTS = st.lists(
    st.builds(
        Event,
        st.floats(0.5, 50),
        st.sampled_from((1.0, 0.5, 0.01)),
        st.integers(1, 20),
        st.sampled_from((0.0, 1e-12, 1e-6)),
    ),
    min_size=1,
    max_size=3,
)


def by_formula(noise_multiplier: float, count: int, delta: float) -> float:
    """The Gaussian mechanism by hand (Canonne, Kamath, Steinke 2020, proposition 12)."""
    divergences = [(order, count * order / (2 * noise_multiplier**2)) for order in ORDERS]
    return min(
        one + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1) for order, one in divergences
    )


def directly(noise_multipliers: Sequence[float], delta: float) -> float:
    """Gaussian events through dp-accounting, with orders of its own."""
    accountant = RdpAccountant([*range(2, 200), 300, 500, 1000])
    for one in noise_multipliers:
        accountant.compose(GaussianDpEvent(one))
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(("noise_multiplier", "count"), [(0.7, 1), (5.0, 1), (20.0, 100), (400.0, 1)])
def test_the_gaussian_mechanism_costs_what_its_formula_says(noise_multiplier: float, count: int) -> None:
    expected = by_formula(noise_multiplier, count, 0.99 * DELTA)
    assert epsilon([Event(noise_multiplier, count=count)], DELTA) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("noise_multiplier", "rate", "steps"), [(1.1, 0.01, 1000), (0.8, 0.05, 200), (4.0, 0.2, 500)])
def test_dp_sgd_costs_what_opacus_says_and_never_less(noise_multiplier: float, rate: float, steps: int) -> None:
    from opacus.accountants import RDPAccountant as OpacusAccountant  # takes 5 s of a processor to import

    opacus = OpacusAccountant()
    opacus.history = [(noise_multiplier, rate, steps)]
    ours = epsilon([Event(noise_multiplier, rate, steps)], DELTA)
    theirs, same_orders = opacus.get_epsilon(DELTA), opacus.get_epsilon(DELTA, alphas=[float(one) for one in ORDERS])
    assert same_orders <= ours <= 1.02 * theirs


@pytest.mark.parametrize(("noise_multiplier", "rate", "steps"), [(1.1, 0.01, 100), (3.0, 1.0, 10)])
def test_the_tighter_privacy_loss_distribution_of_the_continuous_gaussian_gives_less(
    noise_multiplier: float, rate: float, steps: int
) -> None:
    tight = PLDAccountant()
    tight.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier)), steps)
    ours = epsilon([Event(noise_multiplier, rate, steps)], DELTA)
    assert tight.get_epsilon(DELTA) < ours < 2 * tight.get_epsilon(DELTA)


@settings(max_examples=10, deadline=None)
@given(EVENTS)
def test_events_cost_more_together_than_alone_and_less_than_their_sum(events: list[Event]) -> None:
    alone = [epsilon([event], DELTA) for event in events]
    together = epsilon(events, DELTA)
    assert max(alone) <= together <= sum(alone) * (1 + 1e-9)
    assert epsilon(list(reversed(events)), DELTA) == pytest.approx(together)


@settings(max_examples=10, deadline=None)
@given(EVENTS.filter(lambda events: events[0].sampling_rate < 1))
def test_more_noise_fewer_units_and_fewer_releases_never_cost_more(events: list[Event]) -> None:
    first, rest = events[0], events[1:]
    cost = epsilon(events, DELTA)
    noisier = Event(2 * first.noise_multiplier, first.sampling_rate, first.count, first.divergence)
    rarer = Event(first.noise_multiplier, first.sampling_rate / 2, first.count, first.divergence)
    exact = Event(first.noise_multiplier, first.sampling_rate, first.count)
    for better in (noisier, rarer, exact):
        assert epsilon([better, *rest], DELTA) <= cost


def test_releases_that_are_counted_cost_as_much_as_the_same_ones_listed() -> None:
    listed = epsilon([Event(5.0, 0.1, 1, 1e-9)] * 7, DELTA)
    assert epsilon([Event(5.0, 0.1, 7, 1e-9)], DELTA) == pytest.approx(listed)


def test_what_the_sum_of_shares_adds_is_charged_for_every_release() -> None:
    assert epsilon([Event(1.0, count=10, divergence=0.01)], DELTA) == pytest.approx(
        epsilon([Event(1.0, count=10)], DELTA) + 0.1, abs=0.02
    )


def test_nothing_costs_nothing() -> None:
    assert epsilon([], DELTA) == 0


@settings(max_examples=10, deadline=None)
@given(
    st.floats(0.05, 10), st.sampled_from((1e-3, 1e-5, 1e-9)), st.sampled_from((1.0, 0.02)), st.sampled_from((1, 100))
)
def test_a_calibrated_noise_keeps_to_epsilon_and_a_little_less_does_not(
    target: float, delta: float, rate: float, count: int
) -> None:
    noise = calibrate(target, delta, lambda noise: [Event(noise, rate, count)])
    assert epsilon([Event(noise, rate, count)], delta) <= target
    assert epsilon([Event(noise * (1 - 1e-3), rate, count)], delta) > target


def test_a_sigma_can_be_calibrated_over_segments_with_sensitivities_of_their_own() -> None:
    clip_step, metrics_step = sensitivity(1.0, 2.0**10, 1000), sensitivity(1.0, 1.0, 512)

    def events(factor: float) -> list[Event]:
        return [Event(factor * clip_step / clip_step, 0.05, 30), Event(factor * 100 / metrics_step, 1.0, 30)]

    factor = calibrate(4.0, DELTA, events)
    assert 3.9 < epsilon(events(factor), DELTA) <= 4.0


def test_no_survivor_set_of_six_sites_costs_more_than_planned() -> None:
    sites, threshold, colluding, rounds, length = 6, 4, 1, 3, 50
    scale, bound = 2.0**10, 1.0
    step = sensitivity(bound, scale, length)
    planned_sigma = step * calibrate(2.0, DELTA, lambda noise: [Event(noise, count=rounds, divergence=1e-9)])
    each = share(planned_sigma, threshold=threshold, colluding=colluding)
    planned = Event(
        noise_multiplier(
            bound, [Noised(length, scale, carried(each, threshold, threshold=threshold, colluding=colluding))]
        ),
        divergence=divergence(each, sites, length),
    )
    whole = epsilon([planned] * rounds, DELTA)
    assert whole <= 2.0
    seen = set()
    for size in range(threshold, sites + 1):
        for survivors in itertools.combinations(range(sites), size):
            ours = realised_epsilon([(planned, size)] * rounds, DELTA, threshold=threshold, colluding=colluding)
            worst = max(
                directly(
                    [math.sqrt(sum(each**2 for site in survivors if site not in bad)) / step] * rounds, 0.99 * DELTA
                )
                for bad in itertools.combinations(range(sites), colluding)
            )
            assert worst <= ours * (1 + 1e-9) <= whole * (1 + 2e-9)
            assert ours == pytest.approx(worst, rel=1e-3)
            seen.add((size, round(ours, 6)))
    assert len(seen) == sites - threshold + 1  # each further survivor makes it less


def test_survivors_are_counted_round_by_round() -> None:
    planned = Event(5.0)
    mixed = realised_epsilon([(planned, 3), (planned, 6)], DELTA, threshold=3, colluding=1)
    assert realised(planned, 6, threshold=3, colluding=1).noise_multiplier == pytest.approx(5 * math.sqrt(5 / 2))
    assert mixed == pytest.approx(directly([5.0, 5 * math.sqrt(5 / 2)], 0.99 * DELTA), rel=1e-3)


@pytest.mark.parametrize("survivors", [0, 2])
def test_fewer_survivors_than_the_threshold_are_a_mistake(survivors: int) -> None:
    with pytest.raises(ValueError, match="no such sum"):
        realised(Event(1.0), survivors, threshold=3, colluding=1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ((0.0,), "noise multiplier"),
        ((-1.0,), "noise multiplier"),
        ((math.inf,), "noise multiplier"),
        ((math.nan,), "noise multiplier"),
        ((1.0, 0.0), "sampling rate"),
        ((1.0, 1.0001), "sampling rate"),
        ((1.0, math.nan), "sampling rate"),
        ((1.0, 1.0, 0), "count"),
        ((1.0, 1.0, 1, -1e-9), "divergence"),
        ((1.0, 1.0, 1, math.inf), "divergence"),
    ],
)
def test_an_event_out_of_range_cannot_be_made(fields: tuple[float, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=f"{reason} is .* must be"):
        Event(*fields)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_a_delta_out_of_range_is_a_mistake(delta: float) -> None:
    for use in (lambda: epsilon([], delta), lambda: calibrate(1.0, delta, lambda noise: [Event(noise)])):
        with pytest.raises(ValueError, match="delta is"):
            use()


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_an_epsilon_out_of_range_is_a_mistake(target: float) -> None:
    with pytest.raises(ValueError, match="epsilon is"):
        calibrate(target, DELTA, lambda noise: [Event(noise)])


def test_a_target_that_no_noise_keeps_to_is_refused() -> None:
    with pytest.raises(ValueError, match="no noise keeps to epsilon"):
        calibrate(0.5, DELTA, lambda noise: [Event(noise, divergence=1.0)])


def test_the_orders_are_integers_from_two_on() -> None:
    assert all(isinstance(order, int) for order in ORDERS)
    assert (np.diff(ORDERS) > 0).all()
    assert ORDERS[0] == 2
