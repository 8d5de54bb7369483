import numpy as np
import pytest

from ml_tasks.baselines import baseline, pool
from ml_tasks.breast_cancer import BreastCancer
from ml_tasks.task import Examples
from ml_tasks.training import LocalTraining

SETTINGS = LocalTraining(steps=20, batch_size=32, learning_rate=0.1)


def _data() -> tuple[dict[str, Examples], Examples]:
    sites = {site: BreastCancer().load(None, site) for site in ("north", "east", "south", "west")}
    return {site: data.train for site, data in sites.items()}, pool([data.test for data in sites.values()])


def test_pooling_keeps_every_row_with_its_target() -> None:
    parts = [Examples(np.full((n, 2), n, np.float32), np.full(n, n % 2, np.float32)) for n in (1, 0, 2)]
    pooled = pool(parts)
    assert pooled.features.tolist() == [[1, 1], [2, 2], [2, 2]]
    assert pooled.targets.tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="need at least one array"):
        pool([])


def test_the_pooled_baseline_beats_chance_by_far_and_follows_from_the_seed() -> None:
    trains, test = _data()
    first, again = (baseline(BreastCancer(), pool(list(trains.values())), test, SETTINGS, 5, seed=1) for _ in range(2))
    assert first == again
    assert first["examples"] == len(test)
    assert first["accuracy"] > 0.9


def test_rounds_times_steps_is_all_that_matters_to_a_baseline() -> None:
    trains, test = _data()
    whole = LocalTraining(steps=60, batch_size=32, learning_rate=0.1)
    in_rounds = baseline(BreastCancer(), trains["south"], test, SETTINGS, 3, seed=1)
    assert in_rounds == baseline(BreastCancer(), trains["south"], test, whole, 1, seed=1)
    assert in_rounds != baseline(BreastCancer(), trains["south"], test, SETTINGS, 1, seed=1)


def test_a_site_alone_is_standardised_on_its_own_examples() -> None:
    trains, test = _data()
    scaled = Examples(trains["west"].features * np.float32(0.5), trains["west"].targets)
    scaled_test = Examples(test.features * np.float32(0.5), test.targets)
    same = baseline(BreastCancer(), trains["west"], test, SETTINGS, 2, seed=1)
    assert baseline(BreastCancer(), scaled, scaled_test, SETTINGS, 2, seed=1)["loss"] == pytest.approx(
        same["loss"], rel=1e-2
    )
