"""Whether a task and a data set of this site fit each other, for the data steward's eyes alone (SPEC 6.12).

Joining reads no data, and what fails in local work is told to nobody outside (SPEC 1). What plan and data must agree on
is therefore checked beforehand, in the same workshop that local work is done in, and every reason is said in full.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.plan import Plan, make_plan
from flows.workshop import Checked, WorkFailed, Workshops

CHECK_S = 600.0
"""Seconds that one check may take."""
EPSILON = 8.0


@dataclass(frozen=True, slots=True)
class Fitting:
    """What was found of one task on one data set.

    Attributes:
        task: its import path.
        data: the data set's name.
        wrong: why it cannot be trained; empty where it can.
        wrong_private: why it cannot be trained with privacy for records, beside that.
        examples: how many there are of each part, as the site alone may know; empty where they were not read.
        odd: what can be trained with and is seldom meant.
    """

    task: str
    data: str
    wrong: tuple[str, ...]
    wrong_private: tuple[str, ...]
    examples: Mapping[str, int]
    odd: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """One line for each reason."""
        private = [f"with privacy for records: {reason}" for reason in self.wrong_private]
        return [f"{self.task} on {self.data}: {reason}" for reason in (*self.wrong, *private)]

    @property
    def counted(self) -> str:
        """How many examples were read, for the data steward alone."""
        parts = ", ".join(f"{number:,} {part}" for part, number in self.examples.items())
        return f"{self.task} on {self.data}: {parts or 'no'} examples"


def check_fitting(site: str, task: str, data: str, folder: Path | None, workshops: Workshops) -> Fitting:
    """Have a workshop read a data set and try a task on it, as plans without and with privacy for records would.

    Args:
        site: the site's name.
        task: import path of the task.
        data: the data set's name.
        folder: where it lies; ``None`` for a task that finds its data itself.
        workshops: makes the workshops.
    """
    plain, private = plans(site, task, data)
    found = _look(plain, site, folder, workshops)
    also = () if found.wrong else _look(private, site, folder, workshops).wrong
    return Fitting(task, data, found.wrong, also, found.examples, found.odd)


def check_all(
    site: str, tasks: Sequence[str], data: Mapping[str, Path | None], workshops: Workshops
) -> Iterator[tuple[list[Fitting], list[str]]]:
    """Check every task that a policy allows on every data set; gives for each task where it fits, and a line for
    each thing that is wrong.

    A task is not made for every data set: where it fits one, nothing is said of those that it does not fit.

    Args:
        site: the site's name.
        tasks: that the policy allows.
        data: the folder of each data set by name.
        workshops: makes the workshops.
    """
    for task in tasks:
        found = [check_fitting(site, task, name, folder, workshops) for name, folder in data.items()]
        fitting = [one for one in found if not one.wrong]
        if found and not fitting:
            none = f"{task} fits no data set here: " + "; ".join(f"{one.data}: {one.wrong[0]}" for one in found)
            yield [], [none]
        else:
            yield fitting, [line for one in fitting for line in one.lines]


def plans(site: str, task: str, data: str) -> tuple[Plan, Plan]:
    """Plans to check with: they are asked of nobody. Without privacy, and with privacy for records."""
    sites = [site, *[name for name in ("a", "b", "c") if name != site][:2]]
    fields = {"name": "check", "task": task, "data": data, "sites": sites, "rounds": 1, "local": {"steps": 1}}
    privacy = {"unit": "record", "epsilon": EPSILON, "expected_batch": 1.0}
    noises = {"training_noise": 1.0, "statistics_noise": 1.0, "metrics_noise": 1.0}  # given, so that none is sought
    return make_plan(fields, source="check"), make_plan({**fields, "privacy": privacy | noises}, source="check")


def _look(plan: Plan, site: str, folder: Path | None, workshops: Workshops) -> Checked:
    workshop = workshops(plan, site, folder)
    try:
        return workshop.check(CHECK_S)
    except WorkFailed as failed:
        return Checked((failed.in_full,), {})
    finally:
        workshop.stop()
