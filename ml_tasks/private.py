"""Clipped gradients per record or per patient: the ML layer's half of differential privacy (SPEC 12; DP-SGD).

What leaves here is a sum to which no record, or no group of records, adds a vector longer than 1: Abadi et al. 2016,
with the noise left to whoever adds over the sites. Each unit is computed by itself and added as whole numbers, so that
what it adds depends on nobody else, bit for bit (SPEC 12.4).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ml_tasks.alone import LoneModel, meeting
from ml_tasks.averaging import PrivateStep
from ml_tasks.tabular import Standardisation, apply
from ml_tasks.task import Examples, Task
from ml_tasks.training import usual_device

GRID = 2**30
"""Steps of a clip: units are added in these, exactly and in any order."""
MOST = 2**53
"""Of a sum's steps: up to there, every whole number is one in binary64."""
SEED_BYTES = 8


def units(examples: Examples) -> NDArray[np.int64]:
    """Number the units of privacy, from 0: the records, or the groups where the task names a group column.

    Returns:
        (n,) the unit of each example.
    """
    if examples.groups is None:
        return np.arange(len(examples))
    return np.unique(examples.groups, return_inverse=True)[1].reshape(-1).astype(np.int64)


def count_units(examples: Examples) -> int:
    """How many units of privacy there are."""
    return int(units(examples).max(initial=-1)) + 1


def one_each(examples: Examples) -> Examples:
    """The first record of each unit: what statistics and metrics are made of, so that a patient counts once in them."""
    if examples.groups is None:
        return examples
    first = np.unique(examples.groups, return_index=True)[1]
    return Examples(examples.features[first], examples.targets[first])


def clipped_sum(
    task: Task,
    examples: Examples,
    chosen: NDArray[np.bool_],
    vector: NDArray[np.float32],
    standardisation: Standardisation | None,
    clip: float,
    *,
    check_time: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """Add up the chosen units' gradients, each clipped to length ``clip`` and divided by it (SPEC 12.4).

    A unit is a record or a group: the gradients of a group's records are added before they are clipped, so that a
    patient counts once, however many stays there are. What a unit adds depends on its own records and on public
    things, bit for bit. A unit whose gradient is NaN or infinite, or for which the task raises, adds zero.

    Args:
        task: gives model and loss.
        examples: the site's.
        chosen: (units,) which units take part.
        vector: (d,) the incoming global model.
        standardisation: that of all sites, or None.
        clip: the longest gradient, above 0.
        check_time: called before each unit; what it raises ends the work.

    Returns:
        (d,) in the order of ``to_vector``, multiples of 2^-30; 0 for what is no parameter.

    Raises:
        DataError: the model has a layer that mixes records or keeps running statistics; names it.
    """
    device, total = usual_device(), np.zeros(len(vector), np.int64)
    rows, ends = _rows_by_unit(units(examples), chosen)
    features = np.ascontiguousarray(apply(examples.features[rows], standardisation))
    targets = examples.targets[rows]
    with meeting(device):
        model, seed_of = LoneModel(task, vector, device, training=True), seeds(vector)
        for start, end in zip([0, *ends], ends, strict=False):
            check_time()
            own = features[start:end], targets[start:end]
            gradient = model.gradient(*own, seed_of(*own))
            if gradient is not None:
                total += on_grid(gradient, clip)
    return np.clip(total, -MOST, MOST) / GRID


def seeds(vector: NDArray[np.float32]) -> Callable[[NDArray[np.float32], NDArray[np.float32]], int]:
    """What the layers that draw, such as dropout, draw with for a unit: a hash of the model and the unit (SPEC 12.4).

    Were it drawn anew, the sum over the others would be another one whenever a unit leaves: no clip bounds that.

    Args:
        vector: (d,) the model, which is hashed once.

    Returns:
        Gives the seed, 0 <= seed < 2^64, of a unit's standardised features, (m, ...), and its targets, (m,).
    """
    begun = hashlib.sha256(_framed(vector))

    def seed_of(features: NDArray[np.float32], targets: NDArray[np.float32]) -> int:
        hashed = begun.copy()
        hashed.update(_framed(features) + _framed(targets))
        return int.from_bytes(hashed.digest()[:SEED_BYTES], "little")

    return seed_of


def _framed(values: NDArray[np.float32]) -> bytes:
    return len(values).to_bytes(SEED_BYTES, "little") + np.ascontiguousarray(values).tobytes()


def on_grid(gradient: NDArray[np.float64], clip: float) -> NDArray[np.int64]:
    """Clip a gradient and put it on the grid: whole numbers whose exact L2 norm is at most 2^30 (SPEC 12.4).

    The computed norm errs by less than (d + 8) 2^-53 of itself, in whatever order it is summed, and is lengthened by
    as much; cutting off what lies between grid points shortens.

    Args:
        gradient: (d,), each 0 or from 2^-149 to 2^600.
        clip: the longest gradient, above 0; the grid's unit is 2^-30 of it.

    Returns:
        (d,); zeros for a gradient that holds NaN or infinity.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(np.square(gradient).sum())
    if not 0 < square < np.inf:
        return np.zeros(len(gradient), np.int64)
    norm = np.sqrt(square) * (1 + (len(gradient) + 8) * 2.0**-53)
    return np.asarray((gradient * (GRID / max(norm, clip))).astype(np.int64))  # towards zero


def _rows_by_unit(members: NDArray[np.int64], chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int64], list[int]]:
    """The rows of the chosen units, a unit's next to each other in their own order, and where each unit ends."""
    rows = np.flatnonzero(chosen[members])
    rows = rows[np.argsort(members[rows], kind="stable")]
    return rows, [int(end) + 1 for end in np.flatnonzero(np.diff(members[rows], append=-1))]


def private_steps(
    task: Task,
    examples: Examples,
    vector: NDArray[np.float32],
    standardisation: Standardisation | None,
    steps: int,
    clip: float,
    length: float,
    choose: Callable[[int], NDArray[np.bool_]],
    noise: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    check_time: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Train a site's own model by DP-SGD, with all of the noise in each step (Abadi et al. 2016).

    Args:
        task, examples, vector, standardisation, clip: as in ``clipped_sum``.
        steps: how many.
        length: of a step: learning rate * clip / expected batch.
        choose: samples the units of a step, given how many there are.
        noise: adds a step's noise to the sum of its gradients, in units of the clip.
        check_time: as in ``clipped_sum``.

    Returns:
        (d,) the trained vector minus the incoming one.

    Raises:
        DataError: as in ``clipped_sum``.
    """
    trained, present = vector, count_units(examples)
    for _ in range(steps):
        chosen = choose(present)
        total = clipped_sum(task, examples, chosen, trained, standardisation, clip, check_time=check_time)
        trained = PrivateStep(length).apply(trained, noise(total))
    return trained - vector
