"""What a task's sums are made of: which entries of the model are weights, which running statistics (SPEC 3.5).

Public, a function of the task's code alone, and the same at all parties. A batch norm's running variance of raw inputs
is 10^5 where no weight moves by more than 8: a bound that fits the one makes nonsense of the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ml_tasks.metrics import LOSS_CAP

if TYPE_CHECKING:  # it imports torch, which whoever checks a receipt need not wait for
    from torch import nn

    from ml_tasks.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How long the segments of a task's sums are.

    Attributes:
        weights: entries of the model vector that training moves.
        statistics: its other entries: buffers, such as running means and variances.
        tensors: how many tensors the vector is made of.
        features: how many features are standardised.
        loss_cap: an example's loss counts at most this.
    """

    weights: int
    statistics: int = 0
    tensors: int = 1
    features: int = 0
    loss_cap: float = LOSS_CAP

    @property
    def parameters(self) -> int:
        """The length of the model vector."""
        return self.weights + self.statistics


@dataclass(frozen=True, slots=True)
class Part:
    """A named tensor of the model vector; ``learnt`` where it is a weight."""

    name: str
    size: int
    learnt: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of a model vector in its order, and what else a task's sums depend on."""

    parts: tuple[Part, ...]
    features: int
    loss_cap: float

    @property
    def sizes(self) -> Sizes:
        """Their lengths."""
        return Sizes(
            weights=sum(part.size for part in self.parts if part.learnt),
            statistics=sum(part.size for part in self.parts if not part.learnt),
            tensors=len(self.parts),
            features=self.features,
            loss_cap=self.loss_cap,
        )

    def split(self, vector: NDArray[Any]) -> list[NDArray[Any]]:
        """Cut (d,) into its tensors, each flat; nothing is copied."""
        return np.split(vector, np.cumsum([part.size for part in self.parts])[:-1])


def layout_of(task: Task, model: nn.Module) -> Layout:
    """Describe a task's model: its floating-point entries in the order of ``averaging.to_vector``.

    Raises:
        ValueError: the task's cap of the loss is none.
    """
    if not 0 < task.loss_cap < math.inf:
        raise ValueError(f"loss_cap is {task.loss_cap}: give the largest loss of an example that still says something")
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    parts = tuple(
        Part(name, entry.numel(), name in weights)
        for name, entry in model.state_dict().items()
        if entry.is_floating_point()
    )
    return Layout(parts, len(task.features), float(task.loss_cap))
