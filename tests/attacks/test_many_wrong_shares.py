"""A dealer that lies in one share of many, where trying sets of shares would not end (finding 9)."""

import pytest

from protocols import shamir
from protocols.secagg_coordinator import _candidates

THRESHOLD = 11


@pytest.mark.parametrize("holders", [20, 21])
@pytest.mark.parametrize("wrong", [(1,), (1, 2, 3, 4), (1, 8, 9, 10, 20)])
def test_the_dealer_s_secret_is_found(holders: int, wrong: tuple[int, ...]) -> None:
    """One wrong share, the first by name, is in every set of eleven that is tried among the first 10,000."""
    secret = bytes(range(32))
    dealt = dict(enumerate(shamir.split(secret, threshold=THRESHOLD, holders=holders), start=1))
    for point in wrong:
        dealt[point] = bytes([point] * 32 + [0])
    found = list(_candidates(dealt, THRESHOLD))
    assert found[0] != secret and secret in found and len(found) < 30


@pytest.mark.parametrize("superfluous", [0, 1, 2, 3, 4])
def test_few_sites_try_every_set_so_that_any_threshold_of_good_shares_is_enough(superfluous: int) -> None:
    secret, holders = bytes(range(32)), 4 + superfluous
    dealt = dict(enumerate(shamir.split(secret, threshold=4, holders=holders), start=1))
    for point in range(1, superfluous + 1):
        dealt[point] = bytes([point] * 32 + [0])
    assert secret in list(_candidates(dealt, 4))
