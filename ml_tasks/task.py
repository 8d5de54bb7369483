"""The interface of the ML layer: what a task supplies, and the values that carry a site's examples (ADR 0001).

To train another model on other data, subclass `Task` in a package of your own, write `load` and `model`, and name the
class by its import path in the plan. Everything here runs at a site, next to the data; what a task returns is never
sent anywhere in the clear.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ml_tasks.metrics import LOSS_CAP

MOST_WHOLE = 2**24
"""Up to here float32 holds every integer."""


class DataError(Exception):
    """A site's data cannot be used.

    The message is one line: which file, where in it, why, and what to do. It never contains a cell's value or the
    contents of a record: it may end up in a log that more people read than the data.
    """


@dataclass(frozen=True, slots=True, eq=False)  # a generated __eq__ would raise: arrays compare entry by entry
class Examples:
    """Rows to learn from.

    Numbers of other types, lists and tensors are turned into float32 arrays, and targets (n, 1) into (n,).

    Args:
        features: (n, ...) float32; NaN marks a missing value.
        targets: (n,) float32.
        groups: (n,) whose records they are, such as a patient's: what record-level privacy protects together; None
            where each record is one of its own.

    Raises:
        ValueError: if they differ in length, or hold no numbers, or integers that float32 cannot hold.
    """

    features: NDArray[np.float32]
    targets: NDArray[np.float32]
    groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        targets = _as_float32(self.targets, "targets")
        object.__setattr__(self, "features", _as_float32(self.features, "features"))
        object.__setattr__(self, "targets", targets[:, 0] if targets.shape[1:] == (1,) else targets)
        if self.groups is not None:
            object.__setattr__(self, "groups", np.asarray(self.groups))
        if self.targets.shape != self.features.shape[:1]:
            raise ValueError(f"features {self.features.shape} and targets {self.targets.shape} differ in length")
        if self.groups is not None and self.groups.shape != self.targets.shape:
            raise ValueError(f"groups {self.groups.shape} and targets {self.targets.shape} differ in length")

    def __len__(self) -> int:
        return len(self.targets)


def _as_float32(given: object, name: str) -> NDArray[np.float32]:
    """Turn numbers of any type into float32, where that changes none beyond rounding."""
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = given.float() if given.is_floating_point() else given  # numpy has no bfloat16
    array = np.asarray(given)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} are of type {array.dtype}, which holds no plain numbers: convert them to float32")
    if array.dtype.kind in "iu" and array.size and max(-int(array.min()), int(array.max())) > MOST_WHOLE:
        raise ValueError(f"{name} hold integers beyond 2^24, which float32 cannot tell apart: number them anew")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is named as that
        return array.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class SiteData:
    """One site's examples. `test` serves the final evaluation and nothing else.

    Raises:
        ValueError: if a part is something else.
    """

    train: Examples
    test: Examples
    validation: Examples | None = None

    def __post_init__(self) -> None:
        for name, examples in self.parts.items():
            if not isinstance(examples, Examples):
                raise ValueError(f"{name} is a {type(examples).__name__}: give Examples(features, targets)")

    @property
    def parts(self) -> dict[str, Examples]:
        """The examples by the part that they serve."""
        parts = {"train": self.train, "test": self.test}
        return parts if self.validation is None else parts | {"validation": self.validation}

    @property
    def monitored(self) -> tuple[Literal["train", "validation"], Examples]:
        """Name and give the examples on which each round measures the incoming model.

        Never the test examples: whoever watches the rounds and picks one by its metrics would be tuning on them.
        """
        return ("train", self.train) if self.validation is None else ("validation", self.validation)


@dataclass(frozen=True, slots=True)
class Feature:
    """A column and its public plausible bounds.

    The bounds come from knowledge of the field, never from the data: every party sees them, and a bound read off the
    data would publish the most extreme patient. A value outside them is clamped in the statistics only; the model sees
    it as it is.

    Raises:
        ValueError: if low is not below high.
    """

    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"feature {self.name}: low {self.low} is not below high {self.high}")


class Task(abc.ABC):
    """A model, the data it learns from, and the loss.

    Attributes:
        title: what is being predicted, for people.
        provenance: one honest sentence on where the data come from, shown in the report.
        needs_data: False when the data are embedded in an installed package, so that `load` gets no folder.
        validates: True when `load` gives validation examples, on which rounds are then measured instead of `train`.
        features: the columns to standardise with securely summed statistics; empty for no standardisation.
        loss_cap: an example's loss counts at most this in the metrics, since a sum needs a bound; how many are beyond
            is counted. Raise it for losses that are no cross entropy, such as squared errors.
    """

    title: ClassVar[str]
    provenance: ClassVar[str]
    needs_data: ClassVar[bool] = True
    validates: ClassVar[bool] = False
    features: ClassVar[tuple[Feature, ...]] = ()
    loss_cap: ClassVar[float] = LOSS_CAP

    @property
    def monitored(self) -> Literal["train", "validation"]:
        """Name the examples that rounds are measured on: of the task and not of a site's data, so that it is public."""
        return "validation" if self.validates else "train"

    @abc.abstractmethod
    def load(self, folder: Path | None, site: str) -> SiteData:
        """Read the examples of `site`, and of no other.

        Args:
            folder: where this site keeps the data set; None when `needs_data` is False.
            site: the site's name in the plan.

        Raises:
            DataError: if the data cannot be used.
        """

    @abc.abstractmethod
    def model(self) -> nn.Module:
        """Build the untrained model; it maps features (n, ...) to one logit per example, shape (n,) or (n, 1)."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each example, by default binary cross entropy.

        One value per example and not their mean, because the metrics sum it over sites.

        Args:
            logits: (n,).
            targets: (n,), each 0 or 1.

        Returns:
            (n,).
        """
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
