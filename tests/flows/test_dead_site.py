"""A training with a site that never answers: it costs one wait, and the others go on without it."""

import time
from pathlib import Path

import pytest

from tests.flows.consortium import plan_for, trial

WAIT_S = 12.0


@pytest.mark.slow
def test_a_site_that_hangs_in_its_training_costs_one_wait_and_is_asked_less_and_less(tmp_path: Path) -> None:
    asked: list[int] = []

    def hangs(count: int) -> str:
        asked.append(count)
        time.sleep(WAIT_S)
        return "lost"

    with trial(tmp_path, plan_for("Bare", rounds=7), {("dan", "train"): hangs}) as run:
        report = run.train()
    rounds = report.rounds
    assert all(one.survivors == ("ann", "bob", "cat") for one in rounds)
    assert rounds[0].total_s > WAIT_S
    assert max(one.total_s for one in rounds[1:]) < WAIT_S
    assert len(asked) == 3, "in rounds 1, 2 and 4"
    assert rounds[2].dropped["dan"].startswith("is asked again in round 4 (")
