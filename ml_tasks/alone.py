"""A model that meets each unit of privacy by itself: what it makes of one depends on that one and on public things.

Kernels sum the rows of a batch in another order by where a row stands, a layer that draws gives each row other numbers,
and a module may remember what it has seen. Each of them would let a record move what is computed of another, and then
no clip bounds what the record moves (SPEC 12.4). So a unit is a batch of its own here: in memory of its own, on one
thread, with a seed of its own, before a model in the state in which it was built.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_tasks.averaging import load_vector
from ml_tasks.metrics import count
from ml_tasks.mixing import PLAIN, holdings, refuse_mixing
from ml_tasks.tabular import Standardisation, apply
from ml_tasks.task import Examples, Task
from ml_tasks.training import EVALUATION_SEED, predict, seeded, usual_device

CHUNK = 256
"""Rows of one unit on the device at once, at most."""
MODEL_SEED = 0
"""What a model is built with: whatever it draws then and the vector does not hold is public."""

Counter = Callable[[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]], dict[str, NDArray[np.float64]]]
"""Makes counts of logits, targets and losses."""
_log = logging.getLogger(__name__)
_ENDINGS = (KeyboardInterrupt, asyncio.CancelledError)  # somebody wants the work to end: no unit's fault


class LoneModel:
    """A task's model, which is as it was built whenever it meets a unit.

    Use it within ``meeting``.

    Args:
        task: gives model and loss.
        vector: (d,) the incoming global model.
        device: where to compute.
        training: whether layers such as dropout are at work.

    Raises:
        DataError: it is to be trained and has a module that mixes records or keeps statistics of them.
    """

    def __init__(self, task: Task, vector: NDArray[np.float32], device: torch.device, *, training: bool) -> None:
        self._task, self._vector, self._device, self._training = task, vector, device, training
        self._failed = 0
        self._build()
        if training:
            refuse_mixing(self._model)

    def outcome(
        self, features: NDArray[np.float32], targets: NDArray[np.float32], seed: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give logit and loss of one record, both (1,), NaN where the model or the loss raises.

        Args:
            features: (1, ...).
            targets: (1,).
            seed: what the model draws with, 0 <= seed < 2^64.
        """
        with self._forgiving(), torch.no_grad():
            self._meet(seed)
            logits, losses = predict(self._task, self._model, *self._own(features, targets))
            return logits.to("cpu", torch.float32).numpy(), losses.to("cpu", torch.float32).numpy()
        return np.full(1, np.nan, np.float32), np.full(1, np.nan, np.float32)

    def gradient(
        self, features: NDArray[np.float32], targets: NDArray[np.float32], seed: int
    ) -> NDArray[np.float64] | None:
        """Give the gradient of the summed loss of one unit's records, None where the model or the loss raises.

        Args:
            features: (m, ...) the unit's records, and nobody else's.
            targets: (m,).
            seed: what the model draws with, 0 <= seed < 2^64.

        Returns:
            (d,) in the order of ``to_vector``; 0 for what is no parameter, frozen, or not used.
        """
        with self._forgiving():
            self._meet(seed)
            total = np.zeros(len(self._vector))
            for start in range(0, len(targets), CHUNK):
                part = slice(start, start + CHUNK)
                _, losses = predict(self._task, self._model, *self._own(features[part], targets[part]))
                found = torch.autograd.grad(losses, self._parameters, torch.ones_like(losses), allow_unused=True)
                for place, one in zip(self._places, found, strict=True):
                    if one is not None:
                        total[place] += one.to("cpu", torch.float64).numpy().reshape(-1)
            return total
        return None

    def _build(self) -> None:
        _draw_from(MODEL_SEED, self._device)
        self._model = self._task.model().to(self._device).train(self._training)
        load_vector(self._model, self._vector)
        named = dict(self._model.named_parameters(remove_duplicate=False))  # tied ones are in the vector twice
        self._parameters, self._places, end = [], [], 0
        for name, entry in self._model.state_dict().items():
            if entry.is_floating_point():
                place, end = slice(end, end + entry.numel()), end + entry.numel()
                if name in named and named[name].requires_grad:
                    self._parameters.append(named[name])
                    self._places.append(place)
        self._built = _state(self._model)

    def _meet(self, seed: int) -> None:
        if not _same(_state(self._model), self._built):
            self._build()
        _draw_from(seed, self._device)

    def _own(self, features: NDArray[np.float32], targets: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        """Copies: kernels also sum in another order by where memory begins."""
        copies = (torch.from_numpy(features).clone(), torch.from_numpy(targets).clone())
        return copies[0].to(self._device), copies[1].to(self._device)

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """A unit that raises is that unit's matter: whatever it did to the model, the next meets a new one."""
        try:
            yield
        except _ENDINGS:
            raise
        except BaseException as error:
            self._failed += 1
            if self._failed == 1:  # the text may hold a record
                _log.warning("a unit counts as zero: the task raised %s", type(error).__name__)
            self._built = ([], [self._failed])


@contextlib.contextmanager
def meeting(device: torch.device) -> Iterator[None]:
    """Hold torch's generator, and compute on one thread: with more, sums are cut in other places.

    Args:
        device: where is computed.
    """
    with seeded(MODEL_SEED, device):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def evaluate_alone(
    task: Task,
    examples: Examples,
    vector: NDArray[np.float32],
    standardisation: Standardisation | None,
    counted: Counter = count,
    *,
    check_time: Callable[[], None] = lambda: None,
) -> dict[str, NDArray[np.float64]]:
    """Count as ``evaluate`` does, each record by itself, so that no record's counts move with another (SPEC 12.4).

    A record for which the model or the loss raises or gives NaN, or whose target cannot be counted, is not counted.

    Args:
        task: gives model and loss.
        examples: one record for each unit, of which there may be none.
        vector: (d,) the model.
        standardisation: that of all sites, or None.
        counted: makes counts of logits, targets and losses, each (n,); those of two records add up.
        check_time: called before each record; what it raises ends the work.
    """
    device, nobody = usual_device(), np.zeros(0, np.float32)
    features = np.ascontiguousarray(apply(examples.features, standardisation))
    targets = np.array(examples.targets)
    total = counted(nobody, nobody, nobody)
    with meeting(device):
        model = LoneModel(task, vector, device, training=False)
        for start in range(len(targets)):
            check_time()
            own = slice(start, start + 1)
            logit, loss = model.outcome(features[own], targets[own], EVALUATION_SEED)
            with contextlib.suppress(ValueError):
                for name, values in counted(logit, targets[own], loss).items():
                    total[name] = total[name] + values
    return total


def _draw_from(seed: int, device: torch.device) -> None:
    """``torch.manual_seed`` without its 150 microseconds of looking for devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


State = tuple[list[object], list[object]]


def _state(model: nn.Module) -> State:
    """What a model holds: objects that must stay the same ones, and values that must stay equal."""
    held: list[object] = []
    values: list[object] = []
    for module in model.modules():
        for one in holdings(module):
            if isinstance(one, PLAIN):
                values.append(one)
                continue
            held.append(one)
            if isinstance(one, Tensor):
                values.append(one._version)  # counts what was changed in place
            elif isinstance(one, np.ndarray):
                values.append(one.tobytes())
    return held, values


def _same(found: State, built: State) -> bool:
    return (
        len(found[0]) == len(built[0])
        and all(one is other for one, other in zip(found[0], built[0], strict=True))
        and found[1] == built[1]
    )
