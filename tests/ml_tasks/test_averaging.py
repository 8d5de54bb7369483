import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ml_tasks.averaging import FedAvg, load_vector, to_vector


def _with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(4, 1))


def test_a_batch_norm_model_survives_the_round_trip_with_its_running_statistics() -> None:
    source, target = _with_batch_norm(), _with_batch_norm()
    source.train()
    source(torch.randn(8, 1, 4) + 3)  # moves the running statistics
    load_vector(target, to_vector(source))
    for (name, expected), actual in zip(source.state_dict().items(), target.state_dict().values(), strict=True):
        if expected.is_floating_point():
            assert torch.equal(actual, expected), name
    source.eval(), target.eval()
    x = torch.randn(5, 1, 4)
    assert torch.equal(source(x), target(x))


def test_the_vector_holds_each_floating_point_entry_in_the_order_of_the_state_dict() -> None:
    model = nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([1.0, 2.0]))
        model.bias.copy_(torch.tensor([3.0, 4.0]))
    assert to_vector(model).tolist() == [1, 2, 3, 4, 0, 0, 1, 1]  # weight, bias, running mean, running variance


def test_a_loaded_model_does_not_share_memory_with_the_vector() -> None:
    model, vector = nn.Linear(2, 1), np.array([1, 2, 3], dtype=np.float32)
    load_vector(model, vector)
    with torch.no_grad():
        model.weight.zero_()
    assert vector.tolist() == [1, 2, 3]
    before = to_vector(model)
    with torch.no_grad():
        model.bias.zero_()
    assert before.tolist() == [0, 0, 3]


@pytest.mark.parametrize("size", [0, 2, 4])
def test_a_vector_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="model of 3 values"):
        load_vector(nn.Linear(2, 1), np.zeros(size, dtype=np.float32))


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(-10, 10, width=32)), min_size=1, max_size=5))
def test_federated_averaging_gives_the_weighted_mean_of_the_local_models(sites: list[tuple[int, float]]) -> None:
    vector = np.array([0.5, -2], dtype=np.float32)
    update_sum = np.sum([weight * np.array([update, -update]) for weight, update in sites], axis=0)
    averaged = FedAvg().apply(vector, update_sum, float(sum(weight for weight, _ in sites)))
    mean = np.average([update for _, update in sites], weights=[weight for weight, _ in sites])
    np.testing.assert_allclose(averaged, vector + np.array([mean, -mean]), rtol=1e-5, atol=1e-5)
    assert averaged.dtype == np.float32


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_there_is_no_average_without_a_positive_weight(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        FedAvg().apply(np.zeros(2, dtype=np.float32), np.zeros(2), weight)


def test_an_update_of_another_shape_is_refused_and_not_broadcast() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        FedAvg().apply(np.zeros(2, dtype=np.float32), np.zeros(1), 1.0)
