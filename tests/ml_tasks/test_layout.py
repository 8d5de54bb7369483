"""What a task's sums are made of: weights apart from running statistics, in the vector's order."""

import numpy as np
import pytest
from torch import nn

from ml_tasks.averaging import to_vector
from ml_tasks.layout import Part, Sizes
from ml_tasks.training import describe
from tests.flows.tasks import RawNorm, Tiny


def test_a_batch_norms_running_statistics_are_no_weights_and_its_counter_is_not_there() -> None:
    layout = describe(RawNorm())
    assert layout.parts == (
        Part("0.weight", 2, True),
        Part("0.bias", 2, True),
        Part("0.running_mean", 2, False),
        Part("0.running_var", 2, False),
        Part("1.weight", 2, True),
        Part("1.bias", 1, True),
    )
    assert layout.sizes == Sizes(weights=7, statistics=4, tensors=6, features=0)


def test_a_vector_is_cut_into_its_tensors_without_a_copy() -> None:
    layout, vector = describe(RawNorm()), to_vector(RawNorm().model())
    cut = layout.split(vector)
    assert [tensor.tolist() for tensor in cut[2:4]] == [[0, 0], [1, 1]]
    assert all(np.shares_memory(tensor, vector) for tensor in cut)


def test_tied_weights_are_weights_under_both_of_their_names() -> None:
    class Tied(Tiny):
        def model(self) -> nn.Module:
            module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
            module[1].weight = module[0].weight
            return module

    assert all(part.learnt for part in describe(Tied()).parts)


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cap_of_the_loss_that_is_none_is_refused(cap: float) -> None:
    class Uncapped(Tiny):
        loss_cap = cap

    with pytest.raises(ValueError, match="loss_cap"):
        describe(Uncapped())
