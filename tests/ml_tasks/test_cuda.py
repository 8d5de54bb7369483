"""Training on CUDA: what the CPU gives but for rounding, and the same bits again; skips where there is no device."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_tasks import private, training
from ml_tasks.alone import CHUNK
from ml_tasks.private import clipped_sum
from ml_tasks.task import Examples
from ml_tasks.training import LocalTraining, evaluate, initial_vector, train
from tests.flows.tasks import Tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SETTINGS = LocalTraining(steps=20, batch_size=16, learning_rate=0.1, momentum=0.9)


class Deep(Tiny):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 300), nn.Tanh(), nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 1))


class Normalised(Tiny):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Linear(30, 1))


class Dropping(Tiny):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 300), nn.Dropout(0.5), nn.Linear(300, 1))


class Colliding(Tiny):
    """Its sums meet at few addresses, in whichever order the device's threads come."""

    def model(self) -> nn.Module:
        return _Colliding()


class _Colliding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(2, 4096)
        self.last = nn.Linear(3, 1)

    def forward(self, features: Tensor) -> Tensor:
        wide: Tensor = self.wide(features)
        places = torch.arange(4096, device=wide.device) % 3
        return self.last(torch.zeros(len(wide), 3, device=wide.device).index_add(1, places, torch.tanh(wide)))


def some(count: int) -> Examples:
    features = np.random.default_rng(3).normal(size=(count, 2)).astype(np.float32) * 3
    return Examples(features, (features[:, 0] > 0).astype(np.float32), np.arange(count) // 7)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have what follows run on the CPU."""

    def switch() -> None:
        for module in (training, private):
            monkeypatch.setattr(module, "usual_device", lambda: torch.device("cpu"))

    return switch


@pytest.mark.parametrize("task", [Deep(), Normalised(), Colliding()])
def test_an_update_and_its_counts_are_those_of_the_cpu_but_for_rounding(task: Tiny, on_cpu: Callable[[], None]) -> None:
    vector = initial_vector(task, 1)

    def both() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        update = train(task, some(90), vector, None, SETTINGS, 5)
        return update, np.concatenate([one.ravel() for one in evaluate(task, some(90), vector, None).values()])

    update, counts = both()
    on_cpu()
    expected, expected_counts = both()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(update, expected, atol=1e-3)
    np.testing.assert_allclose(counts, expected_counts, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("task", [Deep(), Normalised(), Dropping(), Colliding()])
def test_training_gives_the_same_bits_again(task: Tiny) -> None:
    vector = initial_vector(task, 1)
    found = {train(task, some(90), vector, None, SETTINGS, 5).tobytes() for _ in range(5)}
    assert len(found) == 1
    assert train(task, some(90), vector, None, SETTINGS, 6).tobytes() not in found


@pytest.mark.parametrize("task", [Deep(), Tiny()])
def test_the_clipped_sum_is_that_of_the_cpu_also_for_a_group_that_is_cut_in_two(
    task: Tiny, on_cpu: Callable[[], None]
) -> None:
    examples, vector = some(2 * CHUNK + 5), initial_vector(task, 1)
    chosen = np.arange((len(examples) + 6) // 7) % 3 > 0
    found = clipped_sum(task, examples, chosen, vector, None, 0.5)
    on_cpu()
    np.testing.assert_allclose(found, clipped_sum(task, examples, chosen, vector, None, 0.5), atol=1e-5)
