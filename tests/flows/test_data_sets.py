"""A site's data sets: one folder is one budget group by whatever name, and each has a word on its budget."""

import os
from pathlib import Path

import pytest

from flows.data_sets import DataSet, DataSetsError, budget_groups, choose
from flows.policy import BudgetTable, Policy
from flows.settings import SettingsError, SiteFolder
from protocols.errors import Refused
from tests.flows.consortium import plan_for

SITE_TOML = """\
name = "ann"
prefect = {{ url = "http://127.0.0.1:9" }}
exchange = {{ url = "memory://" }}
{data}
[policy]
tasks = []
{policy}
"""
BUDGETS = "[policy.budgets.{}]\nepsilon = 1.0\ndelta = 1e-6\n"


def read(folder: Path, data: str, policy: str = "") -> SiteFolder:
    (folder / "site.toml").write_text(SITE_TOML.format(data=data, policy=policy))
    return SiteFolder.read(folder)


def test_a_string_is_a_folder_and_a_table_says_more(tmp_path: Path) -> None:
    site = read(
        tmp_path,
        '[data]\nheart = "data/heart"\n[data.registry]\n[data.icu]\npath = "/icu"\nmax_examples = 900\nbudget = "beds"',
    )
    assert site.data == {
        "heart": DataSet(tmp_path / "data/heart"),
        "icu": DataSet(Path("/icu"), 900, "beds"),
        "registry": DataSet(),
    }
    assert [site.group_of(name) for name in ("heart", "icu", "registry")] == ["heart", "beds", "registry"]
    assert site.members("beds") == {"icu"}


@pytest.mark.parametrize(
    ("data", "policy", "reason"),
    [
        ('[data]\na = "x"\nb = "x"', "", "data.a and data.b are the same data: write one budget group in both"),
        ('[data]\na = "x"\nb = "y/../x"', "", "are the same data"),
        ('[data]\na = "x"\nb = "x/2025"', "", "are the same data"),
        ('[data]\na = "x"\n[data.b]\npath = "x"\nbudget = "none"', "", "are the same data"),
        ('[data]\na = "x"\nb = "y"', BUDGETS.format("a"), 'data.b: has no privacy budget.*write budget = "none"'),
        ('[data]\na = "x"\n[data.b]', BUDGETS.format("a"), "data.b: has no privacy budget"),
        ('[data.b]\nbudget = "none"', BUDGETS.format("b"), r"data.b: says budget = \"none\", and policy.budgets.b"),
        ("[data.a]", BUDGETS.format("b"), "data.a: has no privacy budget"),
        ('[data.a]\nbudget = "none"', BUDGETS.format("b"), "policy.budgets.b: no data set belongs to this group"),
        ("", BUDGETS.format("none"), 'no group may be called "none"'),
        (
            '[data.a]\nbudget = "b"\n[data.b]\nbudget = "c"',
            "",
            "its budget group b is the name of a data set of another",
        ),
        ("[data.a]\nmax_examples = 0", "", "data.a.max_examples: must be greater"),
        ('[data.a]\nfolder = "x"', "", "data.a.folder: is not a field here: write path"),
    ],
)
def test_what_does_not_go_together_is_one_line_that_says_what_to_write(
    tmp_path: Path, data: str, policy: str, reason: str
) -> None:
    with pytest.raises(SettingsError, match=reason) as caught:
        read(tmp_path, data, policy)
    assert str(caught.value).startswith(str(tmp_path / "site.toml")) and "\n" not in str(caught.value)


def test_one_folder_has_one_group_through_links_of_any_kind(tmp_path: Path) -> None:
    """Also where a link leads to the folder above, and where the folder is not there yet."""
    (tmp_path / "icu" / "2025").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "icu")
    (tmp_path / "deep").symlink_to(tmp_path / "link" / "2025")
    os.link(_file(tmp_path / "records.csv"), tmp_path / "again.csv")
    pairs = [("icu", "link"), ("icu", "deep"), ("link", "deep"), ("later", "later/2025"), ("records.csv", "again.csv")]
    for one, other in pairs:
        for first, second in ((one, other), (other, one)):
            with pytest.raises(DataSetsError, match="are the same data"):
                budget_groups({"a": tmp_path / first, "b": tmp_path / second}, ())
            same = {"a": DataSet(tmp_path / first, group="g"), "b": DataSet(tmp_path / second, group="g")}
            assert budget_groups(same, ()) == {"a": "g", "b": "g"}
    assert budget_groups({"a": tmp_path / "icu", "b": tmp_path / "icu-2"}, ()) == {"a": "a", "b": "b"}


def _file(path: Path) -> Path:
    path.touch()
    return path


def test_names_of_one_folder_without_a_budget_are_one_group_all_the_same(tmp_path: Path) -> None:
    """Two folders that meet in a third are one group, too: what is summed of them is remembered together."""
    none = {name: DataSet(tmp_path / path, group="none") for name, path in (("c", "x"), ("a", "x/1"), ("b", "x/2"))}
    assert budget_groups({**none, "d": DataSet(tmp_path / "y", group="none")}, ()) == dict.fromkeys("abc", "a") | {
        "d": "d"
    }


def test_a_plan_names_a_data_set_of_the_site_and_its_public_bound_holds() -> None:
    policy, plan = Policy(tasks=[]), plan_for(protection={"max_examples": 100})
    with pytest.raises(Refused, match="the data set tiny is not one of this site's"):
        choose(plan, "ann", {"other": DataSet()}, policy)
    with pytest.raises(Refused, match=r"the plan's protection.max_examples \(100\) must be at least 101 here"):
        choose(plan, "ann", {"tiny": DataSet(max_examples=101)}, policy)
    chosen = choose(plan, "ann", {"tiny": DataSet(max_examples=100, group="g"), "b": DataSet(group="g")}, policy)
    assert (chosen.group, chosen.names) == ("g", {"tiny", "b"})


def test_data_sets_that_do_not_go_together_are_refused_at_joining_without_their_names(tmp_path: Path) -> None:
    budgets = {"secret": BudgetTable(epsilon=1.0, delta=1e-6)}
    with pytest.raises(Refused, match="do not go together: its log says why") as caught:
        choose(plan_for(), "ann", {"tiny": tmp_path, "secret": tmp_path}, Policy(tasks=[], budgets=budgets))
    assert "secret" not in str(caught.value)
