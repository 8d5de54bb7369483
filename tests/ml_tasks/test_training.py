import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_tasks.averaging import load_vector, to_vector
from ml_tasks.metrics import summarise
from ml_tasks.tabular import Standardisation, moments, standardisation
from ml_tasks.task import Examples, Feature, SiteData, Task
from ml_tasks.training import LocalTraining, evaluate, initial_vector, train, usual_device
from tests.flows.tasks import Unused

SETTINGS = LocalTraining(steps=12, batch_size=16, learning_rate=0.1, momentum=0.9)


class _Linear(Task):
    title = "whether the sum of three numbers is positive"
    provenance = "Drawn from a generator."
    needs_data = False
    features = tuple(Feature(name, -4, 4) for name in "abc")

    def load(self, folder: Path | None, site: str) -> SiteData:
        return SiteData(_examples(60, int(site)), _examples(40, int(site) + 1))

    def model(self) -> nn.Module:
        return nn.Linear(3, 1)


class _Dropout(_Linear):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 1))


class _BatchNorm(_Linear):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


class _PartlyUsed(_Linear):
    """A frozen layer, and one that nothing uses."""

    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        model.add_module("last", Unused(1, 1))
        model[0].bias.requires_grad_(False)
        return model


class _TwoLogits(_Linear):
    def model(self) -> nn.Module:
        return nn.Linear(3, 2)


class _MeanLoss(_Linear):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().loss(logits, targets).mean()


def _examples(n: int, seed: int) -> Examples:
    features = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    return Examples(features, (features.sum(axis=1) > 0).astype(np.float32))


def _update(task: Task, seed: int) -> NDArray[np.float32]:
    return train(task, _examples(50, seed), initial_vector(task, 1), None, SETTINGS, seed)


def test_the_initial_model_follows_from_the_seed() -> None:
    task = _Dropout()
    assert np.array_equal(initial_vector(task, 5), initial_vector(task, 5))
    assert not np.array_equal(initial_vector(task, 5), initial_vector(task, 6))


@pytest.mark.parametrize("task", [_Linear(), _Dropout(), _BatchNorm()])
def test_training_is_reproducible_bit_for_bit_and_depends_on_the_seed(task: Task) -> None:
    examples, vector = _examples(50, 0), initial_vector(task, 1)
    first, again, other = (train(task, examples, vector, None, SETTINGS, seed) for seed in (7, 7, 8))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_sites_that_train_with_dropout_in_threads_get_what_they_get_alone() -> None:
    task = _Dropout()
    alone = [_update(task, seed).tobytes() for seed in range(8)]
    start = threading.Barrier(8)

    def together(seed: int) -> bytes:
        start.wait()
        evaluate(task, _examples(20, seed), initial_vector(task, seed), None)  # as in a round: beside the training
        return _update(task, seed).tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(together, range(8))) == alone


def test_training_leaves_the_global_generator_as_it_was() -> None:
    before = torch.random.get_rng_state()
    _update(_Dropout(), 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_full_batch_step_is_the_gradient_of_the_mean_loss() -> None:
    task, examples, vector = _Linear(), _examples(20, 0), np.zeros(4, dtype=np.float32)
    update = train(task, examples, vector, None, LocalTraining(1, 1000, 0.5), seed=0)
    residual = 0.5 - examples.targets  # sigmoid(0) - target
    expected = -0.5 * np.append((residual[:, None] * examples.features).mean(axis=0), residual.mean())
    np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("task", [_Linear(), _BatchNorm(), _PartlyUsed()])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.5, 0.1)])
def test_the_steps_are_those_of_torch_s_own_optimiser_bit_for_bit(
    task: Task, momentum: float, weight_decay: float
) -> None:
    examples, vector = _examples(20, 0), initial_vector(task, 1) + np.float32(0.5)
    settings = LocalTraining(5, 1000, 0.1, momentum, weight_decay)
    update = train(task, examples, vector, None, settings, seed=3)
    device = usual_device()
    model = task.model().to(device)
    load_vector(model, vector)
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum, weight_decay=weight_decay)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        rows = torch.randperm(20, generator=generator)
        optimiser.zero_grad()
        logits = model(torch.tensor(examples.features)[rows].to(device)).reshape(-1)
        task.loss(logits, torch.tensor(examples.targets)[rows].to(device)).mean().backward()
        optimiser.step()
    assert (to_vector(model) - vector).tobytes() == update.tobytes()
    assert update.any()


