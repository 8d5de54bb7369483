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
        ({"roundz": 3}, r"roundz: there is no such field: did you mean rounds\?"),
        ({"local": {"stepz": 3}}, r"local.stepz: .*did you mean local.steps\?"),
        ({"steps": 3}, r"steps: .*did you mean local.steps\?"),
        ({"stopping": {"sooner": 3}}, "stopping has patience, metric, keep"),
        ({"protection": {"update": {"bitz": 16}}}, r"did you mean protection.update.bits\?"),
        ({"x" * 10**6: 3}, "a plan has name, task, code"),
        ({"rounds": 0}, "rounds: must be greater than or equal to 1"),
        ({"rounds": 10.5}, "rounds: must be a whole number"),
        ({"rounds": "many"}, "rounds: must be a whole number"),
        ({"rounds": None}, "rounds: must be a whole number"),
        ({"local": {"learning_rate": "fast"}}, "local.learning_rate: must be a number"),
        ({"privacy": {"adaptive": "maybe"}}, "privacy.adaptive: must be true or false"),
        ({"stopping": {"metric": "auc"}}, "stopping.metric: must be 'loss', 'accuracy', 'auroc' or 'auprc'"),
        ({"name": 3}, "name: must be text in quotes"),
        ({"name": "My plan"}, "name: must be 1 to 40 of a-z, 0-9 and -"),
        ({"data": "./heart"}, "data: .*its folder is what --data or site.toml names"),
        ({"code": "abc"}, "code: must be the 64 hexadecimal digits"),
        ({"local": "sgd"}, "local: is a table: set a field of it, as in local.steps"),
        ({"sites": "ann,bob,cat"}, r"""sites: must be a list, as in 'sites=\["north", "east", "south"\]'"""),
        ({"sites": ["ann", "ann", "bob", "cat"]}, "a site is named twice"),
        ({"sites": ["ann", "bob"]}, "sites: at least 3 are needed, 2 are named"),
        ({"sites": ["Ann", "bob", "cat"]}, "sites.0: a site's name must be 1 to 32 of a-z, 0-9 and -"),
        ({"protection": {"threshold": 2}}, r"2 x threshold \(2\) must exceed sites \(4\) \+ colluding \(1\)"),
        ({"protection": {"threshold": 3, "colluding": 2}}, "must"),
        ({"protection": {"threshold": 5}}, "threshold 5 exceeds the 4 sites"),
        ({"protection": {"protocol": "plain"}}, "allow_insecure"),
        ({"task": "my_task.py"}, "task: must be module:Class, as in ml_tasks.heart:Heart"),
        ({"protection": {"update": {"bits": 24}}}, "protection.update.bits"),
        ({"protection": 3}, "protection"),
        ({"sites": 7}, "sites: must be a list"),
    ],
)
def test_every_mistake_in_a_plan_is_one_line_that_names_the_field(fields: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        plan_for(**fields)
    assert str(caught.value).startswith("test: ")
    assert "\n" not in str(caught.value)
    assert not re.search("Input|String|Tuple|Extra|instance of|parse", str(caught.value)), "a validator's words"


@pytest.mark.parametrize(
    "override", ["local.step=3", "locl.steps=3", "roundz=3", "rounds=1.5", "sites=a,b,c", "local=3"]
)
def test_a_field_that_was_overridden_wrongly_is_blamed_on_the_override(override: str) -> None:
    path = PLANS / "heart.toml"
    with pytest.raises(PlanError) as caught:
        read_plan(path, ["seed=1", override])
    assert str(caught.value).startswith(f"--set {override}: ")
    with pytest.raises(PlanError) as caught:
        read_plan(path, ["seed=1", "protection.threshold=1"])
    assert str(caught.value).startswith(f"{path}: "), "a rule over several fields is blamed on the plan"


def test_a_plan_is_read_as_editors_write_it(tmp_path: Path) -> None:
    text, path = (PLANS / "heart.toml").read_text(), tmp_path / "plan.toml"
    for content in (b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode()):
        path.write_bytes(content)
        assert read_plan(path) == read_plan(PLANS / "heart.toml")
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(PlanError, match="it is not UTF-8: save it as that"):
        read_plan(path)


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


@pytest.mark.parametrize("raw", ["not a plan", 3, None, []])
def test_what_is_no_plan_at_all_is_said_to_be_none(raw: object) -> None:
    with pytest.raises(PlanError, match=r"^plan: plan: is no plan, which is a table of fields$"):
        make_plan(raw, source="plan")
