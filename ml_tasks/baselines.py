"""What a federation is compared with: the same model and effort on one site's examples, and on all of them pooled.

Pooling needs every site's examples in one place, so this serves local mode and studies, never a real consortium.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ml_tasks import tabular, training
from ml_tasks.metrics import summarise
from ml_tasks.task import Examples, Task
from ml_tasks.training import LocalTraining


def pool(parts: Sequence[Examples]) -> Examples:
    """Put the examples of several sites one after the other.

    Raises:
        ValueError: if there are no parts.
    """
    return Examples(np.concatenate([part.features for part in parts]), np.concatenate([part.targets for part in parts]))


def baseline(
    task: Task, train: Examples, test: Examples, settings: LocalTraining, rounds: int, seed: int
) -> dict[str, float]:
    """Train without a federation for as many SGD steps as a site makes in all rounds, and measure on `test`.

    `train` is one site's ("alone") or the pool of all ("pooled"). The features are standardised on `train`: it is all
    that such a model may see.

    Args:
        test: the pooled test examples, the same as for the federated model.
        rounds: of the federated training.
        seed: of initialisation and batches.

    Returns:
        The metrics of `metrics.summarise`.
    """
    standardisation = None
    if task.features:
        standardisation = tabular.standardisation(tabular.moments(train.features, task.features), task.features)
    vector = training.initial_vector(task, seed)
    effort = dataclasses.replace(settings, steps=settings.steps * rounds)
    vector = vector + training.train(task, train, vector, standardisation, effort, seed)
    return summarise(training.evaluate(task, test, vector, standardisation), task.loss_cap)
