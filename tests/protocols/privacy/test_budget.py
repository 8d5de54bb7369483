"""Budgets: composed, not added up; one for all names and versions of the same data."""

import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import Refused
from protocols.ledger import Budget, related
from protocols.privacy.accounting import ORDERS, Event, epsilon
from protocols.privacy.budget import affordable, check_budget

DELTA = 1e-5
CONTENTS = st.dictionaries(st.sampled_from("abcde"), st.sets(st.sampled_from("12345")))


def by_dp_accounting(count: int) -> float:
    """So many Gaussian sums of noise multiplier 5."""
    return RdpAccountant(ORDERS).compose(GaussianDpEvent(5.0), count).get_epsilon(0.99 * DELTA)


def test_sums_are_allowed_as_long_as_they_cost_together_what_the_budget_has() -> None:
    budget, charged = Budget(3.0, DELTA), []
    while by_dp_accounting(len(charged) + 1) <= 3.0:
        assert check_budget("north", "heart", charged, [Event(5.0)], budget) == pytest.approx(
            by_dp_accounting(len(charged) + 1)
        )
        charged.append(Event(5.0))
    assert len(charged) > 3.0 / epsilon([Event(5.0)], DELTA) + 1  # more than if epsilons were added up
    refused = (
        r"^north: budget: data set heart has an epsilon of 3 at delta 1e-05, of which 2\.\d+ is .* would be 3\.\d+$"
    )
    with pytest.raises(Refused, match=refused):
        check_budget("north", "heart", charged, [Event(5.0)], budget)


def test_a_budget_is_not_spent_by_what_it_refuses_and_more_noise_may_still_fit() -> None:
    budget = Budget(1.3 * epsilon([Event(5.0)], DELTA), DELTA)
    with pytest.raises(Refused):
        check_budget("north", "heart", [Event(5.0)], [Event(5.0)], budget)
    assert check_budget("north", "heart", [Event(5.0)], [Event(10.0)], budget) <= budget.epsilon


@pytest.mark.parametrize("allowed", [0.0, -1.0, float("nan")])
def test_a_budget_of_nothing_allows_no_sum(allowed: float) -> None:
    with pytest.raises(Refused):
        check_budget("north", "heart", [], [Event(5.0)], Budget(allowed, DELTA))


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 20), st.integers(0, 5), st.floats(1, 30), st.integers(1, 3))
def test_exactly_as_many_sums_as_are_affordable_are_allowed(
    allowed: float, charged: int, noise: float, attempts: int
) -> None:
    budget, before, wanted = Budget(allowed, DELTA), [Event(20.0, count=charged + 1)], Event(noise, count=attempts)
    times = affordable(before, [wanted], budget)
    if times:
        check_budget("north", "heart", before, [wanted] * times, budget)
    with pytest.raises(Refused):
        check_budget("north", "heart", before, [wanted] * (times + 1), budget)


def test_what_costs_next_to_nothing_is_affordable_up_to_the_largest_count() -> None:
    assert affordable([], [Event(1e9)], Budget(1.0, DELTA)) == 2**31 - 1


def test_nothing_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="at least one event"):
        affordable([], [], Budget(1.0, DELTA))


def test_groups_with_the_same_content_share_a_budget_and_others_have_their_own() -> None:
    contents = {"heart": {"1"}, "grown": {"1", "2"}, "renamed": {"2", "3"}, "lung": {"4"}}
    assert related({"heart"}, contents) == {"heart", "grown", "renamed"}
    assert related({"renamed"}, contents) == {"heart", "grown", "renamed"}
    assert related({"lung"}, contents) == {"lung"}
    assert related({"fresh"}, contents) == {"fresh"}
    assert related({"fresh", "heart"}, contents) == {"fresh", "heart", "grown", "renamed"}


@given(CONTENTS, st.sampled_from("abcde"))
def test_groups_that_are_related_stay_so_and_never_meet_those_that_are_not(
    contents: dict[str, set[str]], asked: str
) -> None:
    mine = related({asked}, contents)
    inside = {one for group in mine for one in contents.get(group, ())}
    assert not inside & {one for group in contents.keys() - mine for one in contents[group]}
    assert all(related({group}, contents) == mine for group in mine)
