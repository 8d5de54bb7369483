"""A unit stands alone: together as one by one, bit for bit; and models in which it would not are refused by name."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_tasks.alone import evaluate_alone
from ml_tasks.breast_cancer import BreastCancer
from ml_tasks.eicu import Eicu
from ml_tasks.heart import HeartDisease
from ml_tasks.independence import check_stands_alone
from ml_tasks.private import GRID, clipped_sum, count_units, on_grid, seeds
from ml_tasks.task import DataError, Examples
from ml_tasks.training import initial_vector
from tests.flows.tasks import Bare

WIDTH = 16


class Built(Bare):
    """A task with a model that a function builds."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.model = build  # type: ignore[method-assign]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.steps = kind(4, 5, batch_first=True)
        self.last = nn.Linear(5, 1)

    def forward(self, given: Tensor) -> Tensor:
        out: Tensor = self.last(self.steps(given.reshape(-1, 4, 4))[0][:, -1])
        return out


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.last = nn.Linear(16, 1)

    def forward(self, given: Tensor) -> Tensor:
        out: Tensor = self.last(self.layer(given.reshape(-1, 4, 4)).reshape(-1, 16))
        return out


def perceptron(*inner: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 6), *inner, nn.Linear(6, 1))


def convolution() -> nn.Module:
    shaped = nn.Unflatten(1, (1, 4, 4))
    return nn.Sequential(shaped, nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, 1),
    "perceptron": lambda: perceptron(nn.Tanh(), nn.Linear(6, 6)),
    "convolution": convolution,
    "GRU": lambda: Recurrent(nn.GRU),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "attention": Attending,
    "dropout": lambda: perceptron(nn.Dropout(0.5)),
    "group norm": lambda: perceptron(nn.GroupNorm(2, 6)),
}


class Centred(nn.Module):
    """Mixes records without a parameter."""

    def forward(self, given: Tensor) -> Tensor:
        return given - given.mean(0)


class Ranked(nn.Module):
    """Mixes records without a gradient."""

    def forward(self, given: Tensor) -> Tensor:
        return given * given.detach().argsort(0).argsort(0)


class CentredInTraining(nn.Module):
    """Mixes records where a layer draws, and only then."""

    def forward(self, given: Tensor) -> Tensor:
        given = nn.functional.dropout(given, 0.1, self.training)
        return given - given.mean(0) if self.training else given


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.met = 0

    def forward(self, given: Tensor) -> Tensor:
        self.met += 1
        return given * self.met


class Running(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, given: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * given.detach().mean(0)
        return given - self.mean


class Noting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, list[float]] = {"seen": [0.0]}

    def forward(self, given: Tensor) -> Tensor:
        self.notes["seen"][0] += float(given.detach().sum())
        return given * self.notes["seen"][0]


class DrawingElsewhere(nn.Module):
    def forward(self, given: Tensor) -> Tensor:
        return given * float(np.random.default_rng().random())


MET: list[float] = [1.0]


class Outside(nn.Module):
    """Keeps what it has met where no module is looked at."""

    def forward(self, given: Tensor) -> Tensor:
        MET[0] += 1.0
        return given * MET[0]


class InPlace(nn.Module):
    """Changes a buffer in place, as running statistics are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sum", torch.zeros(6))

    def forward(self, given: Tensor) -> Tensor:
        self.sum += given.detach().sum(0)
        return given - self.sum


class Table(nn.Module):
    """Makes a table of positions at its first call and keeps it: nothing of a record."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: Tensor | None = None

    def forward(self, given: Tensor) -> Tensor:
        if self.positions is None:
            self.positions = torch.arange(given.shape[1]) / 10
        return given + self.positions


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch norm": (lambda: perceptron(nn.BatchNorm1d(6)), r"1 \(BatchNorm1d\) mixes records"),
    "synchronised": (lambda: perceptron(nn.SyncBatchNorm(6)), r"1 \(SyncBatchNorm\) mixes records"),
    "instance norm": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (4, 4)), nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten(), nn.Linear(16, 1)
        ),
        r"1 \(InstanceNorm1d\) keeps running statistics",
    ),
    "softmax": (lambda: perceptron(nn.Softmax(dim=0)), r"1 \(Softmax\) mixes records"),
    "centred": (lambda: perceptron(nn.Sequential(nn.Tanh(), Centred())), r"1\.1 \(Centred\) mixes records"),
    "ranked": (lambda: perceptron(Ranked()), r"1 \(Ranked\) mixes records"),
    "in training": (lambda: perceptron(CentredInTraining()), r"1 \(CentredInTraining\) mixes records"),
    "counter": (lambda: perceptron(Counting()), r"1 \(Counting\) keeps something"),
    "running": (lambda: perceptron(Running()), r"1 \(Running\) keeps something"),
    "in place": (lambda: perceptron(InPlace()), r"1 \(InPlace\) keeps something"),
    "noting": (lambda: perceptron(Noting()), r"1 \(Noting\) keeps something"),
    "numpy": (lambda: perceptron(DrawingElsewhere()), r"1 \(DrawingElsewhere\) makes two things"),
    "outside": (lambda: perceptron(Outside()), r"1 \(Outside\) makes two things"),
}


