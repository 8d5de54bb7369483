"""What a steward writes into site.toml while a training runs binds its next sum: a budget above all."""

import re
from pathlib import Path

import pytest

from flows.policy import Policy
from flows.settings import SettingsError
from protocols.messages import AskAdvertise
from tests.flows.consortium import Trial, plan_for, trial
from tests.flows.test_site import join, refusal, send

CHANGES = {
    "has a privacy budget here": {"budgets": {"tiny": {"epsilon": 1.0, "delta": 1e-5}}},
    "is not on this site's list": {"tasks": ["another:Task"]},
    r"threshold \(3\) must be at least 4 here": {"min_threshold": 4},
}


def advertised(run: Trial, attempt: int) -> str:
    """Ask ann for an attempt; gives the kind of the answer, or why she refuses."""
    context = run.live.context("training", 1, attempt)
    message = send(run, "ann", "advertise", context.digest, AskAdvertise(context))
    return refusal(message) if message.kind == "refusal" else message.kind


@pytest.mark.parametrize("reason", CHANGES)
def test_a_rule_or_a_budget_that_is_set_while_a_training_runs_binds_its_next_sum(tmp_path: Path, reason: str) -> None:
    with trial(tmp_path, plan_for()) as run:
        site = run.local.sites.sites["ann"]
        data, policy = site._data, site._policy
        site._settings = lambda: (data, policy)
        assert join(run, "ann").kind == "joined"
        assert advertised(run, 1) == "advert"
        policy = Policy.model_validate(policy.model_dump() | CHANGES[reason])
        assert re.search(reason, advertised(run, 2))


def test_settings_that_cannot_be_read_any_more_refuse_the_next_sum(tmp_path: Path) -> None:
    def broken() -> tuple:
        raise SettingsError("site.toml: is not TOML")

    with trial(tmp_path, plan_for()) as run:
        site = run.local.sites.sites["ann"]
        assert join(run, "ann").kind == "joined"
        site._settings = broken
        assert advertised(run, 1) == "this site's settings cannot be read: its log says why"
        site._settings = lambda: ({"tiny": tmp_path / "elsewhere"}, site._policy)
        assert "is another folder since this site joined" in advertised(run, 1)
