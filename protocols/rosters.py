"""With whom a site's data were summed, over all trainings: what sums of different rosters say together (SPEC 12.10).

One training's sums hold at least ``threshold`` sites, of which ``colluding`` may tell what they have added. Sums over
two rosters can be subtracted: the sites that differ, the added and the left out, are then in a sum of their own, which
must hold as many. So must every combination of more than two: three pairwise harmless rosters may leave one site over.
"""

from collections.abc import Collection, Iterable, Mapping
from itertools import combinations
from typing import NamedTuple

MOST_ROSTERS = 4
"""So many rosters of which none is a combination of others are combined; a further one is the steward's decision."""
_PRIME = 2**61 - 1
"""Ranks of 0/1 matrices of at most ``MOST_ROSTERS`` + 1 rows are the same modulo this as over the rationals."""


class Roster(NamedTuple):
    """Sites that were summed: their identity keys, and the training's threshold."""

    keys: frozenset[str]
    threshold: int


def set_apart(earlier: Collection[Roster], roster: Roster) -> frozenset[str] | None:
    """Find the fewest sites that sums over a new roster and the earlier ones set apart, if they are too few.

    Any sum over the new roster plus any multiples of the earlier sums is looked at; what the earlier ones say already
    without it is not. Sites are known by their keys, under whatever names.

    Args:
        earlier: the rosters that the same data were summed with.
        roster: what is asked for.

    Returns:
        The keys of fewer sites than the largest threshold among them; ``None`` where there are no such sites. No keys
        where there are too many different rosters to tell.
    """
    least = max(one.threshold for one in (*earlier, roster))
    basis = _independent([one.keys for one in earlier])
    if len(_independent([*basis, roster.keys])) == len(basis):
        return None  # its sum is a combination of those that are there
    if len(basis) > MOST_ROSTERS:
        return frozenset()
    fewest = min(_combined(basis, roster.keys), key=len, default=None)
    return fewest if fewest is not None and len(fewest) < least else None


def _combined(basis: list[frozenset[str]], roster: frozenset[str]) -> Iterable[frozenset[str]]:
    """The sites that are left in roster + y1 basis1 + y2 basis2 + ..., for every y but 0 that may leave the fewest.

    Sites in the same rosters share a fate. A y that leaves the fewest makes as many independent columns vanish as
    there are rosters: else it could be changed so that one more vanishes.
    """
    columns: dict[tuple[int, ...], set[str]] = {}
    for key in roster.union(*basis):
        columns.setdefault((*(int(key in one) for one in basis), int(key in roster)), set()).add(key)
    for chosen in combinations(columns, len(basis)):
        factors = _solve([list(column) for column in chosen])
        if factors is not None and any(factors):
            left = (keys for column, keys in columns.items() if _value(column, factors) != 0)
            yield frozenset().union(*left)


def _value(column: tuple[int, ...], factors: list[int]) -> int:
    return (sum(one * factor for one, factor in zip(column, factors, strict=False)) + column[-1]) % _PRIME


def _solve(rows: list[list[int]]) -> list[int] | None:
    """Factors y with row . y + last = 0 for each row, by elimination modulo the prime; ``None`` unless there is one."""
    size = len(rows)
    for place in range(size):
        pivot = next((row for row in rows[place:] if row[place] % _PRIME), None)
        if pivot is None:
            return None
        rows[rows.index(pivot, place)], rows[place] = rows[place], pivot
        inverse = pow(pivot[place], -1, _PRIME)
        pivot[:] = [one * inverse % _PRIME for one in pivot]
        for row in rows:
            if row is not pivot and row[place]:
                factor = row[place]
                row[:] = [(one - factor * other) % _PRIME for one, other in zip(row, pivot, strict=True)]
    return [-row[-1] % _PRIME for row in rows]


def _independent(rosters: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """The rosters, without those that are combinations of the ones before."""
    reduced: list[tuple[str, Mapping[str, int]]] = []
    found = []
    for roster in rosters:
        row = dict.fromkeys(roster, 1)
        for pivot, other in reduced:
            if factor := row.get(pivot, 0):
                for key, value in other.items():
                    row[key] = (row.get(key, 0) - factor * value) % _PRIME
        pivots = [key for key, value in row.items() if value]
        if pivots:
            inverse = pow(row[pivots[0]], -1, _PRIME)
            reduced.append((pivots[0], {key: value * inverse % _PRIME for key, value in row.items()}))
            found.append(roster)
    return found
