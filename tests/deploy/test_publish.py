"""``fedseal coordinator publish``: what cannot be published is refused in one line, and nothing is kept of it."""

import json
from pathlib import Path

import pytest

from deploy import EXAMPLE
from deploy.publish import checked, enter, timetable
from deploy.up import Home, found_home
from flows.authors import sign_template
from flows.plan import PlanError
from flows.published import plan_of, read_published
from flows.settings import CoordinatorFolder
from protocols.consortium import read_consortium, write_consortium
from protocols.files import read_toml
from protocols.keys import Consortium, Identity
from tests.deploy.command import fedseal
from tests.deploy.test_party import URL

SITES = ("north", "east", "south", "west")
JANE = Identity.generate("jane")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets it for the rest of its process, which here is the tests'."""
    monkeypatch.setenv("PREFECT_API_URL", URL)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """The coordinator of the embedded example's sites."""
    return found_home(tmp_path / "home", SITES, URL)


@pytest.fixture
def with_authors(home: Home) -> Home:
    """The same, whose consortium file pins an author."""
    path = home.coordinator / "consortium.toml"
    known = read_consortium(path)
    write_consortium(path, Consortium(known.coordinator, known.sites, {"jane": JANE.public}))
    return home


def plan(folder: Path, **fields: object) -> Path:
    """The embedded example with other fields."""
    path = folder / "plan.toml"
    others = [line for line in EXAMPLE.read_text().splitlines() if line.partition(" = ")[0] not in fields]
    path.write_text("\n".join([*(f"{name} = {json.dumps(value)}" for name, value in fields.items()), *others]) + "\n")
    return path


def refused(home: Home, *words: str | Path) -> str:
    """Publish what must be refused; gives the one line."""
    code, out, err = fedseal("coordinator", "publish", *words, "--folder", home.coordinator)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert not (home.coordinator / "published").exists()
    return err


@pytest.mark.parametrize(
    ("fields", "words", "line"),
    [
        ({"name": "custom"}, (), "name: custom is the form of whole plans: give the plan another name"),
        ({"sites": ["north", "east", "up"]}, (), "plan: sites: up: not in the consortium file"),
        ({"task": "ml_tasks.heart:HeartDisease"}, (), "is not on the coordinator's list"),
        ({"rounds": 0}, (), "rounds: must be greater than or equal to 1"),
        ({}, ("--open", "rounds"), "--open rounds: write it as field=least..most"),
        ({}, ("--open", "rounds=9..99"), "rounds = 5 is not within its own range, 9 to 99"),
        ({}, ("--cron", "0 2 * * 1", "--interval", "3600"), "a plan has one schedule: give one of them"),
        ({}, ("--cron", "monday"), "--cron 'monday' --timezone UTC: is no schedule"),
        ({}, ("--cron", "0 2 * * 1", "--timezone", "Mars/X"), "is no schedule: write it as in --cron"),
    ],
)
def test_what_cannot_be_published_is_refused_in_one_line(
    home: Home, tmp_path: Path, fields: dict[str, object], words: tuple[str, ...], line: str
) -> None:
    assert line in refused(home, plan(tmp_path, **fields), *words)


def test_a_plan_that_is_not_published_is_not_withdrawn(home: Home) -> None:
    for name in ("heart", "../coordinator"):
        assert f"{name}: is not published: nothing is" in refused(home, name, "--remove")


def test_with_authors_only_what_one_has_signed_is_published(with_authors: Home, tmp_path: Path) -> None:
    home, path = with_authors, plan(tmp_path)
    assert "is not signed, and the consortium file names authors" in refused(home, path)
    strangers = tmp_path / "strangers.json"
    strangers.write_text(sign_template(Identity.generate("jane"), read_toml(path), {}).to_json())
    assert "the signature of the plan's author jane does not verify" in refused(home, strangers)
    signed = tmp_path / "signed.json"
    signed.write_text(sign_template(JANE, read_toml(path), {"rounds": (1.0, 9.0)}).to_json())
    assert "a signed template says itself what is open" in refused(home, signed, "--open", "rounds=1..99")


def test_a_signed_template_is_published_with_what_its_author_left_open(
    with_authors: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is put where the coordinator's program looks for the template that a plan follows from."""
    signed, folder = tmp_path / "signed.json", CoordinatorFolder.read(with_authors.coordinator)
    signed.write_text(sign_template(JANE, read_toml(plan(tmp_path)), {"rounds": (1.0, 9.0)}).to_json())
    monkeypatch.setattr("deploy.publish.once_there", lambda server, do: None)
    enter(folder, checked(folder, signed, (), [], timetable(None, "UTC", 3600.0)))
    published = read_published(folder.published, "breast-cancer")
    assert published.timetable is not None and published.timetable.interval_s == 3600.0
    assert plan_of({"plan": "breast-cancer", "rounds": 9}, folder.published).rounds == 9
    with pytest.raises(PlanError, match="rounds: must be a number from 1 to 9"):
        plan_of({"plan": "breast-cancer", "rounds": 10}, folder.published)
    assert (folder.templates / "breast-cancer.json").read_text() == signed.read_text()
