"""Whether task and data fit, said to the data steward in full (SPEC 6.12)."""

from pathlib import Path

from flows.fitting import check_all, check_fitting, plans
from flows.plan import Plan
from flows.workshop import Checked, WorkFailed, Workshop


class Found:
    """A workshop that finds what a test says, by the data set's folder and the plan's privacy."""

    def __init__(self, plan: Plan, site: str, folder: Path | None) -> None:
        self._plan, self._folder, self.stopped = plan, folder, False

    def check(self, limit_s: float) -> Checked:
        if self._plan.task.endswith("Broken"):
            raise WorkFailed("it does not import")
        if self._folder == Path("bad"):
            return Checked(("a column is missing", "a target is neither 0 nor 1"), {"train": 1, "test": 1})
        wrong = ("its units do not stand alone",) if self._plan.privacy.unit == "record" else ()
        return Checked(wrong, {"train": 1, "test": 1})

    def stop(self) -> None:
        self.stopped = True


def workshops(plan: Plan, site: str, folder: Path | None) -> Workshop:
    return Found(plan, site, folder)  # type: ignore[return-value]


def test_every_reason_is_said_and_what_holds_only_with_privacy_is_told_apart() -> None:
    bad = check_fitting("ann", "a.b:Task", "icu", Path("bad"), workshops)
    assert bad.lines == ["a.b:Task on icu: a column is missing", "a.b:Task on icu: a target is neither 0 nor 1"]
    good = check_fitting("ann", "a.b:Task", "icu", Path("good"), workshops)
    assert not good.wrong
    assert good.lines == ["a.b:Task on icu: with privacy for records: its units do not stand alone"]


def test_a_task_that_cannot_be_checked_is_said_to() -> None:
    assert check_fitting("ann", "a.b:Broken", "icu", None, workshops).wrong == ("it does not import",)


def test_a_task_need_not_fit_every_data_set_but_one() -> None:
    data = {"icu": Path("good"), "old": Path("bad")}
    (task, broken) = check_all("ann", ["a.b:Task", "a.b:Broken"], data, workshops)
    assert [found.counted for found in task[0]] == ["a.b:Task on icu: 1 train, 1 test examples"]
    assert task[1] == ["a.b:Task on icu: with privacy for records: its units do not stand alone"]
    assert broken == ([], ["a.b:Broken fits no data set here: icu: it does not import; old: it does not import"])


def test_the_plans_that_are_checked_with_name_the_site_whatever_it_is_called() -> None:
    for site in ("a", "b", "ann", "x" * 32):
        plain, private = plans(site, "a.b:Task", "icu")
        assert site in plain.sites and (plain.privacy.unit, private.privacy.unit) == ("none", "record")
