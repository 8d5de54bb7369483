import numpy as np
import pytest
import torch

from ml_tasks.breast_cancer import BreastCancer
from ml_tasks.task import Examples, Feature, SiteData


def _examples(n: int) -> Examples:
    return Examples(np.zeros((n, 2), dtype=np.float32), np.zeros(n, dtype=np.float32))


def test_examples_know_their_number_and_refuse_unequal_lengths() -> None:
    assert len(_examples(3)) == 3
    with pytest.raises(ValueError, match="differ in length"):
        Examples(np.zeros((3, 2), dtype=np.float32), np.zeros(2, dtype=np.float32))


def test_rounds_are_monitored_on_validation_examples_or_else_on_train_but_never_on_test() -> None:
    train, test, validation = _examples(1), _examples(2), _examples(3)
    assert SiteData(train, test).monitored == ("train", train)
    assert SiteData(train, test, validation).monitored == ("validation", validation)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
def test_a_feature_refuses_bounds_without_room_between_them(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="age"):
        Feature("age", low, high)


def test_the_default_loss_is_one_binary_cross_entropy_per_example() -> None:
    losses = BreastCancer().loss(torch.tensor([0.0, 2.0, -2.0]), torch.tensor([1.0, 1.0, 1.0]))
    expected = [np.log(2), np.log1p(np.exp(-2)), np.log1p(np.exp(2))]
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)
