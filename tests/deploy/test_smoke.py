"""The smoke test is a plan over whatever sites a consortium has, and its task is allowed where a site is founded."""

import tomllib
from pathlib import Path

import pytest

from deploy.run import check_plan
from deploy.smoke import smoke_plan
from deploy.up import found_home
from flows.code_digest import with_code
from flows.plan import make_plan
from flows.settings import CoordinatorFolder, SiteFolder
from ml_tasks.smoke import Smoke
from tests.deploy.command import fedseal
from tests.deploy.test_party import URL


@pytest.mark.parametrize("sites", [("a", "b", "c"), tuple(f"hospital-{number}" for number in range(12))], ids=len)
def test_the_smoke_test_is_a_plan_over_sites_of_any_names(sites: tuple[str, ...]) -> None:
    raw = tomllib.loads(smoke_plan(sites))
    plan, task, _ = check_plan(lambda: with_code(make_plan(raw, source="smoke")))
    assert set(plan.sites) == set(sites) and isinstance(task, Smoke)
    assert plan.privacy.unit == "record", "or a site more or less would wait for its data steward"


def test_a_site_s_numbers_are_its_own_and_the_same_everywhere() -> None:
    task = Smoke()
    first, again, other = (task.load(None, site).train.features for site in ("ann", "ann", "bob"))
    assert (first == again).all() and not (first == other).any()
    assert len(first) <= 64


def test_new_parties_allow_the_smoke_test(tmp_path: Path) -> None:
    words = ("--prefect", URL, "--exchange", f"file://{tmp_path}/exchange", "--folder", tmp_path / "north")
    assert fedseal("site", "init", "north", *words)[0] == 0
    site = SiteFolder.read(tmp_path / "north")
    assert "ml_tasks.smoke:Smoke" in site.policy.tasks and site.data["smoke"].group == "none"
    home = found_home(tmp_path / "home", ("north", "east", "south"), URL)
    assert "ml_tasks.smoke:Smoke" in CoordinatorFolder.read(home.coordinator).tasks
    assert "smoke" in SiteFolder.read(home.site("north")).data
