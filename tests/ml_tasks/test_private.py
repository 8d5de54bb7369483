"""Clipped gradients: equal to torch's own one by one, and no unit moves the sum by more than 1."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_tasks.alone import CHUNK, evaluate_alone
from ml_tasks.averaging import load_vector, to_vector
from ml_tasks.private import clipped_sum, units
from ml_tasks.task import DataError, Examples
from tests.flows.tasks import LEAK, Stop, Tiny, Unused


class Deep(Tiny):
    """Two layers, of which the first is frozen."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


class Frozen(Deep):
    def model(self) -> nn.Module:
        model = super().model()
        model[0].weight.requires_grad_(False)
        return model


class PartlyUsed(Tiny):
    """A layer that nothing uses."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 1), Unused(1, 1))


class Normalised(Tiny):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def some(count: int, groups: list[int] | None = None, seed: int = 3) -> Examples:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, 2)).astype(np.float32) * 3
    kept = None if groups is None else np.array(groups)
    return Examples(features, (generator.random(count) > 0.5).astype(np.float32), kept)


def start(task: Tiny) -> NDArray[np.float32]:
    torch.manual_seed(1)
    return to_vector(task.model())


def everyone(examples: Examples) -> NDArray[np.bool_]:
    return np.ones(len(np.unique(units(examples))), np.bool_)


def one_by_one(task: Tiny, examples: Examples, vector: NDArray[np.float32], clip: float) -> NDArray[np.float64]:
    """The same by torch's plain gradients, a unit at a time."""
    total = np.zeros(len(vector))
    for unit in range(len(np.unique(units(examples)))):
        model = task.model()
        load_vector(model, vector)
        rows = np.flatnonzero(units(examples) == unit)
        logits = model(torch.tensor(examples.features[rows])).reshape(-1)
        task.loss(logits, torch.tensor(examples.targets[rows])).sum().backward()
        gradient = np.concatenate(
            [
                (torch.zeros_like(one) if one.grad is None else one.grad).numpy().reshape(-1)
                for one in model.parameters()
            ]
        ).astype(np.float64)
        total += gradient / max(clip, np.linalg.norm(gradient))
    return total


@pytest.mark.parametrize("task", [Tiny(), Deep(), Frozen(), PartlyUsed()])
@pytest.mark.parametrize("clip", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("groups", [None, [4, 4, 9, 1, 4, 9, 9, 2]])
def test_the_sum_is_that_of_each_units_own_gradient_clipped(task: Tiny, clip: float, groups: list[int] | None) -> None:
    examples, vector = some(8, groups), start(task)
    found = clipped_sum(task, examples, everyone(examples), vector, None, clip)
    assert np.allclose(found, one_by_one(task, examples, vector, clip), atol=1e-6)


def test_more_examples_than_are_held_at_once_give_the_same_sum_also_for_a_group_that_is_cut_in_two() -> None:
    groups = [number // 7 for number in range(2 * CHUNK + 5)]
    examples, vector = some(len(groups), groups), start(Tiny())
    found = clipped_sum(Tiny(), examples, everyone(examples), vector, None, 0.5)
    assert np.allclose(found, one_by_one(Tiny(), examples, vector, 0.5), atol=1e-5)


@pytest.mark.parametrize("groups", [None, [0, 1, 2, 0, 1, 2]])
def test_a_unit_more_or_less_moves_the_sum_by_at_most_one(groups: list[int] | None) -> None:
    examples, vector = some(6, groups), start(Deep())
    whole = clipped_sum(Deep(), examples, everyone(examples), vector, None, 0.05)
    for unit in range(int(everyone(examples).sum())):
        without = everyone(examples)
        without[unit] = False
        moved = whole - clipped_sum(Deep(), examples, without, vector, None, 0.05)
        assert 0.9 < np.linalg.norm(moved) <= 1


def test_nobody_chosen_is_a_sum_of_zero() -> None:
    examples, vector = some(4), start(Tiny())
    assert not clipped_sum(Tiny(), examples, np.zeros(4, np.bool_), vector, None, 1.0).any()
    assert not clipped_sum(Tiny(), some(0), np.zeros(0, np.bool_), vector, None, 1.0).any()


class Choosy(Tiny):
    """A loss that raises for targets of 2, and stops for those of 3."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if (targets == 2).any():
            raise RuntimeError(LEAK)
        if (targets == 3).any():
            raise Stop(LEAK)
        return super().loss(logits, targets)


@pytest.mark.parametrize("target", [np.nan, np.inf, 2.0, 3.0])
def test_a_unit_without_a_finite_gradient_adds_zero_and_nothing_of_it_is_told(
    target: float, caplog: pytest.LogCaptureFixture
) -> None:
    examples, vector = some(5), start(Choosy())
    examples.targets[2] = target
    everybody = everyone(examples)
    whole = clipped_sum(Choosy(), examples, everybody, vector, None, 1.0)
    others = clipped_sum(Choosy(), examples, np.arange(5) != 2, vector, None, 1.0)
    assert np.array_equal(whole, others) and whole.any()
    counts = evaluate_alone(Choosy(), examples, vector, None)
    assert counts["examples"] == 4
    assert LEAK not in caplog.text


def test_a_layer_that_mixes_examples_is_refused() -> None:
    with pytest.raises(DataError, match="cannot be trained with record-level privacy"):
        clipped_sum(Normalised(), some(4), np.ones(4, np.bool_), start(Normalised()), None, 1.0)


def test_groups_must_be_as_many_as_targets() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        some(4, [1, 2])