def some(count: int, seed: int = 3, members: int | None = None) -> Examples:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, WIDTH)).astype(np.float32) * 2
    groups = None if members is None else generator.permutation(np.arange(count) // members)
    return Examples(features, (generator.random(count) > 0.5).astype(np.float32), groups)


def vector_of(task: Bare, seed: int) -> NDArray[np.float32]:
    return initial_vector(task, seed)


def summed(task: Bare, examples: Examples, chosen: NDArray[np.bool_], vector: NDArray[np.float32]) -> NDArray[np.int64]:
    """The sum in steps of the grid."""
    found = clipped_sum(task, examples, chosen, vector, None, 0.5) * GRID
    assert np.array_equal(found, np.rint(found))
    return found.astype(np.int64)


def on_threads(number: int, work: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        found = work()
        assert torch.get_num_threads() == number
        return found
    finally:
        torch.set_num_threads(before)


def check_together_as_one_by_one(name: str, count: int, seed: int, members: int | None, singles: int) -> None:
    """The sum of all, in two orders and on one and two threads, is that of units by themselves and of the rest."""
    task, examples = Built(MODELS[name]), some(count, seed, members)
    vector, units = vector_of(task, seed), count_units(examples)
    everyone = np.ones(units, np.bool_)
    together = on_threads(1, lambda: summed(task, examples, everyone, vector))

    order = np.random.default_rng(seed).permutation(count)
    groups = None if examples.groups is None else (units - 1 - examples.groups)[np.sort(order)]
    if groups is None:
        turned = Examples(examples.features[order], examples.targets[order])
    else:  # the units turn round, and each keeps the order of its own records
        turned = Examples(examples.features, examples.targets, groups)
    assert np.array_equal(together, on_threads(2, lambda: summed(task, turned, everyone, vector)))

    picked = np.random.default_rng(seed).permutation(units)[:singles]
    rest = everyone.copy()
    rest[picked] = False
    parts = summed(task, examples, rest, vector)
    for unit in picked:
        own = np.arange(units) == unit
        alone = on_threads(2, lambda own=own: summed(task, examples, own, vector))  # type: ignore[misc]
        assert sum(int(step) ** 2 for step in alone) <= GRID**2  # the exact norm is at most 1
        parts = parts + alone
    assert np.array_equal(together, parts)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=4, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([None, 3]))
def test_units_together_give_the_bits_of_the_units_one_by_one(
    name: str, count: int, seed: int, members: int | None
) -> None:
    check_together_as_one_by_one(name, count, seed, members, singles=4)


@pytest.mark.parametrize("name", ["linear", "dropout"])
def test_units_of_a_large_batch_give_the_bits_of_the_units_one_by_one(name: str) -> None:
    check_together_as_one_by_one(name, 300, 5, None, singles=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**32 - 1), st.sampled_from([None, 3]))
def test_units_of_any_batch_give_the_bits_of_the_units_one_by_one(
    name: str, count: int, seed: int, members: int | None
) -> None:
    check_together_as_one_by_one(name, count, seed, members, singles=20)


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40),
    st.floats(1e-100, 1e100),
)
@example([1.0, 1.0, 1.0], 1.0)
@example([3e38] * 7, 1e-100)
@example([0.0], 5e-324)
def test_a_gradient_on_the_grid_is_never_longer_than_one_in_exact_numbers(values: list[float], clip: float) -> None:
    gradient = np.array(values, np.float64)
    found = on_grid(gradient, clip)
    assert sum(int(step) ** 2 for step in found) <= GRID**2
    norm = float(np.sqrt(np.square(gradient).sum()))
    np.testing.assert_allclose(found / GRID, gradient / max(norm, clip), atol=2.0**-29)


