from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ml_tasks.tabular import Standardisation, apply, moments, standardisation
from ml_tasks.task import Feature

FEATURES = (Feature("age", 18, 100), Feature("chol", 0, 600))

VALUES = st.floats(-1e6, 1e6, width=32) | st.just(float("nan"))
TABLES = hnp.arrays(np.float32, st.tuples(st.integers(0, 30), st.just(2)), elements=VALUES)


@given(st.lists(TABLES, min_size=1, max_size=4))
def test_federated_moments_equal_pooled_moments(tables: list[NDArray[np.float32]]) -> None:
    federated = np.sum([moments(table, FEATURES) for table in tables], axis=0)
    np.testing.assert_allclose(federated, moments(np.concatenate(tables), FEATURES), rtol=1e-12, atol=1e-12)


@given(TABLES)
def test_no_moment_exceeds_the_number_of_rows_whatever_the_values(table: NDArray[np.float32]) -> None:
    assert np.abs(moments(table, FEATURES)).max() <= len(table)


def test_moments_are_count_sum_and_sum_of_squares_of_each_feature_in_turn() -> None:
    table = np.array([[100, 0], [18, np.nan], [59, 450]], dtype=np.float32)
    assert moments(table, FEATURES).tolist() == [3, 0, 2, 2, -0.5, 1.25]


def test_values_outside_the_bounds_are_clamped_in_the_moments() -> None:
    table = np.array([[1000, -5], [-7, 601]], dtype=np.float32)
    assert moments(table, FEATURES).tolist() == [2, 0, 2, 2, 0, 2]


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(2, 40), st.just(2)), elements=st.floats(18, 100, width=32)),
    st.randoms(use_true_random=False),
)
def test_standardised_present_values_have_mean_0_and_deviation_1_or_are_constant(
    table: NDArray[np.float32], random: Random
) -> None:
    table[random.randrange(len(table)), 0] = np.nan
    found = standardisation(moments(table, FEATURES), FEATURES)
    np.testing.assert_allclose(found.mean, np.nanmean(table.astype(np.float64), axis=0), rtol=1e-5)
    deviation = np.nanstd(table.astype(np.float64), axis=0)
    clear = deviation > 0.1
    np.testing.assert_allclose(found.scale[clear], deviation[clear], rtol=1e-3)
    assert (found.scale[deviation == 0] == 1).all()


def test_a_feature_that_no_site_has_gets_the_middle_of_its_bounds_and_scale_1() -> None:
    table = np.array([[np.nan, 200], [np.nan, 200]], dtype=np.float32)
    found = standardisation(moments(table, FEATURES), FEATURES)
    assert found.mean.tolist() == pytest.approx([59, 200])
    assert found.scale.tolist() == [1, 1]


def test_a_missing_value_becomes_0_which_is_the_mean() -> None:
    table = np.array([[np.nan, 300], [61, np.nan]], dtype=np.float32)
    scaled = apply(table, Standardisation(np.array([59, 250], np.float32), np.array([2, 100], np.float32)))
    assert scaled.tolist() == [[0, 0.5], [1, 0]]
    assert scaled.dtype == np.float32
    assert np.isnan(table[0, 0]), "the caller's array has been written to"


def test_without_a_standardisation_only_missing_values_change() -> None:
    images = np.array([[[1, np.nan], [3, 4]]], dtype=np.float32)
    assert apply(images, None).tolist() == [[[1, 0], [3, 4]]]


def test_tables_and_sums_of_the_wrong_width_are_refused() -> None:
    with pytest.raises(ValueError, match="2 columns"):
        moments(np.zeros((4, 3), dtype=np.float32), FEATURES)
    with pytest.raises(ValueError, match="2 features"):
        standardisation(np.zeros(5), FEATURES)
