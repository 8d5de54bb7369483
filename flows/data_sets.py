"""A site's data sets: what plans may name, and to which budget each belongs (SPEC 6.8, 12.9).

A budget belongs to a group that the data steward names, never to a word of the plan. One folder under two names, also
through links or one inside the other, is one group; and once one data set has a budget, the steward has said of each
other that it has one, too, or none. Checked when ``site.toml`` is read and whenever a site is asked to join.
"""

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from flows.plan import Plan
from flows.policy import Policy
from protocols.errors import Refused

NO_BUDGET = "none"
"""What a data set says instead of a group, where others have budgets and it has none."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set as its steward describes it.

    Attributes:
        path: its folder; ``None`` for a task that finds its data itself.
        max_examples: the steward's public bound on its number of examples; a plan's must be at least that.
        group: the budget group that it names, ``none``, or ``None`` for its own name.
    """

    path: Path | None = None
    max_examples: int | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The data set that a plan names.

    Attributes:
        data_set: the steward's description.
        group: its budget group.
        names: of all data sets of the group.
    """

    data_set: DataSet
    group: str
    names: frozenset[str]


class DataSetsError(Exception):
    """Data sets that do not go together; one line that says which and what to write."""


def data_sets(data: Mapping[str, DataSet | Path]) -> dict[str, DataSet]:
    """Read what may be given as a bare folder as a data set."""
    return {name: DataSet(one) if isinstance(one, Path) else one for name, one in data.items()}


def budget_groups(data: Mapping[str, DataSet | Path], budgets: Collection[str]) -> dict[str, str]:
    """Find the group of each data set, which its charges and its rosters are entered under (SPEC 12.9).

    Args:
        data: each data set, or its bare folder, by name.
        budgets: the groups that have a budget.

    Raises:
        DataSetsError: two names of one folder have different groups, or one has a budget and another says nothing.
    """
    sets = data_sets(data)
    said = {name: one.group or name for name, one in sets.items()}
    if NO_BUDGET in budgets:
        raise DataSetsError(f'policy.budgets.{NO_BUDGET}: no group may be called "{NO_BUDGET}": rename it')
    first = {name: name for name in sets}  # of the names that are one folder: what those without a budget are under
    for one, other in combinations(sorted(sets), 2):
        if overlap(sets[one].path, sets[other].path):
            if said[one] != said[other]:
                raise DataSetsError(
                    f"data.{one} and data.{other} are the same data: write one budget group in both, as in "
                    f'budget = "{one}"'
                )
            met = {first[one], first[other]}
            first.update({name: min(met) for name in sets if first[name] in met})
    for name in sets:
        if said[name] == NO_BUDGET and name in budgets:
            raise DataSetsError(
                f'data.{name}: says budget = "{NO_BUDGET}", and policy.budgets.{name} is there: drop one'
            )
        if budgets and said[name] not in (NO_BUDGET, *budgets):
            raise DataSetsError(
                f"data.{name}: has no privacy budget, where others have one: name one of policy.budgets, or write "
                f'budget = "{NO_BUDGET}"'
            )
    groups = {name: first[name] if said[name] == NO_BUDGET else said[name] for name in sets}
    for name, group in groups.items():
        if groups.get(group, group) != group:
            raise DataSetsError(
                f"data.{name}: its budget group {group} is the name of a data set of another: rename it"
            )
    return groups


def overlap(one: Path | None, other: Path | None) -> bool:
    """Whether two folders are one, or one lies in the other: by their real paths, or by device and inode."""
    if one is None or other is None:
        return False
    one, other = Path(os.path.realpath(one)), Path(os.path.realpath(other))
    return any(
        outer == folder or _same(outer, folder)
        for outer, inner in ((one, other), (other, one))
        for folder in (inner, *inner.parents)
    )


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # not there, or not to be looked at
        return False


def choose(plan: Plan, site: str, data: Mapping[str, DataSet | Path], policy: Policy) -> Chosen:
    """Find the data set that a plan names, with its budget group; reads no data.

    Args:
        plan: names it.
        site: the site's name.
        data: each data set, or its bare folder, by name.
        policy: holds the budgets.

    Raises:
        Refused: there is none of this name, the plan is not one for it, or the site's data sets do not go together.
    """

    def refuse_unless(allowed: bool, reason: str) -> None:
        if not allowed:
            raise Refused(site, "join", reason)

    name, sets = plan.data, data_sets(data)
    refuse_unless(name in sets, f"the data set {name} is not one of this site's: use --data, or [data] in site.toml")
    found = sets[name]
    refuse_unless(
        (found.group or name) not in policy.budgets or plan.privacy.unit == "record",
        f"the data set {name} has a privacy budget here, which is counted in records: the plan must set "
        'privacy.unit = "record"',
    )
    bound, most = found.max_examples, plan.protection.max_examples
    refuse_unless(
        bound is None or most >= bound, f"the plan's protection.max_examples ({most}) must be at least {bound} here"
    )
    try:
        groups = budget_groups(data, policy.budgets)
    except DataSetsError as error:
        logging.getLogger(f"fedseal.site.{site}").error("%s", error)
        raise Refused(
            site, "join", "this site's data sets and privacy budgets do not go together: its log says why"
        ) from None
    names = frozenset(one for one, group in groups.items() if group == groups[name])
    return Chosen(found, groups[name], names)