def test_dropout_draws_for_each_unit_from_the_unit_and_the_model() -> None:
    task, examples, everyone = Built(MODELS["dropout"]), some(9), np.ones(9, np.bool_)
    vector = vector_of(task, 1)
    features, targets = examples.features, examples.targets
    found = [seeds(vector)(features[one : one + 1], targets[one : one + 1]) for one in range(9)]
    found += [seeds(vector + 1)(features[:1], targets[:1]), seeds(vector)(features[:1], 1 - targets[:1])]
    assert len(set(found)) == 11 and all(0 <= seed < 2**64 for seed in found)
    met = {clipped_sum(task, examples, everyone, vector, None, 0.5).tobytes() for _ in range(3)}
    assert len(met) == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_modules_that_leave_records_alone_is_taken(name: str) -> None:
    check_stands_alone(Built(MODELS[name]), some(12, members=3))


def test_a_table_that_a_module_makes_at_its_first_call_is_taken() -> None:
    check_stands_alone(Built(lambda: perceptron(Table())), some(10))


@pytest.mark.parametrize("task", [HeartDisease(), Eicu(), BreastCancer()], ids=lambda task: type(task).__name__)
def test_the_shipped_tasks_stand_alone(task: Bare) -> None:
    check_stands_alone(task)


@pytest.mark.parametrize("name", REFUSED)
def test_a_module_that_mixes_records_or_remembers_them_is_refused_by_name(name: str) -> None:
    build, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as caught:
        check_stands_alone(Built(build), some(10))
    assert "\n" not in str(caught.value)


def test_made_examples_find_what_mixes_where_there_are_no_others() -> None:
    check_stands_alone(Built(MODELS["dropout"]), features_shape=(WIDTH,))
    with pytest.raises(DataError, match=r"1 \(Centred\) mixes records"):
        check_stands_alone(Built(lambda: perceptron(Centred())), features_shape=(WIDTH,))


def test_a_loss_that_remembers_records_is_refused() -> None:
    class Remembering(Built):
        def __init__(self) -> None:
            super().__init__(MODELS["linear"])
            self.met: list[float] = []

        def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            self.met.append(float(targets.sum()))
            return super().loss(logits, targets) * (1 + len(self.met))

    with pytest.raises(DataError, match="keeps state outside"):
        check_stands_alone(Remembering(), some(10))


def test_a_task_that_takes_no_made_numbers_is_checked_by_its_classes_alone() -> None:
    class Picky(Built):
        def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            raise RuntimeError

    check_stands_alone(Picky(MODELS["linear"]), features_shape=(WIDTH,))
    with pytest.raises(DataError, match="raises RuntimeError for a few records"):
        check_stands_alone(Picky(MODELS["linear"]), some(10))
    with pytest.raises(DataError, match="BatchNorm1d"):
        check_stands_alone(Picky(lambda: perceptron(nn.BatchNorm1d(6))))


@pytest.mark.parametrize("build", [Counting, Running, InPlace, Noting])
def test_what_a_module_keeps_of_a_unit_is_undone_before_the_next(build: Callable[[], nn.Module]) -> None:
    """Also without the check, a unit does not reach the next."""
    task, examples = Built(lambda: perceptron(build())), some(7)
    vector, everyone = vector_of(task, 1), np.ones(7, np.bool_)
    one_by_one = sum(summed(task, examples, np.arange(7) == unit, vector) for unit in range(7))
    assert np.array_equal(one_by_one, summed(task, examples, everyone, vector))
    counts = [evaluate_alone(task, part, vector, None) for part in (examples, *map(single(examples), range(7)))]
    for name in ("positives", "negatives"):
        assert np.array_equal(counts[0][name], np.sum([one[name] for one in counts[1:]], axis=0))


def single(examples: Examples) -> Callable[[int], Examples]:
    return lambda row: Examples(examples.features[row : row + 1], examples.targets[row : row + 1])


def test_tied_parameters_move_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(WIDTH, 1)
            self.second = self.first

        def forward(self, given: Tensor) -> Tensor:
            out: Tensor = self.first(given) + self.second(given)
            return out

    task = Built(Tied)
    found = clipped_sum(task, some(5), np.ones(5, np.bool_), vector_of(task, 1), None, 1.0)
    assert found.any()
    assert np.array_equal(found[: WIDTH + 1], found[WIDTH + 1 :])