def test_each_epoch_uses_each_example_once_in_batches_of_equal_size() -> None:
    sizes: list[int] = []
    seen: list[float] = []

    class Recorder(_Linear):
        def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            sizes.append(len(targets))
            seen.extend(targets.tolist())
            return super().loss(logits, torch.zeros_like(targets))

    numbered = Examples(np.zeros((12, 3), dtype=np.float32), np.arange(12, dtype=np.float32))
    train(Recorder(), numbered, np.zeros(4, np.float32), None, LocalTraining(6, 4, 0.1), seed=0)
    assert sizes == [4] * 6
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


def test_the_batches_do_not_depend_on_what_the_model_draws() -> None:
    def batches(network: nn.Module) -> list[float]:
        seen: list[float] = []

        class Recorder(_Linear):
            def model(self) -> nn.Module:
                return network

            def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
                seen.extend(targets.tolist())
                return super().loss(logits, torch.zeros_like(targets))

        numbered = Examples(np.zeros((12, 3), dtype=np.float32), np.arange(12, dtype=np.float32))
        train(Recorder(), numbered, np.zeros(4, np.float32), None, LocalTraining(9, 4, 0.1), seed=0)
        return seen

    assert batches(nn.Linear(3, 1)) == batches(nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.5)))


def test_a_rest_smaller_than_a_batch_is_left_out_until_the_next_shuffle() -> None:
    task, examples = _BatchNorm(), _examples(17, 0)  # a rest of one would stop the batch norm
    update = train(task, examples, initial_vector(task, 1), None, LocalTraining(10, 16, 0.1), seed=0)
    assert np.isfinite(update).all()


def test_training_on_standardised_features_predicts_unseen_examples() -> None:
    task = _Linear()
    data = task.load(None, "0")
    scaled = standardisation(moments(data.train.features, task.features), task.features)
    vector = initial_vector(task, 0)
    vector = vector + train(task, data.train, vector, scaled, LocalTraining(200, 16, 0.5), seed=0)
    assert summarise(evaluate(task, data.test, vector, scaled))["accuracy"] > 0.9


def test_the_standardisation_reaches_the_model_in_training_and_in_evaluation() -> None:
    task, examples, vector = _Linear(), _examples(30, 0), np.array([1, 1, 1, 0], dtype=np.float32)
    shifted = Standardisation(np.full(3, 9, np.float32), np.ones(3, np.float32))
    plain = train(task, examples, vector, None, SETTINGS, 0)
    assert not np.array_equal(plain, train(task, examples, vector, shifted, SETTINGS, 0))
    assert summarise(evaluate(task, examples, vector, None))["accuracy"] == 1
    assert evaluate(task, examples, vector, shifted)["correct"] == (examples.targets == 0).sum()


def test_a_site_without_examples_gives_no_update_and_empty_counts() -> None:
    task, nobody = _BatchNorm(), _examples(0, 0)
    vector = initial_vector(task, 1)
    assert not train(task, nobody, vector, None, SETTINGS, 0).any()
    assert all(not values.any() for values in evaluate(task, nobody, vector, None).values())


def test_evaluation_in_several_batches_counts_each_example_once() -> None:
    task, examples = _Dropout(), _examples(2500, 0)
    vector = initial_vector(task, 1)
    parts = [Examples(examples.features[rows], examples.targets[rows]) for rows in (slice(0, 900), slice(900, 2500))]
    whole, halves = evaluate(task, examples, vector, None), [evaluate(task, part, vector, None) for part in parts]
    assert whole["examples"] == 2500
    for name, values in whole.items():
        np.testing.assert_allclose(halves[0][name] + halves[1][name], values, rtol=1e-5)


def test_a_training_that_diverges_is_an_error_and_not_an_update() -> None:
    examples = Examples(np.full((4, 3), 1e30, dtype=np.float32), np.zeros(4, dtype=np.float32))
    with pytest.raises(FloatingPointError, match="learning rate"):
        train(_Linear(), examples, np.ones(4, np.float32), None, LocalTraining(3, 4, 1e30), 0)


def test_a_model_or_loss_that_does_not_give_one_value_per_example_is_refused() -> None:
    with pytest.raises(ValueError, match="one logit"):
        train(_TwoLogits(), _examples(4, 0), np.zeros(8, np.float32), None, SETTINGS, 0)
    with pytest.raises(ValueError, match="one value"):
        evaluate(_MeanLoss(), _examples(4, 0), np.zeros(4, np.float32), None)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -0.1},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        LocalTraining(**({"steps": 1, "batch_size": 1, "learning_rate": 0.1} | settings))  # type: ignore[arg-type]
