"""Local training and evaluation at one site (SPEC 3.5): model vector and examples in, update and counts out.

Everything is a function of its arguments: the same seed gives the same bits on the same machine.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.sgd import sgd

from ml_tasks.averaging import check_model, load_vector, to_vector
from ml_tasks.layout import Layout, layout_of
from ml_tasks.metrics import count
from ml_tasks.noised_metrics import Counting, count_noised
from ml_tasks.tabular import Standardisation, apply
from ml_tasks.task import Examples, Task

EVALUATION_BATCH = 1024  # examples held on the device at once
EVALUATION_SEED = 0  # a model that draws while it predicts still gives the same counts twice

# Layers such as dropout, and every initialisation, draw from torch's global generator, of which a process has one. In
# local mode several sites train in threads of one process: whoever draws first would change what the others get. So
# whatever may draw holds this lock, seeds the global generator and puts it back.
_global_generator = threading.Lock()


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """What a site does with the global model in one round, with plain SGD.

    Args:
        steps: SGD steps per round.
        batch_size: examples per step; a site with fewer uses all of them.
        learning_rate: of SGD, as are momentum and weight_decay. The momentum starts at zero in each round.

    Raises:
        ValueError: if a number is out of range.
    """

    steps: int
    batch_size: int
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ValueError("steps, batch_size and learning_rate must be positive")
        if not 0 <= self.momentum < 1 or not self.weight_decay >= 0:
            raise ValueError("momentum must be in [0, 1) and weight_decay at least 0")


def initial_vector(task: Task, seed: int) -> NDArray[np.float32]:
    """Initialise the task's model from `seed`, 0 <= seed < 2^64, and flatten it.

    Raises:
        ValueError: if there is nothing to flatten (see `check_model`).
    """
    with seeded(seed, torch.device("cpu")):
        model = task.model()
    check_model(model)
    return to_vector(model)


def describe(task: Task) -> Layout:
    """Say what the task's sums are made of; what its model draws is drawn from a seed of its own.

    Raises:
        ValueError: if there is nothing to flatten (see `check_model`), or the cap of the loss is none.
    """
    with seeded(EVALUATION_SEED, torch.device("cpu")):
        model = task.model()
    check_model(model)
    return layout_of(task, model)


def train(
    task: Task,
    examples: Examples,
    vector: NDArray[np.float32],
    standardisation: Standardisation | None,
    settings: LocalTraining,
    seed: int,
    check_time: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """Train the global model on one site's examples and give the update: local vector after minus before.

    Args:
        vector: (d,) the incoming global model.
        standardisation: that of all sites, or None where the task names no features.
        seed: 0 <= seed < 2^64; a different one per site and round, or all rounds would see the same batches.
        check_time: called before each step; may raise to end the training.

    Returns:
        (d,); zero where there is nothing to learn from.

    Raises:
        FloatingPointError: if the training diverged.
        ValueError: if the model or the loss does not give one value per example.
    """
    if len(examples) == 0:
        return np.zeros_like(vector)
    device = usual_device()
    features = torch.tensor(apply(examples.features, standardisation), device=device)
    targets = torch.tensor(examples.targets, device=device)
    with seeded(seed, device):
        model = task.model().to(device)
        load_vector(model, vector)
        model.train()
        momenta: dict[Tensor, Tensor | None] = dict.fromkeys(model.parameters())
        batches = _batches(len(examples), settings.batch_size, torch.Generator().manual_seed(seed))
        for batch in itertools.islice(batches, settings.steps):
            check_time()
            rows = batch.to(device)
            model.zero_grad()
            _, losses = predict(task, model, features[rows], targets[rows])
            torch.autograd.backward(losses.mean())
            _descend(momenta, settings)
    update = to_vector(model) - vector
    if not np.isfinite(update).all():
        raise FloatingPointError("local training diverged: lower the learning rate, or look for infinite values")
    return update


def evaluate(
    task: Task,
    examples: Examples,
    vector: NDArray[np.float32],
    standardisation: Standardisation | None,
    counting: Counting | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Count how the model of `vector` does on one site's examples, of which there may be none (see `metrics.count`).

    Args:
        counting: for a sum that will be noised, how to count (see `noised_metrics.count_noised`).

    Raises:
        ValueError: if the model or the loss does not give one finite value per example.
    """
    device = usual_device()
    features = torch.tensor(apply(examples.features, standardisation))
    targets = torch.tensor(examples.targets)
    logits, losses = torch.zeros(len(examples)), torch.zeros(len(examples))
    with seeded(EVALUATION_SEED, device), torch.no_grad():
        model = task.model().to(device)
        load_vector(model, vector)
        model.eval()
        for start in range(0, len(examples), EVALUATION_BATCH):
            rows = slice(start, start + EVALUATION_BATCH)
            logits[rows], losses[rows] = predict(task, model, features[rows].to(device), targets[rows].to(device))
    if counting is not None:
        return count_noised(logits.numpy(), examples.targets, losses.numpy(), counting)
    return count(logits.numpy(), examples.targets, losses.numpy(), task.loss_cap)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Have whatever draws from torch's global generator draw from ``seed``, alone, and put it back.

    Sums are made in one order there: on CUDA some come as the threads do, unless torch is told. Where it knows no such
    way, it warns.
    """
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with _global_generator, torch.random.fork_rng(devices):
        before = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode(max(before, 1))  # 1: warn
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)


@torch.no_grad()
def _descend(momenta: dict[Tensor, Tensor | None], settings: LocalTraining) -> None:
    """A step of ``torch.optim.SGD``, whose class loads torch's compiler: a second, and 800 modules, at each site.

    A parameter that the batch has not used stays as it is, and so does its momentum.
    """
    gradients = {one: one.grad for one in momenta if one.grad is not None}
    buffers = [momenta[one] for one in gradients]
    sgd(
        list(gradients),
        list(gradients.values()),
        buffers,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        lr=settings.learning_rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )
    momenta.update(zip(gradients, buffers, strict=True))


def _batches(examples: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffle, cut into whole batches, and start again, for ever.

    The rest of an epoch is left out: a batch of one would weigh its example most, and stop a batch norm. The next
    shuffle leaves out others.
    """
    size = min(batch_size, examples)
    while True:
        order = torch.randperm(examples, generator=generator)
        yield from torch.split(order[: examples // size * size], size)


def predict(task: Task, model: nn.Module, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Give each example's logit and loss, both (n,).

    Raises:
        ValueError: if the model or the loss does not give one value per example.
    """
    output = model(features)
    if output.numel() != len(targets):
        raise ValueError(f"the model gives {tuple(output.shape)} for {len(targets)} examples, not one logit for each")
    logits = output.reshape(-1)
    losses = task.loss(logits, targets)
    if losses.shape != targets.shape:
        raise ValueError(f"the loss gives {tuple(losses.shape)} for {len(targets)} examples, not one value for each")
    return logits, losses


def usual_device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
