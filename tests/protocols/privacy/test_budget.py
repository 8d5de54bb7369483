"""Budgets: composed, not added up; one for all names and versions of the same data."""

import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import Refused
from protocols.ledger import Budget, Owner, related
from protocols.privacy.accounting import ORDERS, Event, epsilon
from protocols.privacy.budget import affordable, check_budget

DELTA = 1e-5
OWNERS = st.sets(st.builds(Owner, st.sampled_from("abcde"), st.sampled_from("12345")), max_size=12)


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


def test_neither_a_new_name_nor_changed_rows_make_a_fresh_budget_and_other_data_have_their_own() -> None:
    first, grown, renamed, other = Owner("heart", "a"), Owner("heart", "b"), Owner("new", "b"), Owner("lung", "c")
    charged = [first, grown, renamed, other]
    assert related(Owner("new", "d"), charged) == {first, grown, renamed}
    assert related(Owner("third", "a"), charged) == {first, grown, renamed}
    assert related(other, charged) == {other}
    assert related(Owner("fresh", "e"), charged) == set()


@given(OWNERS, OWNERS)
def test_owners_that_are_related_stay_so_and_never_meet_those_that_are_not(
    charged: set[Owner], asked: set[Owner]
) -> None:
    for owner in asked:
        mine = related(owner, charged)
        rest = charged - mine
        assert not {one.data_set for one in (*mine, owner)} & {one.data_set for one in rest}
        assert not {one.fingerprint for one in (*mine, owner)} & {one.fingerprint for one in rest}
        for one in mine:
            assert related(one, charged) <= mine
