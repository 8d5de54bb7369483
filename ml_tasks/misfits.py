"""What of a site's examples no training can use: said before the first round, by column and number (SPEC 6.12).

Never a value: like a ``DataError``, the text may be read by more people than the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ml_tasks.tabular import outside
from ml_tasks.task import Examples, Feature

FAR_RANGES = 1000
"""A value so many times the width of its declared bounds away from their middle is no measurement."""
FAR = 1e9
"""An input that nothing standardises is no measurement beyond this, as no entry of a model is (SPEC 5.4)."""
SHOWN_COLUMNS = 3
"""Columns that are named; of more, their number."""


def misfits(examples: Examples, features: Sequence[Feature]) -> list[str]:
    """Give every reason why examples cannot be trained or measured with.

    Args:
        examples: of one part, such as train.
        features: the columns that the task standardises; empty for none.
    """
    return [*_wrong_columns(examples, features), *unusable(examples, features), *_wrong_targets(examples)]


def unusable(examples: Examples, features: Sequence[Feature]) -> list[str]:
    """Give every reason why a model must not be given these inputs: one such value drowns all others."""
    return [*_infinite(examples, features), *_far(examples, features)]


def oddities(examples: Examples, features: Sequence[Feature]) -> list[str]:
    """Give what can be trained with and is seldom meant: values outside of their declared bounds, one class only."""
    found, targets = [], examples.targets
    if features and examples.features.shape[1:] == (len(features),) and len(examples):
        for number in np.flatnonzero(counted := outside(examples.features, features)):
            feature = features[int(number)]
            found.append(
                f"{int(counted[number])} of {len(examples)} values of {feature.name} are outside of [{feature.low:g}, "
                f"{feature.high:g}], its declared bounds: the statistics clamp them, the model sees them as they are"
            )
    if len(targets) > 1 and (targets == targets[0]).all():
        found.append(f"all {len(targets)} targets are of one class")
    return found


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
    return _named("an infinite value", np.isinf(examples.features), examples, features)


def _far(examples: Examples, features: Sequence[Feature]) -> list[str]:
    """Values that no unit of measurement explains: far outside of declared bounds, or beyond any entry of a model."""
    middle: NDArray[np.float32] | float = 0.0
    reach: NDArray[np.float32] | float = FAR
    if features and examples.features.shape[1:] == (len(features),):
        low, high = (np.array([getattr(feature, end) for feature in features]) for end in ("low", "high"))
        middle, reach = ((low + high) / 2).astype(np.float32), (FAR_RANGES * (high - low)).astype(np.float32)
        what = f"a value more than {FAR_RANGES} times the width of its declared bounds away"
    else:
        what = f"a value beyond {FAR:g}"
    with np.errstate(over="ignore", invalid="ignore"):
        far = (np.abs(examples.features - middle) > reach) & np.isfinite(examples.features)
    return _named(what, far, examples, features)


def _named(what: str, marked: NDArray[np.bool_], examples: Examples, features: Sequence[Feature]) -> list[str]:
    """Name the columns of marked values, and how many examples have one."""
    if not marked.any():
        return []
    rows = len(examples)
    marked = marked.reshape(rows, -1)
    found = np.flatnonzero(marked.any(axis=0))
    columns = [_column(int(number), examples, features) for number in found[:SHOWN_COLUMNS]]
    more = f" and {len(found) - SHOWN_COLUMNS} more" if len(found) > SHOWN_COLUMNS else ""
    return [
        f"{marked.any(axis=1).sum()} of {rows} examples have {what}, in {', '.join(columns)}{more}: mend the data, or "
        "have load mark them as missing (NaN)"
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
