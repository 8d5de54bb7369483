"""The plan: defaults, rules, overrides, digest, and one line for every mistake."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from flows.plan import Plan, PlanError, make_plan, plan_digest, read_plan
from protocols.contexts import threshold_refusal
from tests.conftest import REPOSITORY
from tests.flows.consortium import plan_for

PLANS = REPOSITORY / "deploy" / "plans"


@given(sites=st.integers(3, 40), colluding=st.integers(1, 10))
def test_the_default_threshold_is_the_smallest_that_the_rules_allow(sites: int, colluding: int) -> None:
    raw = {"sites": [f"site-{number}" for number in range(sites)], "protection": {"colluding": colluding}}
    allowed = [t for t in range(1, sites + 1) if threshold_refusal(sites, t, colluding) is None]
    if not allowed:
        with pytest.raises(PlanError):
            plan_for(**raw)
    else:
        assert plan_for(**raw).protection.threshold == allowed[0]


def test_the_digest_covers_the_resolved_defaults() -> None:
    explicit = plan_for(protection={"threshold": 3, "colluding": 1}, seed=0)
    assert explicit.digest == plan_for().digest == plan_digest(plan_for().to_json())
    assert plan_for(seed=1).digest != plan_for().digest
    assert Plan.model_validate_json(plan_for().to_json()) == plan_for()


def fields_of(part: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The names of a plan's fields, as an override writes them."""
    for name, field in part.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_spec_lists_every_field_of_a_plan() -> None:
    """SPEC 6.1: a row names its fields whole, or from the last dot on where the one before has the same table."""
    table = (
        (REPOSITORY / "SPEC.md").read_text().partition("All fields, with defaults:")[2].partition("A threshold of 0")[0]
    )
    listed = set[str]()
    for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE):
        first, *more = re.findall(r"`([^`]+)`", row)
        listed |= {first, *(first.rpartition(".")[0] + one if one[0] == "." else one for one in more)}
    assert listed == set(fields_of(Plan))


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_plan_that_comes_with_fedseal_is_valid(path: Path) -> None:
    assert read_plan(path).sites


def test_overrides_set_nested_fields_with_toml_values_and_bare_words() -> None:
    path = PLANS / "heart.toml"
    plan = read_plan(path, ["seed=42", "local.learning_rate=0.5", "name=other", "protection.update.bits=64"])
    assert (plan.seed, plan.local.learning_rate, plan.name, plan.protection.update.bits) == (42, 0.5, "other", 64)


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=3", "local..steps=3"])
def test_a_malformed_override_is_one_line(override: str) -> None:
    with pytest.raises(PlanError, match="--set") as caught:
        read_plan(PLANS / "heart.toml", ["seed=1", override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"roundz": 3}, "roundz: Extra inputs are not permitted"),
        ({"local": {"stepz": 3}}, "local.stepz"),
        ({"rounds": 0}, "rounds"),
        ({"sites": ["ann", "ann", "bob", "cat"]}, "a site is named twice"),
        ({"sites": ["ann", "bob"]}, "sites"),
        ({"sites": ["Ann", "bob", "cat"]}, "sites.0"),
        ({"protection": {"threshold": 2}}, r"2 x threshold \(2\) must exceed sites \(4\) \+ colluding \(1\)"),
        ({"protection": {"threshold": 3, "colluding": 2}}, "must"),
        ({"protection": {"threshold": 5}}, "threshold 5 exceeds the 4 sites"),
        ({"protection": {"protocol": "plain"}}, "allow_insecure"),
        ({"task": "no colon"}, "task"),
        ({"protection": {"update": {"bits": 24}}}, "protection.update.bits"),
        ({"protection": 3}, "protection"),
        ({"sites": 7}, "sites"),
    ],
)
def test_every_mistake_in_a_plan_is_one_line_that_names_the_field(fields: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        plan_for(**fields)
    assert str(caught.value).startswith("test: ")
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_no_toml_or_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("rounds = = 3")
    for path, said in ((tmp_path / "bad.toml", "is not TOML"), (tmp_path / "none.toml", "cannot be read")):
        with pytest.raises(PlanError, match=said) as caught:
            read_plan(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(PlanError):
        make_plan({}, source="empty")


@pytest.mark.parametrize(
    "fields",
    [
        {"protection": {"update": {"scale": 1e300}}},
        {"protection": {"update": {"max_abs": 1e300}}},
        {"protection": {"max_examples": 10**18}},
        {"deadlines": {"step_s": 1e300}},
    ],
)
def test_a_number_that_no_ring_and_no_clock_can_hold_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="less than"):
        plan_for(**fields)
