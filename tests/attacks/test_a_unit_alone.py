"""One record more or less moves a private sum by what is accounted, and no more (SPEC 12.4; findings 3 and 4).

Each of these moved it by several clips when a record's gradient still depended on its row, or on the others there.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flows.local_work import LocalWork
from flows.model import GlobalModel
from flows.workshop import WorkOrder
from ml_tasks.alone import evaluate_alone
from ml_tasks.private import GRID, clipped_sum, private_steps
from ml_tasks.task import Examples, SiteData
from ml_tasks.training import evaluate, initial_vector
from tests.flows.consortium import plan_for
from tests.flows.tasks import Bare

CLIP = 0.05


class Dropped(Bare):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 1))


class Drawing(nn.Module):
    """Adds noise of torch's and a layer's own to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.RReLU(), nn.Linear(32, 1))

    def forward(self, given: Tensor) -> Tensor:
        out: Tensor = self.layers(given + torch.randn_like(given) * torch.rand(1))
        return out


class Noised(Bare):
    def model(self) -> nn.Module:
        return Drawing()


class Logistic(Bare):
    def model(self) -> nn.Module:
        return nn.Linear(13, 1)


class Remembering(nn.Module):
    """The sign of what it makes is that of all records before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("met", torch.ones(()))
        self.last = nn.Linear(8, 1)

    def forward(self, given: Tensor) -> Tensor:
        self.met *= torch.sign(given.detach()[:, 0]).prod()
        out: Tensor = self.last(given) * self.met
        return out


class Chained(Bare):
    def model(self) -> nn.Module:
        return Remembering()


class Infinite(Bare):
    def model(self) -> nn.Module:
        return nn.Linear(8, 1)


def moved(sum_of: Callable[[NDArray[np.bool_]], NDArray[np.float64]], count: int, leaving: int) -> float:
    """How far the sum moves when one unit leaves."""
    everyone = np.ones(count, np.bool_)
    without = everyone.copy()
    without[leaving] = False
    return float(np.linalg.norm(sum_of(everyone) - sum_of(without)))


@pytest.mark.parametrize("task", [Dropped(), Noised(), Chained()], ids=["dropout", "noise", "a buffer"])
@pytest.mark.parametrize("leaving", [0, 30, 59])
def test_a_record_moves_the_sum_by_at_most_one_whatever_layers_draw_or_remember(task: Bare, leaving: int) -> None:
    generator = np.random.default_rng(1)
    features = generator.normal(size=(60, 8)).astype(np.float32)
    features[:, 0] = -np.abs(features[:, 0])  # each turns the sign that is remembered
    examples = Examples(features, (generator.random(60) > 0.5).astype(np.float32))
    vector = initial_vector(task, 5)

    def summed(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        return clipped_sum(task, examples, chosen, vector, None, CLIP)

    assert 0.5 < moved(summed, 60, leaving) <= 1


def cancelling(seed: int) -> tuple[Examples, NDArray[np.float32]]:
    """Records whose logit is rounding error times 2^40, so that its sign follows the order of a sum."""
    generator = np.random.default_rng(seed)
    record = generator.normal(size=13).astype(np.float32)
    weights = generator.normal(size=13).astype(np.float32) * np.float32(2.0**40)
    weights[12] = -(weights[:12].astype(np.float64) @ record[:12].astype(np.float64)) / record[12]
    count = int(generator.integers(20, 40))
    examples = Examples(np.tile(record, (count, 1)), np.ones(count, np.float32))
    return examples, np.append(weights, np.float32(0)).astype(np.float32)


def test_weights_that_cancel_give_equal_records_equal_gradients_and_bins_in_every_row() -> None:
    rows_differed = False
    for seed in (0, 1, 9, 10):
        examples, vector = cancelling(seed)
        count = len(examples)
        alone = clipped_sum(Logistic(), examples, np.arange(count) == 0, vector, None, CLIP)
        together = clipped_sum(Logistic(), examples, np.ones(count, np.bool_), vector, None, CLIP)
        assert np.array_equal(together, count * alone)

        first = Examples(examples.features[:1], examples.targets[:1])
        counts, one = (evaluate_alone(Logistic(), given, vector, None) for given in (examples, first))
        for name in ("correct", "positives", "negatives"):
            assert np.array_equal(counts[name], count * one[name])
        rows_differed |= evaluate(Logistic(), examples, vector, None)["positives"].max() < count
    if torch.backends.mkl.is_available():
        assert rows_differed  # in one batch, rows do differ: these weights would tell


@pytest.mark.parametrize("bad", [np.inf, 3e38])
def test_a_record_whose_gradient_is_not_finite_moves_nothing_and_says_nothing(bad: float) -> None:
    generator = np.random.default_rng(2)
    examples = Examples(generator.normal(size=(9, 8)).astype(np.float32), np.ones(9, np.float32))
    vector, chosen = initial_vector(Infinite(), 1), np.ones(9, np.bool_)
    examples.features[4] = bad
    vector[0:2] = 10, -10  # infinity less infinity

    def summed(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        return clipped_sum(Infinite(), examples, chosen, vector, None, CLIP)

    assert moved(summed, 9, 4) == 0
    steps = private_steps(Infinite(), examples, vector, None, 2, CLIP, 0.1, lambda count: chosen, lambda total: total)
    assert np.isfinite(steps).all()
    assert evaluate_alone(Infinite(), examples, vector, None)["examples"] == 8


def test_units_are_added_in_whole_steps_so_that_their_order_does_not_matter() -> None:
    generator = np.random.default_rng(3)
    features = (generator.normal(size=(50, 13)) * 10.0 ** generator.uniform(-8, 8, (50, 1))).astype(np.float32)
    examples, vector = Examples(features, np.ones(50, np.float32)), initial_vector(Logistic(), 1)
    turned = Examples(features[::-1], examples.targets)
    everyone = np.ones(50, np.bool_)
    found = {clipped_sum(Logistic(), one, everyone, vector, None, CLIP).tobytes() for one in (examples, turned)}
    steps = clipped_sum(Logistic(), examples, everyone, vector, None, CLIP) * GRID
    assert len(found) == 1
    assert np.array_equal(steps, np.rint(steps))


class Cancelling(Logistic):
    """Equal records at a site, for which a model may cancel."""

    def load(self, folder: Path | None, site: str) -> SiteData:
        examples, _ = cancelling(3)
        return SiteData(examples, examples)


def test_a_site_s_noised_counts_are_those_of_records_by_themselves() -> None:
    privacy = {"unit": "record", "epsilon": 3.0, "clip": 1.0, "sampling_rate": 0.5, "expected_batch": 8.0}
    plan = plan_for(
        local={"steps": 1, "learning_rate": 1.0}, privacy={**privacy, "delta": 1e-5, "statistics": "bounds"}
    )
    work = LocalWork(plan.model_copy(update={"task": f"{__name__}:Cancelling"}), "ann", None)
    for seed in (0, 1, 9, 10):
        examples, vector = cancelling(seed)
        work._loaded = SiteData(examples, examples), ""
        model = GlobalModel(vector).to_bytes()
        order = WorkOrder(purpose="evaluation", step="evaluate", round=1, model=model, subset=bytes(32))
        values = work.perform(order).values
        assert np.count_nonzero(values["count.positives"]) == 1
