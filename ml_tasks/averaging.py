"""Models as vectors, and the strategies that move the global vector by a sum of updates (SPEC 3.5).

A strategy sees sums over the sites and never one site's update: nothing else leaves a secure sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

CLIP_RATE = 0.2
"""How fast a clip adapts: Andrew et al.'s for all of their tasks."""


def check_model(model: object) -> None:
    """Check that a task's model can be flattened, before it is.

    Raises:
        ValueError: it is no module, has no parameters, or a layer whose size its first batch would give.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model gives a {type(model).__name__}: give a torch.nn.Module")
    for name, entry in model.state_dict().items():
        if is_lazy(entry):
            raise ValueError(f"{name} has no size before its first batch: give the layer its sizes, not a Lazy one")
    if not any(entry.numel() for entry in _entries(model)):
        raise ValueError("it has no parameters")


def to_vector(model: nn.Module) -> NDArray[np.float32]:
    """Flatten a model: every floating-point entry of its state dict, in order.

    Buffers such as a batch norm's running means are part of it, or the averaged model would predict with the initial
    ones. Integer entries (a batch norm's counter) are not: they have no mean.

    Returns:
        (d,) float32.
    """
    entries = [entry.detach().to("cpu", torch.float32).reshape(-1) for entry in _entries(model)]
    return np.asarray(torch.cat(entries).numpy())


def load_vector(model: nn.Module, vector: NDArray[np.float32]) -> None:
    """Write a vector made by `to_vector` into a model of the same architecture.

    Raises:
        ValueError: if the vector has another size than the model.
    """
    entries = _entries(model)
    sizes = [entry.numel() for entry in entries]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"a vector of shape {vector.shape} does not fit a model of {sum(sizes)} values")
    values = torch.tensor(vector)  # a copy: the model must not write into the caller's vector
    with torch.no_grad():
        for entry, part in zip(entries, torch.split(values, sizes), strict=True):
            entry.copy_(part.reshape(entry.shape))


def vector_parts(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each entry that `to_vector` flattens, in its order: with them, others can cut the vector."""
    return [(name, tuple(entry.shape)) for name, entry in model.state_dict().items() if entry.is_floating_point()]


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Federated averaging: the mean of the updates, weighted by numbers of examples (McMahan et al. 2017)."""

    def apply(
        self, vector: NDArray[np.float32], update_sum: NDArray[np.float64], weight_sum: float
    ) -> NDArray[np.float32]:
        """Give vector + update_sum / weight_sum, computed in float64.

        Args:
            vector: (d,) the incoming global model.
            update_sum: (d,) the sum over sites of weight * update.
            weight_sum: the sum over the same sites of weight.

        Raises:
            ValueError: if the weight is not positive or the shapes differ.
        """
        if not weight_sum > 0:  # written so that NaN is refused too
            raise ValueError(f"the summed weight is {weight_sum}, so there is no mean")
        if update_sum.shape != vector.shape:
            raise ValueError(f"a sum of shape {update_sum.shape} does not fit a model of shape {vector.shape}")
        return (vector.astype(np.float64) + update_sum / weight_sum).astype(np.float32)


@dataclass(frozen=True, slots=True)
class PrivateStep:
    """A step of DP-SGD: the noised sum of clipped gradients, divided by a public constant (Abadi et al. 2016).

    Never by the number of records that were sampled: that is a secret.

    Attributes:
        length: learning rate * clip / expected batch.
    """

    length: float

    def apply(self, vector: NDArray[np.float32], gradient_sum: NDArray[np.float64]) -> NDArray[np.float32]:
        """Give vector - length * gradient_sum, computed in float64.

        Args:
            vector: (d,) the incoming global model.
            gradient_sum: (d,) the noised sum, in units of the clip.

        Raises:
            ValueError: if the shapes differ.
        """
        if gradient_sum.shape != vector.shape:
            raise ValueError(f"a sum of shape {gradient_sum.shape} does not fit a model of shape {vector.shape}")
        return (vector.astype(np.float64) - self.length * gradient_sum).astype(np.float32)


@dataclass(frozen=True, slots=True)
class PrivateAverage:
    """The mean of clipped updates, weighted; of sums that are noised (McMahan et al. 2018, the clipped estimator).

    Attributes:
        clip: the updates' unit.
        least_weight: what a smaller summed weight is replaced by: noise may have left next to nothing of it.
    """

    clip: float
    least_weight: float

    def apply(
        self, vector: NDArray[np.float32], update_sum: NDArray[np.float64], weight_sum: float
    ) -> NDArray[np.float32]:
        """As `FedAvg.apply`, with the sum of the updates in units of the clip."""
        return FedAvg().apply(vector, self.clip * update_sum, max(weight_sum, self.least_weight))


def adapted(clip: float, within: float, quantile: float) -> float:
    """Move a clip towards the quantile of the updates' lengths (Andrew et al. 2021, geometric update).

    Args:
        clip: the one that was used.
        within: the part of the updates that it left whole, noised.
        quantile: the part that it should.

    Returns:
        The next, from 1e-6 to 1e6.
    """
    moved = clip * math.exp(-CLIP_RATE * (min(max(within, 0.0), 1.0) - quantile))
    return min(max(moved, 1e-6), 1e6)


def _entries(model: nn.Module) -> list[Tensor]:
    return [entry for entry in model.state_dict().values() if entry.is_floating_point()]
