"""Standardise tabular features with statistics that only ever exist as sums over sites (SPEC 3.5).

Each site computes `moments`; they are added in one secure sum; every site turns the same sum into the same
`Standardisation`. With statistics of its own, each site would feed the shared model features on another scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # it imports torch, which whoever checks a receipt need not wait for
    from ml_tasks.task import Feature

MOMENTS = 3  # per feature: how many values are present, their sum, the sum of their squares
VARIANCE_FLOOR = 1e-8  # in units of the half range of the bounds, squared: below it a feature counts as constant


@dataclass(frozen=True, slots=True, eq=False)
class Standardisation:
    """Means and scales of the features, each (d,) float32, in the features' own units."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]


def moments(features_array: NDArray[np.float32], features: Sequence[Feature]) -> NDArray[np.float64]:
    """Sum what mean and variance need, in units in which no value exceeds 1 (SPEC 3.2, 3.5).

    The public bounds map each value to z in [-1, 1] and values outside are clamped, so that every entry is at most n in
    absolute value: a secure sum needs a bound that does not depend on the data. Adding the moments of sites gives those
    of the pooled rows.

    Args:
        features_array: (n, d); NaN marks a missing value.
        features: d features with their bounds.

    Returns:
        (3 * d,): for each feature the count of present values, the sum of z and the sum of z^2.

    Raises:
        ValueError: if the array does not have one column per feature.
    """
    if features_array.ndim != 2 or features_array.shape[1] != len(features):
        raise ValueError(f"features of shape {features_array.shape} do not have {len(features)} columns")
    middle, half_range = _bounds(features)
    z = np.clip((features_array.astype(np.float64) - middle) / half_range, -1.0, 1.0)  # (n, d)
    present = ~np.isnan(z)
    z = np.where(present, z, 0.0)
    return np.stack([present.sum(axis=0), z.sum(axis=0), (z * z).sum(axis=0)], axis=1).reshape(-1)


def outside(features_array: NDArray[np.float32], features: Sequence[Feature]) -> NDArray[np.float64]:
    """Count the values of each feature that are outside of its declared bounds, as float32: (n, d) to (d,)."""
    low, high = (np.array([getattr(feature, end) for feature in features], np.float32) for end in ("low", "high"))
    return np.asarray(((features_array < low) | (features_array > high)).sum(axis=0), np.float64)


def standardisation(summed_moments: NDArray[np.float64], features: Sequence[Feature]) -> Standardisation:
    """Turn summed moments into means and scales (the population's standard deviation).

    A feature without a value has the middle of its bounds as mean; its scale, and that of a constant feature, is 1:
    dividing by a standard deviation of nearly 0 would blow up the first patient who differs.

    Args:
        summed_moments: (3 * d,), the sum of `moments` over sites.
        features: the same d features.

    Raises:
        ValueError: if the sum has another length.
    """
    if summed_moments.shape != (MOMENTS * len(features),):
        raise ValueError(f"moments of shape {summed_moments.shape} do not fit {len(features)} features")
    middle, half_range = _bounds(features)
    count, total, squares = summed_moments.reshape(-1, MOMENTS).T
    present = count >= 0.5  # a count that went through a secure sum may be off by a grid step
    count = np.where(present, count, 1.0)
    mean_z = np.where(present, np.clip(total / count, -1.0, 1.0), 0.0)  # noise may have moved it further
    variance_z = np.where(present, squares / count - mean_z**2, 0.0)
    scale = np.where(variance_z > VARIANCE_FLOOR, np.sqrt(np.maximum(variance_z, 0.0)) * half_range, 1.0)
    return Standardisation((middle + mean_z * half_range).astype(np.float32), scale.astype(np.float32))


def least_scale(low: float, high: float) -> float:
    """The smallest scale that `standardisation` gives a feature with these bounds."""
    return min(1.0, math.sqrt(VARIANCE_FLOOR) * (high - low) / 2)


def from_bounds(features: Sequence[Feature]) -> Standardisation:
    """Standardise by the public bounds alone: the middle as mean, a quarter of the range as scale.

    It costs no privacy. The bounds are of what is plausible, so that most values lie within one or two scales.
    """
    middle, half_range = _bounds(features)
    return Standardisation(middle.astype(np.float32), (half_range / 2).astype(np.float32))


def apply(features_array: NDArray[np.float32], standardisation: Standardisation | None) -> NDArray[np.float32]:
    """Standardise features and put 0 where a value is missing, which is the mean over all sites.

    Args:
        features_array: (n, d), or (n, ...) without a standardisation.
        standardisation: None leaves the present values as they are.

    Returns:
        A new array of the same shape, without NaN.
    """
    if standardisation is not None:
        with np.errstate(over="ignore", invalid="ignore"):  # whoever computes with them looks at what comes out
            features_array = (features_array - standardisation.mean) / standardisation.scale
    return np.where(np.isnan(features_array), np.float32(0.0), features_array)


def _bounds(features: Sequence[Feature]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low = np.array([feature.low for feature in features], dtype=np.float64)
    high = np.array([feature.high for feature in features], dtype=np.float64)
    return (low + high) / 2, (high - low) / 2
