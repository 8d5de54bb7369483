"""What sums over different rosters set apart: found as exhaustively as a search over all combinations finds it."""

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.rosters import MOST_ROSTERS, Roster, set_apart


def of(sites: str, threshold: int = 3) -> Roster:
    return Roster(frozenset(sites), threshold)


@pytest.mark.parametrize(
    ("earlier", "roster", "apart"),
    [
        ([], "abcd", None),
        (["abcd"], "abcd", None),
        (["abcd"], "abc", "d"),
        (["abcd"], "abcde", "e"),
        (["abc"], "abd", "cd"),
        (["abcdef"], "abcd", "ef"),
        (["abcdef"], "abc", None),
        (["abcd"], "abef", None),
        (["abcd"], "efgh", None),
        (["abcd"], "defg", None),
        (["abc", "abd", "acd"], "bcd", "a"),
        (["abc", "abd"], "abc", None),
        (["abcdef", "abcghi"], "defghi", None),
        (["abcd", "efgh"], "abcdefgh", None),
        (["abcd", "efgh"], "abcdefghi", "i"),
        (["abcdefg", "abcdhij"], "efghijk", None),
        (["abcdefgh", "ijklmnop"], "abcdijkl", None),
    ],
)
def test_the_fewest_sites_that_two_or_more_rosters_set_apart(
    earlier: list[str], roster: str, apart: str | None
) -> None:
    found = set_apart([of(one) for one in earlier], of(roster))
    assert (found and len(found)) == (apart and len(apart))
    if apart is not None and len(earlier) == 1:
        assert found == frozenset(apart)


def test_three_rosters_of_which_no_two_are_close_may_leave_two_sites() -> None:
    """2 (a + b) = abcdef - cdefgh + abgh."""
    first, second, third = of("abcdef"), of("cdefgh"), of("abgh")
    for one, other in ((first, second), (first, third), (second, third)):
        assert set_apart([one], other) is None
    assert set_apart([first, second], third) in (frozenset("ab"), frozenset("gh"))


def test_the_largest_threshold_of_all_counts() -> None:
    assert set_apart([of("abcdefghi", 5)], of("abcde", 3)) == frozenset("fghi")
    assert set_apart([of("abcdefgh", 4)], of("abcd", 3)) is None
    assert set_apart([of("abcdefgh", 5)], of("ijk", 3)) is None
    assert set_apart([of("abcdefgh", 3)], of("abcde", 4)) == frozenset("fgh")


def test_more_rosters_than_can_be_combined_are_too_many() -> None:
    earlier = [of("".join(chr(65 + 10 * number + place) for place in range(10))) for number in range(MOST_ROSTERS + 1)]
    assert set_apart(earlier[:-1], earlier[-1]) is None
    new = of("".join(chr(1000 + place) for place in range(10)))
    assert set_apart(earlier, new) == frozenset()


ROSTERS = st.lists(st.sets(st.sampled_from("abcdef"), min_size=3), min_size=1, max_size=4)


@settings(max_examples=30)
@given(ROSTERS)
def test_it_finds_what_a_search_over_all_sets_of_sites_finds(rosters: list[set[str]]) -> None:
    *earlier, roster = rosters
    smallest = next(
        (
            size
            for size in range(1, 7)
            if any(can_be_left(earlier, roster, kept) for kept in combinations("abcdef", size))
        ),
        None,
    )
    found = set_apart([of("".join(one), 9) for one in earlier], of("".join(roster), 9))
    if smallest is None:
        assert found is None
    else:
        assert min(len(found or roster), len(roster)) == smallest


def can_be_left(earlier: list[set[str]], roster: set[str], kept: tuple[str, ...]) -> bool:
    """Whether roster + some combination of the earlier ones has only sites in ``kept``, and the roster is new."""
    rest = [site for site in "abcdef" if site not in kept]

    def rows(sites: list[str], of_rosters: list[set[str]]) -> list[list[Fraction]]:
        return [[Fraction(site in one) for site in sites] for one in of_rosters]

    everywhere = list("abcdef")
    if rank(rows(everywhere, [*earlier, roster])) == rank(rows(everywhere, earlier)):
        return False
    return rank(rows(rest, [*earlier, roster])) == rank(rows(rest, earlier))


def rank(rows: list[list[Fraction]]) -> int:
    rows, found = [list(row) for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((row for row in rows[found:] if row[column]), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        rows.insert(found, pivot)
        for row in rows[found + 1 :]:
            factor = row[column] / pivot[column]
            row[:] = [one - factor * other for one, other in zip(row, pivot, strict=True)]
        found += 1
    return found
