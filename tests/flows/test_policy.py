"""A site's policy: every rule refuses by its name, and before anything is imported."""

import sys

import pytest

from flows.policy import Policy, check_policy
from protocols.errors import Refused
from tests.flows.consortium import plan_for

TASK = "tests.flows.tasks:Tiny"
PLAIN = {"protocol": "plain", "allow_insecure": True}


@pytest.mark.parametrize(
    ("policy", "plan", "reason"),
    [
        ({}, {"sites": ["bob", "cat", "dan"]}, "does not name this site"),
        ({"tasks": []}, {}, f"the task {TASK} is not on this site's list"),
        ({"data": []}, {}, "the data set tiny may not be used here"),
        ({}, {"protection": PLAIN}, "does not allow the plain protocol"),
        ({"min_sites": 5}, {}, r"the plan's sites \(4\) must be at least 5 here"),
        ({"min_threshold": 4}, {}, r"the plan's threshold \(3\) must be at least 4 here"),
        ({"colluding": 2}, {}, r"the plan's colluding \(1\) must be at least 2 here"),
        ({"max_rounds": 1}, {}, r"the plan's rounds \(2\) may be at most 1 here"),
        ({"max_train_s": 10.0}, {}, r"the plan's deadlines.train_s \(120\) may be at most 10 here"),
    ],
)
def test_every_rule_refuses_by_its_name(policy: dict, plan: dict, reason: str) -> None:
    with pytest.raises(Refused, match=f"^ann: join: .*{reason}"):
        check_policy(Policy(**{"tasks": [TASK], **policy}), plan_for(**plan), "ann")


def test_what_the_rules_allow_passes_at_their_very_edge() -> None:
    rules = {
        "data": ["tiny"],
        "min_sites": 4,
        "min_threshold": 3,
        "colluding": 1,
        "max_rounds": 2,
        "max_train_s": 120.0,
    }
    check_policy(Policy(tasks=[TASK], **rules), plan_for(), "ann")
    check_policy(Policy(tasks=[TASK], protocols=["plain"]), plan_for(protection=PLAIN), "ann")


def test_a_task_that_is_not_allowed_is_not_imported() -> None:
    plan = plan_for().model_copy(update={"task": "this:Zen"})
    sys.modules.pop("this", None)
    with pytest.raises(Refused, match="this:Zen"):
        check_policy(Policy(tasks=[TASK]), plan, "ann")
    assert "this" not in sys.modules
