"""The segment tables: what a sum carries, what is clamped of it, and what privacy leaves out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.plan import Plan
from flows.tables import (
    FAILED,
    MOST_STATISTIC,
    OUTSIDE,
    TENSORS_CLAMPED,
    clamped_shares,
    grid_noise,
    statistics_values,
    summed_update,
    tables_of,
    training_values,
    weighed,
)
from ml_tasks.task import Feature
from ml_tasks.training import describe
from protocols.contexts import Purpose
from protocols.encoding import CLAMPED, Segment, add, decode, encode, vector_bytes
from tests.flows.consortium import plan_for
from tests.flows.tasks import RawNorm, Tiny

LAYOUT = describe(RawNorm())
LENGTH = LAYOUT.sizes.parameters
COUNTED = {FAILED, OUTSIDE, TENSORS_CLAMPED}
"""The segments that tell of what goes wrong."""


def summed(plan: Plan, updates: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The decoded sum of the sites' updates, without the counts of metrics."""
    names = {"weight", "update", "buffers", TENSORS_CLAMPED, CLAMPED}
    table = tuple(one for one in tables_of(plan, LAYOUT.sizes)["training"] if one.name in names)
    total = np.zeros(vector_bytes(table), np.uint8)
    for number, update in enumerate(updates):
        values = training_values(plan, plan.protection.max_examples, update.astype(np.float32), LAYOUT)
        add(total, encode("site", values, table, bytes([number]) * 32), table)
    return decode(total, table)


@given(st.lists(st.floats(-7.5, 7.5, width=32), min_size=LENGTH, max_size=LENGTH))
def test_an_update_that_is_cut_and_put_together_again_is_the_same_to_a_grid_step(entries: list[float]) -> None:
    update = np.array(entries, np.float32)
    found = summed_update(summed(plan_for(), [update]), LAYOUT)
    np.testing.assert_allclose(found, update, atol=2.0**-20)


def test_running_statistics_of_raw_inputs_are_whole_where_weights_of_that_size_are_clamped() -> None:
    update = np.full(LENGTH, 90_000.0, np.float32)
    values = summed(plan_for(), [update, update])
    whole = dict(zip((part.name for part in LAYOUT.parts), LAYOUT.split(summed_update(values, LAYOUT)), strict=True))
    assert whole["0.running_var"].tolist() == [180_000.0] * 2
    assert whole["1.weight"].tolist() == [16.0] * 2
    assert clamped_shares(values, LAYOUT, 2) == dict.fromkeys(["0.weight", "0.bias", "1.weight", "1.bias"], 1.0)


def test_the_share_of_each_tensor_that_is_clamped_is_that_of_all_sites_entries() -> None:
    update = np.zeros(LENGTH, np.float32)
    update[-3], update[4] = -8.5, 2 * MOST_STATISTIC  # of 1.weight; of 0.running_mean
    values = summed(plan_for(), [update, np.zeros(LENGTH), update])
    assert clamped_shares(values, LAYOUT, 3) == {"1.weight": 2 / 6, "0.running_mean": 2 / 6}
    assert values[CLAMPED][0] == 4, "the encoding counts the same"


def test_a_rotated_update_has_no_tensors_and_is_counted_as_one() -> None:
    plan = plan_for(protection={"update": {"rotated": True}})
    assert TENSORS_CLAMPED not in {one.name for one in tables_of(plan, LAYOUT.sizes)["training"]}
    values = summed(plan, [np.full(LENGTH, 9.0)])
    assert clamped_shares(values, LAYOUT, 1) == {"update": 1.0}


@pytest.mark.parametrize("purpose", ["statistics", "training", "evaluation"])
@pytest.mark.parametrize("unit", ["record", "site"])
def test_with_privacy_nothing_is_counted_that_is_not_noised(unit: str, purpose: Purpose) -> None:
    rules = {"epsilon": 90.0, "training_noise": 5.0, "statistics_noise": 5.0, "metrics_noise": 5.0}
    more = {"record": {"sampling_rate": 0.5, "expected_batch": 10.0}}
    more["site"] = {"sampling_rate": 1.0, "least_weight": 0.1, "statistics": "bounds"}
    plan = plan_for(local={"steps": 1}, privacy={"unit": unit, **rules, **more[unit]})
    names = {one.name for one in tables_of(plan, describe(Tiny()).sizes).get(purpose, ())}
    assert not names & COUNTED
    assert not names & {"buffers", "count.capped"}


def test_without_privacy_each_sum_counts_what_goes_wrong_in_it() -> None:
    tables = tables_of(plan_for(), describe(Tiny()).sizes)
    found = {purpose: {one.name for one in table} & COUNTED for purpose, table in tables.items()}
    assert found == {"statistics": {FAILED, OUTSIDE}, "training": {FAILED, TENSORS_CLAMPED}, "evaluation": {FAILED}}


def test_the_cap_of_the_loss_is_the_tasks() -> None:
    class Wide(Tiny):
        loss_cap = 25_000.0

    table = tables_of(plan_for(protection={"max_examples": 100}), describe(Wide()).sizes)["evaluation"]
    assert Segment("count.loss", 1, 64, 2.0**20, 2_500_000.0) in table


def test_values_outside_of_their_bounds_are_counted_by_feature_and_missing_ones_are_not() -> None:
    features = (Feature("age", 0, 120), Feature("lactate", 0, 30))
    rows = np.array([[50, 31], [121, np.nan], [-1, 30], [np.nan, 0]], np.float32)
    assert statistics_values(plan_for(), rows, features)[OUTSIDE].tolist() == [2, 1]
    ends = np.array([[0.1], [0.7]], np.float32)  # as float32 above the one, below the other
    assert statistics_values(plan_for(), ends, (Feature("ratio", 0.1, 0.7),))[OUTSIDE].tolist() == [0]


def test_the_grid_noise_is_the_spread_of_what_rounding_adds_to_the_mean() -> None:
    plan, generator = plan_for(protection={"max_examples": 10_000_000}), np.random.default_rng(1)
    ring = plan.protection.update
    table = (Segment("update", 1000, ring.bits, ring.scale, ring.max_abs), Segment(CLAMPED, 1, 64, 1.0, 1000.0))
    parts = [weighed(plan, 88, generator.uniform(-1, 1, 1000).astype(np.float32)) for _ in range(3)]
    total = np.zeros(vector_bytes(table), np.uint8)
    for part in parts:
        add(total, encode("site", {"update": part["update"]}, table, generator.bytes(32)), table)
    weight = sum(float(part["weight"][0]) for part in parts)
    added = (decode(total, table)["update"] - sum(part["update"].astype(np.float64) for part in parts)) / weight
    assert np.std(added) == pytest.approx(grid_noise(plan, 3, weight), rel=0.1)
    assert grid_noise(plan, 3, weight) == pytest.approx(0.0255, rel=0.01), "seen in a loss: findings D15"
