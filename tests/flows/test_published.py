"""Published plans: whoever starts one fills in what was left open, within its range, and changes no other word."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.authors import sign_template
from flows.plan import PlanError, make_plan
from flows.published import (
    Published,
    Timetable,
    all_published,
    of_template,
    plan_of,
    publishable,
    read_published,
    write_published,
)
from protocols.keys import Identity

RAW: dict[str, Any] = {
    "name": "heart",
    "task": "ml_tasks.heart:HeartDisease",
    "data": "heart",
    "sites": ["ann", "bob", "cat", "dan"],
    "rounds": 10,
}
OPEN = {"rounds": (1.0, 100.0), "local.learning_rate": (0.001, 1.0)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the plan heart is published."""
    write_published(tmp_path, publishable(RAW, OPEN, Timetable(cron="0 2 * * 1")))
    return tmp_path


def test_a_published_plan_is_started_by_its_name_with_its_open_numbers(folder: Path) -> None:
    assert plan_of({"plan": "heart"}, folder) == make_plan(RAW, source="test")
    asked = {"plan": "heart", "rounds": 3, "local_learning_rate": 0.5}
    assert plan_of(asked, folder) == make_plan(RAW | {"rounds": 3, "local": {"learning_rate": 0.5}}, source="test")


def test_what_follows_from_an_open_number_still_does() -> None:
    private = RAW | {"local": {"steps": 1}, "privacy": {"unit": "record", "epsilon": 3.0, "expected_batch": 40.0}}
    published = publishable(private, {"privacy.epsilon": (1.0, 8.0)})
    noise = [published.filled({"privacy_epsilon": value}).privacy.training_noise for value in (1.0, 8.0)]
    assert noise[0] > noise[1] > 0


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ({"plan": "other"}, "other is not published here"),
        ({"plan": "../heart"}, "is no plan, nor the name of one that is published"),
        ({"plan": "heart\n"}, "is no plan, nor the name"),
        ({"plan": ""}, "is no plan, nor the name"),
        ({"plan": None}, "is no plan, which is a table of fields"),
        ({}, "is no plan, which is a table of fields"),
        ({"plan": "heart", "rounds": 101}, "heart: rounds: must be a number from 1 to 100"),
        ({"plan": "heart", "rounds": True}, "heart: rounds: must be a number from 1 to 100"),
        ({"plan": "heart", "rounds": "3"}, "heart: rounds: must be a number from 1 to 100"),
        ({"plan": "heart", "rounds": float("nan")}, "heart: rounds: must be a number from 1 to 100"),
        ({"plan": "heart", "rounds": 2.5}, "heart: rounds: must be a whole number"),
        ({"plan": "heart", "seed": 3}, "heart: 'seed': is not left open in this plan"),
        ({"plan": "heart", "local": {"steps": 99}}, "heart: 'local': is not left open in this plan"),
        ({"plan": "heart", "local.learning_rate": 0.5}, "is not left open in this plan"),
        ({"plan": RAW, "rounds": 3}, "'rounds': is no parameter beside a whole plan"),
    ],
)
def test_nothing_else_is_started(parameters: dict[str, Any], line: str, folder: Path) -> None:
    with pytest.raises(PlanError) as refused:
        plan_of(parameters, folder)
    assert line in str(refused.value) and "\n" not in str(refused.value)


@settings(max_examples=40)
@given(st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists)))
def test_whatever_a_server_gives_is_the_published_plan_or_none(parameters: dict[str, Any]) -> None:
    published = publishable(RAW, OPEN)
    try:
        plan = published.filled(parameters)
    except PlanError:
        return
    given = {word: value for word, value in parameters.items() if word in published.words}
    assert plan == published.filled(given) and parameters == given


@pytest.mark.parametrize(
    ("open_", "line"),
    [
        ({"rounds": (11.0, 100.0)}, "rounds = 10 is not within its own range"),
        ({"rounds": (1.0, 1e6)}, "rounds: must be less than or equal to 100000"),
        ({"name": (0.0, 1.0)}, "name: is no field that holds a number"),
        ({"nothing": (0.0, 1.0)}, "nothing: is no field that holds a number"),
        ({"protection.threshold": (1.0, 4.0)}, "threshold"),
    ],
)
def test_a_plan_that_would_be_none_at_an_end_of_a_range_is_not_published(
    open_: dict[str, tuple[float, float]], line: str
) -> None:
    with pytest.raises(PlanError) as refused:
        publishable(RAW, open_)
    assert line in str(refused.value)


def test_a_signed_template_publishes_what_its_author_has_left_open() -> None:
    jane = Identity.generate("jane")
    text = sign_template(jane, RAW, OPEN).to_json()
    published = of_template(text)
    assert (published.plan, published.open, published.template) == (RAW, OPEN, text)


def test_what_does_not_read_is_told_and_does_not_hide_the_others(folder: Path) -> None:
    (folder / "broken.json").write_text("{")
    assert [one.name for one in all_published(folder)] == ["heart"]
    with pytest.raises(PlanError, match="does not read as a published plan: publish it anew"):
        read_published(folder, "broken")


def test_a_published_plan_comes_back_from_its_file_for_its_owner_alone(folder: Path) -> None:
    assert read_published(folder, "heart") == Published(plan=RAW, open=OPEN, timetable=Timetable(cron="0 2 * * 1"))
    assert (folder / "heart.json").stat().st_mode & 0o777 == 0o600
