"""Rule 3: one survivor set a context; once confirmed a round is finished, never restarted (SPEC 8)."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from protocols import secagg_site
from protocols.contexts import threshold_refusal
from protocols.errors import BelowThreshold, Refused
from protocols.messages import AskAdvertise
from tests.attacks.hostile import (
    adverts,
    confirm,
    confirm_and_reveal,
    make,
    readable,
    reopen,
    reveal,
    to_dealings,
    to_masked,
)
from tests.simulator import Simulator


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("other", ["abce", "abcde", "acde"])
def test_a_second_survivor_set_is_refused(tmp_path: Path, other: str, restart: bool) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    first = confirm(simulator, dealings, "abcd", "a")
    if restart:
        reopen(simulator, "a")
    with pytest.raises(Refused, match="answered before, to another request"):
        confirm(simulator, dealings, other, "a")
    assert confirm(simulator, dealings, "abcd", "a") == first


@pytest.mark.parametrize(
    ("survivors", "reason"),
    [
        ("abc", "3 survivors, 4 are needed"),
        ("", "lacks this site"),
        ("bcde", "lacks this site"),
        ("aabcd", "names a site twice"),
        ("abcdd", "names a site twice"),
        (("a", "b", "c", "stranger"), "did not share"),
    ],
)
def test_a_bad_survivor_set_is_refused_and_does_not_bind(tmp_path: Path, survivors: str, reason: str) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    with pytest.raises(Refused, match=reason):
        confirm(simulator, dealings, survivors, "a")
    assert confirm(simulator, dealings, "abcde", "a")


def test_a_site_outside_u2_cannot_survive(tmp_path: Path) -> None:
    from tests.attacks.hostile import mask

    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    mask(simulator, dealings, "a", values["a"], dealers="abcd")
    with pytest.raises(Refused, match="did not share"):
        confirm(simulator, dealings, "abce", "a")


def test_a_site_that_has_not_masked_does_not_confirm(tmp_path: Path) -> None:
    simulator, _ = make(tmp_path)
    dealings = to_dealings(simulator)
    with pytest.raises(Refused, match="does not follow"):
        confirm(simulator, dealings, "abcde", "a")


def ask_to_join(simulator: Simulator, site: str, **changes: object) -> None:
    context = replace(simulator.context, **changes)
    simulator.ask(site, "advertise", context.digest, AskAdvertise(context))


@pytest.mark.parametrize("restart", [False, True])
def test_a_confirmed_round_is_not_attempted_again(tmp_path: Path, restart: bool) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    confirm(simulator, dealings, "abcd", "a")
    if restart:
        reopen(simulator, "a")
    for attempt in (2, 3, 1000):
        with pytest.raises(Refused, match="round 1 was confirmed in attempt 1"):
            ask_to_join(simulator, "a", attempt=attempt)
        with pytest.raises(Refused, match="round 1 was confirmed in attempt 1"):
            ask_to_join(simulator, "a", attempt=attempt, model="ab" * 32)
    ask_to_join(simulator, "e", attempt=2)  # e has not confirmed: it may


@pytest.mark.parametrize("restart", [False, True])
def test_no_other_sum_is_made_from_the_same_model_under_another_round_number(tmp_path: Path, restart: bool) -> None:
    simulator, values = make(tmp_path)
    confirm_and_reveal(simulator, to_masked(simulator, values), "abcde")
    if restart:
        reopen(simulator, "a")
    for number in (2, 3, 99):
        with pytest.raises(Refused, match="no other sum is made from it"):
            ask_to_join(simulator, "a", round=number)
    ask_to_join(simulator, "a", round=2, model="ab" * 32)


def test_the_model_of_an_older_round_stays_barred(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    confirm_and_reveal(simulator, to_masked(simulator, values), "abcde")
    confirm_and_reveal(simulator, to_masked(simulator, values, simulator.at(2, 1)), "abcde")
    with pytest.raises(Refused, match="round 1 was confirmed on this incoming model"):
        ask_to_join(simulator, "a", round=3)


@pytest.mark.parametrize("restart", [False, True])
def test_an_older_attempt_or_round_is_refused_after_a_newer(tmp_path: Path, restart: bool) -> None:
    simulator, _ = make(tmp_path)
    adverts(simulator, simulator.at(2, 3), ["a"])
    if restart:
        reopen(simulator, "a")
    for number, attempt in [(2, 2), (2, 1), (1, 1), (1, 9), (2, 3)]:
        with pytest.raises(Refused, match=r"attempt 2\.3 is not older"):
            ask_to_join(simulator, "a", round=number, attempt=attempt, model="cd" * 32)


def test_a_confirmed_round_is_finished_for_as_long_as_it_takes(tmp_path: Path) -> None:
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    confirmations = [confirm(simulator, dealings, "abcde", site) for site in "abcde"]
    first = reveal(simulator, dealings, confirmations, "a")
    for count in (4, 5):
        reopen(simulator, "a")
        with pytest.raises(Refused):
            ask_to_join(simulator, "a", attempt=count)
        assert reveal(simulator, dealings, confirmations[:count], "a").body == first.body


def test_an_attempt_confirmed_by_others_cannot_be_summed_twice_over_the_one_that_was_left_out(tmp_path: Path) -> None:
    """Four confirm attempt 1 and give its sum; e, which was not asked, joins attempt 2: nobody else does."""
    simulator, values = make(tmp_path)
    dealings = to_masked(simulator, values)
    for site in "abcd":
        confirm(simulator, dealings, "abcde", site)
    joined = adverts(simulator, simulator.at(1, 2), ["e"])
    for site in "abcd":
        with pytest.raises(Refused):
            adverts(simulator, simulator.at(1, 2), [site])
    from protocols.secagg_coordinator import open_roster

    with pytest.raises(BelowThreshold):
        open_roster(simulator.at(1, 2), joined.values())


def test_the_threshold_rule_bars_exactly_what_two_survivor_sets_or_one_input_would_need() -> None:
    """All n <= 9: safe means that no two sets of honest confirmers are disjoint, and none is a single site."""
    for sites in range(1, 10):
        for colluding in range(0, sites + 2):
            honest = range(max(0, sites - colluding))
            for threshold in range(0, sites + 2):
                need = max(0, threshold - colluding)
                groups = [set(group) for group in combinations(honest, need)] if need else [set()]
                disjoint = any(not one & other for one in groups for other in groups)
                safe = colluding >= 1 and 0 < threshold <= sites and need >= 2 and not disjoint
                # With more colluders than honest sites no set can be formed: nothing to gain, nothing to run.
                formable = len(honest) >= need
                refused = threshold_refusal(sites, threshold, colluding) is not None
                assert refused == (not (safe and formable)), (sites, threshold, colluding)


HALVES = ("a", "b", "c", "d", "e", "f")


def two_sums(simulator: Simulator, values: dict) -> set[tuple[str, ...]]:
    """Ask each half of the sites to confirm another survivor set, and unmask as well as one can."""
    dealings = to_masked(simulator, values)
    reveals = []
    for half, survivors in (("abc", "abcd"), ("def", "bcdef")):
        inside = [site for site in half if site in survivors]
        confirmations = [confirm(simulator, dealings, survivors, site) for site in inside]
        reveals += [reveal(simulator, dealings, confirmations, site) for site in inside]
    vectors = {site: simulator.masked(site, simulator.context.digest) for site in HALVES}
    return readable(simulator, values, dealings, vectors, reveals)


def test_half_the_sites_as_threshold_is_refused(tmp_path: Path) -> None:
    simulator, values = make(tmp_path, HALVES, threshold=3)
    with pytest.raises(Refused, match=r"2 x threshold \(3\) must exceed sites \(6\) \+ colluding \(1\)"):
        two_sums(simulator, values)


def test_without_that_refusal_two_disjoint_halves_would_give_single_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack is real: with the rule switched off, both shares of sites come out and every input is read."""
    monkeypatch.setattr(secagg_site, "check_context", lambda *_: None)
    simulator, values = make(tmp_path, HALVES, threshold=3)
    read = two_sums(simulator, values)
    assert any(len(sites) == 1 for sites in read)


def test_with_a_safe_threshold_the_same_coordinator_reads_nothing(tmp_path: Path) -> None:
    simulator, values = make(tmp_path, HALVES, threshold=4)
    dealings = to_masked(simulator, values)
    reveals = []
    for half, survivors in (("abc", "abcd"), ("def", "bcdef")):
        confirmations = [confirm(simulator, dealings, survivors, site) for site in half]
        for site in half:
            with pytest.raises(BelowThreshold):
                reveals.append(reveal(simulator, dealings, confirmations, site))
    vectors = {site: simulator.masked(site, simulator.context.digest) for site in HALVES}
    assert readable(simulator, values, dealings, vectors, reveals) == set()
