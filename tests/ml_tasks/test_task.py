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


@pytest.mark.parametrize(
    ("features", "targets"),
    [
        (np.ones((3, 2), np.float64), np.ones(3, np.int64)),
        (np.ones((3, 2), np.float16), np.ones(3, np.bool_)),
        (np.ones((3, 2), np.uint8), np.ones((3, 1), np.float32)),
        ([[1, 1], [1.0, 1], [1, 1]], [1, True, 1.0]),
        (torch.ones(3, 2, dtype=torch.bfloat16), torch.ones(3, 1, dtype=torch.int32, requires_grad=False)),
        (torch.ones(3, 2, requires_grad=True), torch.ones(3)),
    ],
    ids=["float64-int64", "float16-bool", "uint8-column", "lists", "bfloat16-int32-column", "with-gradient"],
)
def test_numbers_of_any_type_become_float32(features: object, targets: object) -> None:
    examples = Examples(features, targets)  # type: ignore[arg-type]
    assert np.array_equal(examples.features, np.ones((3, 2))) and examples.features.dtype == np.float32
    assert np.array_equal(examples.targets, np.ones(3)) and examples.targets.dtype == np.float32


def test_float32_is_not_copied_and_what_is_too_large_for_it_becomes_infinite() -> None:
    features = np.ones((3, 2), np.float32)
    assert Examples(features, np.ones(3, np.float32)).features is features
    assert np.isinf(Examples(np.full((1, 1), 1e300), np.ones(1)).features).all()


@pytest.mark.parametrize(
    ("features", "why"),
    [
        (np.array([["a"], ["b"]]), "features are of type <U1"),
        (np.array([[None], [1]], dtype=object), "features are of type object"),
        (np.array([[1j], [1]]), "features are of type complex128"),
        (np.array([[2**24 + 1], [0]]), "integers beyond 2"),
        (np.array([[-(2**63)], [0]]), "integers beyond 2"),
    ],
    ids=["text", "objects", "complex", "large", "least"],
)
def test_what_float32_cannot_hold_is_refused(features: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Examples(features, np.ones(2, np.float32))  # type: ignore[arg-type]


def test_a_site_s_data_are_examples_and_named_by_their_part() -> None:
    train, test, validation = _examples(1), _examples(2), _examples(3)
    assert SiteData(train, test).parts == {"train": train, "test": test}
    assert SiteData(train, test, validation).parts["validation"] is validation
    with pytest.raises(ValueError, match="test is a tuple: give Examples"):
        SiteData(train, (1, 2))  # type: ignore[arg-type]


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
