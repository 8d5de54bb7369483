"""Whoever drops out, whenever: the decoded integers are the plain sum of the survivors, bit for bit (SPEC 4.6)."""

import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from protocols import secagg_coordinator as coordinator
from protocols.contexts import AttemptContext, threshold_refusal
from protocols.encoding import CLAMPED, Segment, check_headroom, integers
from protocols.errors import BelowThreshold, RingTooSmall
from tests.attacks.hostile import confirm, make, reopen, reveal, to_masked
from tests.simulator import STEPS, Behaviour, Outcome, Simulator, Values, gone_from, plain_sum


def assert_is_plain_sum(outcome: Outcome, values: dict[str, Values], context: AttemptContext) -> None:
    expected = plain_sum(values, outcome.survivors, context.segments)
    assert {name: one.tolist() for name, one in outcome.integers.items()} == expected


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> tuple[Simulator, dict[str, Values]]:
    return make(tmp_path_factory.mktemp("consortium"))


ROUNDS = iter(range(1, 1000))
KINDS = ("silent", "late")


@pytest.mark.slow
@pytest.mark.parametrize(("site", "step", "kind"), list(product("abcde", STEPS, KINDS)))
def test_any_one_site_of_five_drops_at_any_step(
    consortium: tuple[Simulator, dict[str, Values]], site: str, step: str, kind: str
) -> None:
    """Up to ``mask`` it is out of the sum; later its vector is in, whether or not it is heard of again."""
    simulator, values = consortium
    context = simulator.at(next(ROUNDS), 1)
    behaviour = gone_from(step) if kind == "silent" else Behaviour(late=frozenset({step}))
    outcome = simulator.run(values, {site: behaviour}, context)
    masked = STEPS.index(step) > STEPS.index("mask")
    assert outcome.survivors == tuple(other for other in "abcde" if masked or other != site)
    assert outcome.faults == ()
    assert_is_plain_sum(outcome, values, context)


@pytest.mark.parametrize("site", "abcde")
def test_a_site_that_drops_at_reveal_and_is_asked_later_gives_what_the_others_need(tmp_path: Path, site: str) -> None:
    """Two are gone at ``reveal``: below the threshold. One comes back, restarted: the same round is finished."""
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    other = "a" if site != "a" else "b"
    confirmations = [confirm(simulator, dealings, "abcde", one) for one in "abcde"]
    reveals = {one: reveal(simulator, dealings, confirmations, one) for one in "abcde" if one not in (site, other)}
    with pytest.raises(BelowThreshold, match="3 good reveals, 4 are needed"):
        coordinator.recover_masks(dealings, tuple("abcde"), reveals.values())
    reopen(simulator, site)
    reveals[site] = reveal(simulator, dealings, confirmations[1:], site)
    reopen(simulator, site)
    assert reveal(simulator, dealings, confirmations, site).body == reveals[site].body
    recovered = coordinator.recover_masks(dealings, tuple("abcde"), reveals.values())
    vectors = (simulator.masked(one, simulator.context.digest) for one in "abcde")
    total = coordinator.sum_vectors(simulator.context, vectors)
    coordinator.unmask(total, simulator.context, recovered)
    decoded = integers(total, simulator.context.segments)
    assert_is_plain_sum(Outcome(tuple("abcde"), decoded, ()), values, simulator.context)


@pytest.mark.parametrize("given", ["abcd", "bcde", "abde"])
def test_any_threshold_of_the_reveals_gives_the_same_sum(tmp_path: Path, given: str) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    confirmations = [confirm(simulator, dealings, "abcde", site) for site in "abcde"]
    reveals = [reveal(simulator, dealings, confirmations, site) for site in given]
    recovered = coordinator.recover_masks(dealings, tuple("abcde"), reveals)
    every = [reveal(simulator, dealings, confirmations, site) for site in "abcde"]
    assert set(recovered.masks) == set(coordinator.recover_masks(dealings, tuple("abcde"), every).masks)


def test_a_failed_attempt_is_followed_by_one_that_works(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    for attempt, step in enumerate(("advertise", "share", "mask"), 1):
        with pytest.raises(BelowThreshold):
            simulator.run(values, {"a": gone_from(step), "c": gone_from(step)}, simulator.at(1, attempt))
    context = simulator.at(1, 4)
    assert_is_plain_sum(simulator.run(values, {"b": gone_from("mask")}, context), values, context)


@st.composite
def tables(draw: st.DrawFn, sites: int) -> tuple[Segment, ...]:
    """Draw tables of up to four segments that have headroom, some only just."""
    table = []
    for number in range(draw(st.integers(1, 4))):
        bits = draw(st.sampled_from([16, 32, 64]))
        room = (2 ** (bits - 1) - 1) // sites - 2
        scale = 2.0 ** draw(st.integers(-4, min(40, bits - 8)))
        largest = min(room / scale, 2.0**50)
        max_abs = largest * draw(st.sampled_from([1.0, 0.5, 1e-3]))
        table.append(Segment(f"s{number}", draw(st.integers(1, 40)), bits, scale, max_abs))
    return (*table, Segment(CLAMPED, 1, 32, 1.0, 1000.0))


@st.composite
def behaviours(draw: st.DrawFn) -> Behaviour:
    steps = st.sampled_from(STEPS)
    return Behaviour(
        silent=frozenset(draw(st.sets(steps, max_size=1))) if draw(st.integers(0, 3)) == 0 else frozenset(),
        late=frozenset(draw(st.sets(steps, max_size=1))) if draw(st.integers(0, 3)) == 0 else frozenset(),
        repeats=draw(st.booleans()),
    )


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[int, int, int, tuple[Segment, ...], list[Behaviour]]:
    sites = draw(st.integers(3, 7))
    safe = [
        (threshold, colluding)
        for threshold in range(1, sites + 1)
        for colluding in range(1, sites)
        if threshold_refusal(sites, threshold, colluding) is None
    ]
    threshold, colluding = draw(st.sampled_from(safe))
    return sites, threshold, colluding, draw(tables(sites)), [draw(behaviours()) for _ in range(sites)]


@pytest.mark.slow
@hypothesis_settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scenarios(), st.integers(0, 2**32))
def test_the_decoded_integers_are_the_plain_sum_bit_for_bit(
    scenario: tuple[int, int, int, tuple[Segment, ...], list[Behaviour]], seed: int
) -> None:
    sites, threshold, colluding, table, how = scenario
    names = [f"site-{number}" for number in range(sites)]
    try:
        check_headroom(table, sites)
    except RingTooSmall:
        table = tuple(replace(segment, max_abs=segment.max_abs / 2) for segment in table)
    with tempfile.TemporaryDirectory() as folder:
        simulator = Simulator(Path(folder), names, threshold=threshold, colluding=colluding)
        context = replace(simulator.context, segments=table)
        values = simulator.random_values(np.random.default_rng(seed), table)
        behaving = dict(zip(names, how, strict=True))
        left = names
        expected = names
        for step in STEPS:
            left = [name for name in left if step not in behaving[name].silent | behaving[name].late]
            expected = left if step == "mask" else expected
            if len(left) < threshold:
                with pytest.raises(
                    BelowThreshold, match=f"coordinator: {step}: {len(left)} sites, {threshold} are needed"
                ):
                    simulator.run(values, behaving, context)
                break
        else:
            outcome = simulator.run(values, behaving, context)
            assert outcome.survivors == tuple(sorted(expected))
            assert_is_plain_sum(outcome, values, context)
        simulator.close()
