"""Clipped gradients per record or per patient: the ML layer's half of differential privacy (SPEC 12; DP-SGD).

What leaves here is a sum to which no record, or no group of records, adds a vector longer than 1: Abadi et al. 2016,
with the noise left to whoever adds over the sites. Opacus computes a gradient for each example (extra ``dp``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_tasks.averaging import PrivateStep, load_vector
from ml_tasks.tabular import Standardisation, apply
from ml_tasks.task import DataError, Examples, Task
from ml_tasks.training import predict, seeded, usual_device

CHUNK = 256
"""Examples whose gradients are held at once, at most."""
HELD = 2**28
"""Numbers in the gradients that are held at once, about: a gradient takes as much memory as the model."""


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
) -> NDArray[np.float64]:
    """Add up the chosen units' gradients, each clipped to length ``clip`` and divided by it.

    A unit is a record or a group: the gradients of a group's records are added before they are clipped, so that a
    patient counts once, however many stays there are.

    Args:
        task: gives model and loss.
        examples: the site's.
        chosen: (units,) which units take part.
        vector: (d,) the incoming global model.
        standardisation: that of all sites, or None.
        clip: the longest gradient, above 0.

    Returns:
        (d,) in the order of ``to_vector``; 0 for what is no parameter.

    Raises:
        FloatingPointError: a gradient is NaN or infinite.
        DataError: the model has a layer that mixes examples, or that Opacus does not know.
    """
    from opacus.grad_sample import GradSampleModule

    members = units(examples)
    rows = np.flatnonzero(chosen[members])
    if rows.size == 0:
        return np.zeros(len(vector))
    rows = rows[np.argsort(members[rows], kind="stable")]
    features = torch.tensor(apply(examples.features[rows], standardisation))
    targets = torch.tensor(examples.targets[rows])
    ends = np.flatnonzero(np.diff(members[rows], append=-1)) + 1  # a unit's rows are next to each other
    device = usual_device()
    with seeded(0, device):
        model = _checked_model(task, vector, device)
        hooked = GradSampleModule(model, loss_reduction="sum")
        total, pending = (torch.zeros(len(vector), dtype=torch.float64, device=device) for _ in range(2))
        chunk = min(CHUNK, max(1, HELD // len(vector)))
        for start in range(0, len(rows), chunk):
            part = slice(start, min(start + chunk, len(rows)))
            gradients = _gradients(task, model, hooked, features[part].to(device), targets[part].to(device))
            if not torch.isfinite(gradients).all():
                raise FloatingPointError("a gradient is NaN or infinite")
            begin = start
            for end in [*ends[(ends > start) & (ends <= part.stop)], part.stop]:
                pending += gradients[begin - start : end - start].sum(0, dtype=torch.float64)
                if end in ends:
                    total += pending / torch.linalg.vector_norm(pending).clamp(min=clip)
                    pending.zero_()
                begin = end
    return np.asarray(total.cpu().numpy())


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
) -> NDArray[np.float32]:
    """Train a site's own model by DP-SGD, with all of the noise in each step (Abadi et al. 2016).

    Args:
        task, examples, vector, standardisation, clip: as in ``clipped_sum``.
        steps: how many.
        length: of a step: learning rate * clip / expected batch.
        choose: samples the units of a step, given how many there are.
        noise: adds a step's noise to the sum of its gradients, in units of the clip.

    Returns:
        (d,) the trained vector minus the incoming one.

    Raises:
        FloatingPointError, DataError: as in ``clipped_sum``.
    """
    trained, present = vector, count_units(examples)
    for _ in range(steps):
        total = clipped_sum(task, examples, choose(present), trained, standardisation, clip)
        trained = PrivateStep(length).apply(trained, noise(total))
    return trained - vector


def _checked_model(task: Task, vector: NDArray[np.float32], device: torch.device) -> nn.Module:
    from opacus.validators import ModuleValidator

    model = task.model().to(device)
    if errors := ModuleValidator.validate(model, strict=False):
        raise DataError(f"this model cannot be trained with record-level privacy: {errors[0]}")
    load_vector(model, vector)
    return model.train()


def _gradients(task: Task, model: nn.Module, hooked: nn.Module, features: Tensor, targets: Tensor) -> Tensor:
    """The gradient of each example's loss, (n, d), with zeros where the vector holds no parameter."""
    hooked.zero_grad(set_to_none=True)
    _, losses = predict(task, hooked, features.requires_grad_(), targets)  # Opacus' hooks warn without
    torch.autograd.backward(losses.sum())
    found = {name: getattr(one, "grad_sample", None) for name, one in model.named_parameters()}  # Opacus' attribute
    parts = [
        torch.zeros(len(targets), entry.numel(), device=targets.device)
        if (gradient := found.get(name)) is None  # a buffer, frozen, or not used
        else gradient.reshape(len(targets), -1)
        for name, entry in model.state_dict().items()
        if entry.is_floating_point()
    ]
    return torch.cat(parts, dim=1).detach()
