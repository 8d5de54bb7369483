"""What of a site's examples no training can use: said before the first round, by column and number (SPEC 6.12).

Never a value: like a ``DataError``, the text may be read by more people than the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ml_tasks.task import Examples, Feature

SHOWN_COLUMNS = 3
"""Columns that are named; of more, their number."""


def misfits(examples: Examples, features: Sequence[Feature]) -> list[str]:
    """Give every reason why examples cannot be trained or measured with.

    Args:
        examples: of one part, such as train.
        features: the columns that the task standardises; empty for none.
    """
    return [*_wrong_columns(examples, features), *_infinite(examples, features), *_wrong_targets(examples)]


def given(examples: Examples) -> str:
    """Say what a model is given, for whoever reads why it failed on that."""
    return (
        f"the model is given float32 of shape {examples.features.shape}: its weights must be float32, and .long() in "
        "forward makes indices"
    )


def _wrong_columns(examples: Examples, features: Sequence[Feature]) -> list[str]:
    shape = examples.features.shape
    if not features or (len(shape) == 2 and shape[1] == len(features)):
        return []
    return [f"load gives features of shape {shape}, the task names {len(features)}: give one column for each"]


def _infinite(examples: Examples, features: Sequence[Feature]) -> list[str]:
    infinite = np.isinf(examples.features)
    if not infinite.any():
        return []
    rows = len(examples)
    infinite = infinite.reshape(rows, -1)
    found = np.flatnonzero(infinite.any(axis=0))
    columns = [_column(int(number), examples, features) for number in found[:SHOWN_COLUMNS]]
    more = f" and {len(found) - SHOWN_COLUMNS} more" if len(found) > SHOWN_COLUMNS else ""
    return [
        f"{infinite.any(axis=1).sum()} of {rows} examples have an infinite value, in {', '.join(columns)}{more}: mend "
        "the data, or have load mark them as missing (NaN)"
    ]


def _column(number: int, examples: Examples, features: Sequence[Feature]) -> str:
    if number < len(features):
        return f"feature {features[number].name}"
    place = np.array(np.unravel_index(number, examples.features.shape[1:]))
    return f"column {', '.join(map(str, place))}"  # counted from 0, as arrays are


def _wrong_targets(examples: Examples) -> list[str]:
    targets: NDArray[np.float32] = examples.targets
    missing = int(np.isnan(targets).sum())
    other = int((~np.isin(targets, (0, 1))).sum()) - missing
    found = []
    if missing:
        found.append(f"{missing} of {len(targets)} targets are missing (NaN): leave these examples out")
    if other:
        found.append(f"{other} of {len(targets)} targets are neither 0 nor 1: have load give 0 and 1")
    return found
