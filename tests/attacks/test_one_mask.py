"""Rule 1: a site never masks two different vectors under one context, however often it is asked (SPEC 8)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protocols import site as durable
from protocols.encoding import encode
from protocols.errors import Refused
from protocols.messages import AskMask, envelope
from tests.attacks.hostile import adverts, deal, make, mask, reopen, to_dealings
from tests.simulator import ROUNDING_KEY, Simulator


def test_a_retried_mask_gives_the_same_answer_and_the_same_vector(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    first, vector = mask(simulator, dealings, "a", values["a"]), simulator.masked("a", simulator.context.digest)
    for _ in range(3):
        reopen(simulator, "a")
        assert mask(simulator, dealings, "a", values["a"]).to_json() == first.to_json()
        assert np.array_equal(simulator.masked("a", simulator.context.digest), vector)


def test_a_retry_that_rounds_anew_still_gives_the_first_vector(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    first, vector = mask(simulator, dealings, "a", values["a"]), simulator.masked("a", simulator.context.digest)
    inbox = tuple(dealings.envelopes[dealer]["a"] for dealer in dealings.sites)
    request = envelope(simulator.coordinator, "ask/mask", dealings.roster.round, "a", AskMask(inbox))
    again = durable.mask(simulator.vaults["a"], simulator.consortium, request, values["a"], bytes(32))
    segments = simulator.context.segments
    rounded_anew = encode("a", values["a"], segments, bytes(32))
    assert not np.array_equal(rounded_anew, encode("a", values["a"], segments, ROUNDING_KEY))
    assert again == (first,)
    assert np.array_equal(simulator.masked("a", simulator.context.digest), vector)


def nudge(values: np.ndarray) -> np.ndarray:
    """Change one element by the smallest step there is."""
    changed = values.copy()
    changed[-1] = np.nextafter(changed[-1], np.inf)
    return changed


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("change", [nudge, np.zeros_like, lambda values: values.astype(np.float32)])
def test_a_second_vector_is_refused_and_leaves_no_trace(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], restart: bool
) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    first, vector = mask(simulator, dealings, "a", values["a"]), simulator.masked("a", simulator.context.digest)
    if restart:
        reopen(simulator, "a")
    other = {**values["a"], "update": change(np.asarray(values["a"]["update"]))}
    with pytest.raises(Refused, match="answered before, to another request"):
        mask(simulator, dealings, "a", other)
    assert np.array_equal(simulator.masked("a", simulator.context.digest), vector)
    assert mask(simulator, dealings, "a", values["a"]) == first


@pytest.mark.parametrize("restart", [False, True])
def test_the_same_vector_is_not_masked_over_another_set_of_sites(tmp_path: Path, restart: bool) -> None:
    """Two U2 under one context would give the difference of two sets of pair masks."""
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    mask(simulator, dealings, "a", values["a"], dealers="abcd")
    if restart:
        reopen(simulator, "a")
    with pytest.raises(Refused, match="answered before, to another request"):
        mask(simulator, dealings, "a", values["a"], dealers="abcde")


def test_a_refused_vector_does_not_use_the_mask_up(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    with pytest.raises(Exception, match="NaN"):
        mask(simulator, dealings, "a", {**values["a"], "update": np.full(5, np.nan)})
    assert not simulator.vaults["a"].masked_path(simulator.context.digest).exists()
    mask(simulator, dealings, "a", values["a"])


def differences(simulator: Simulator, one: np.ndarray, other: np.ndarray) -> int:
    """How many of the bytes differ."""
    assert one.shape == other.shape
    return int(np.count_nonzero(one != other))


def test_each_attempt_masks_the_same_vector_with_fresh_masks(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    vectors = []
    for attempt in range(1, 6):
        context = simulator.at(1, attempt)
        dealings = to_dealings(simulator, context)
        mask(simulator, dealings, "a", values["a"])
        vectors.append(simulator.masked("a", context.digest))
    size = len(vectors[0])
    for i, one in enumerate(vectors):
        for other in vectors[:i]:
            assert differences(simulator, one, other) > size * 0.9


def test_an_attempt_that_is_over_is_not_masked_again(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    mask(simulator, dealings, "a", values["a"])
    adverts(simulator, simulator.at(1, 2))
    for restart in (False, True):
        if restart:
            reopen(simulator, "a")
        with pytest.raises(Refused, match="over"):
            mask(simulator, dealings, "a", values["a"])
    assert not simulator.vaults["a"].masked_path(simulator.context.digest).exists()


def test_shares_are_dealt_once_for_one_roster(tmp_path: Path) -> None:
    """A second dealing of the same key under another polynomial would add up to more shares than the threshold."""
    from protocols.secagg_coordinator import open_roster

    simulator, _ = make(tmp_path)
    signed = adverts(simulator)
    whole = open_roster(simulator.context, signed.values())
    smaller = open_roster(simulator.context, [signed[site] for site in "abcd"])
    first = deal(simulator, whole)
    for site in "abcd":
        reopen(simulator, site)
        with pytest.raises(Refused, match="answered before, to another request"):
            deal(simulator, smaller, [site])
    assert deal(simulator, whole).envelopes == first.envelopes
