"""The benchmark's figures, and that its sums are those of the protocol."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flows.plan import read_plan
from flows.tables import segments_of
from ml_tasks.eicu_tables import REGIONS
from tests.benchmarks.learning import LAYOUT, PLAN, float_sum, secure_sum

ROOT = Path(__file__).parents[2]


def test_the_plan_names_the_five_regions_and_survives_one_dropout() -> None:
    plan = read_plan(PLAN)
    assert plan.sites == REGIONS
    assert (plan.protection.threshold, plan.protection.colluding) == (4, 1)
    assert plan.rounds <= 20


def test_the_secure_sum_differs_from_the_float_sum_by_a_grid_step_a_site_at_most() -> None:
    plan, generator = read_plan(PLAN), np.random.default_rng(1)
    table = segments_of(plan, "training", LAYOUT.sizes)[:-1]
    values = {
        site: {
            segment.name: np.floor(generator.uniform(0, 50, segment.length))
            if segment.name.startswith("count.")
            else generator.uniform(-1, 1, segment.length)
            for segment in table
        }
        for site in plan.sites
    }
    secure, free = (add_up(plan, "training", 1, values) for add_up in (secure_sum, float_sum))
    for segment in table:
        np.testing.assert_allclose(secure[segment.name], free[segment.name], atol=len(values) / segment.scale, rtol=0)
    assert not np.array_equal(secure["update"], free["update"]), "the secure sum has not been through the grid"


@pytest.mark.slow
def test_protected_learning_reaches_its_mark_and_costs_nothing(shared_data: Path) -> None:
    words = ["--data", str(shared_data / "eicu-demo"), "--seeds", "1", "--json"]
    command = [sys.executable, "-m", "tests.benchmarks.learning", *words]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    report = json.loads(printed)
    assert (report["stays"], report["deaths"], report["folds"]) == (2179, 196, 5)
    assert report["auroc"] >= 0.84
    assert abs(report["difference"]) <= 0.003
    assert report["auroc_from_sum"] == pytest.approx(report["auroc"], abs=0.002)
    assert report["auprc_from_sum"] == pytest.approx(report["auprc"], abs=0.01)
