"""Which module of a model mixes records, or remembers them: what record-level privacy cannot train (SPEC 12.4).

Known ones are found by their class, others by trying: a record's logit that moves with another record, by its gradient
or by its value, and a module that is not as it was before it met a record.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ml_tasks.task import DataError, Task
from ml_tasks.training import predict

TOLERANCE = 1e-3
"""What rounding may change of a module's output, in parts of its largest number."""
MIXES = "mixes records: what it makes of one depends on others"
PLAIN = (type(None), bool, int, float, str, bytes)
"""Attributes that are compared by what they are, not by which one."""
Hook = Callable[[nn.Module, tuple[object, ...], object], None]
_TORCHS_OWN = vars(nn.Module()).keys() - {"_parameters", "_buffers", "training"}


def refuse_mixing(model: nn.Module) -> None:
    """Refuse a model with a module of a class that is known to mix records, or to keep statistics of them.

    Raises:
        DataError: names the module.
    """
    for name, module in model.named_modules():
        if why := _known(module):
            raise not_alone(name, module, why)


def refuse_found_mixing(task: Task, model: nn.Module, features: Tensor, targets: Tensor) -> None:
    """Refuse a model in which a record's logit moves with another record of its batch.

    Args:
        task: gives the loss.
        model: on the CPU, with parameters that are not all zero.
        features: (n, ...), n at least 2, of different records.
        targets: (n,).

    Raises:
        DataError: names the innermost module that mixes them.
    """
    model.train()
    with _traced(model) as calls:
        given = features.clone().requires_grad_()
        logits, _ = predict(task, model, given, targets)
    if _gradients_mix(given, logits):
        raise _name(model, [call for call in calls if _gradients_mix(call.given, call.made)], MIXES)
    for training in (False, True):
        model.train(training)
        if training and _draws(task, model, features, targets):
            continue  # together and alone differ by what is drawn
        with torch.no_grad(), _traced(model) as calls:
            together, _ = predict(task, model, features, targets)
        for row in range(len(targets)):
            with torch.no_grad(), _traced(model) as lone:
                alone, _ = predict(task, model, features[row : row + 1].clone(), targets[row : row + 1])
            if not _near(together[row : row + 1], alone):
                pairs = zip(calls, lone, strict=False)
                raise _name(model, [call for call, own in pairs if _values_mix(call, own, row)], MIXES)


def refuse_memory(task: Task, model: nn.Module, features: Tensor, targets: Tensor) -> None:
    """Refuse a model of which a module is not as it was after it has met a record.

    What a module makes for itself at its first call, such as a table of positions, is not refused.

    Args:
        task: gives the loss.
        model: on the CPU.
        features: (n, ...), n at least 2.
        targets: (n,).

    Raises:
        DataError: names the module.
    """
    model.train()
    before: dict[str, list[object]] = {}
    for row in range(len(targets)):
        _, losses = predict(task, model, features[row : row + 1].clone(), targets[row : row + 1])
        torch.autograd.grad(losses.sum(), [one for one in model.parameters() if one.requires_grad], allow_unused=True)
        after = {name: [_contents(one) for one in holdings(module)] for name, module in model.named_modules()}
        for name, module in model.named_modules():
            if name in before and before[name] != after[name]:
                raise not_alone(name, module, "keeps something of each record that it meets: a counter, or a buffer")
        before = after


def refuse_unsteady(task: Task, model: nn.Module, features: Tensor, targets: Tensor) -> None:
    """Refuse a model that makes two things of one record, with the same draws of torch's generator.

    Args:
        task: gives the loss.
        model: on the CPU.
        features: (n, ...), n at least 1.
        targets: (n,).

    Raises:
        DataError: names the innermost module that does.
    """
    model.train()
    twice = []
    for _ in range(2):
        torch.default_generator.manual_seed(0)
        with torch.no_grad(), _traced(model) as calls:
            logit, _ = predict(task, model, features[:1].clone(), targets[:1])
        twice.append((logit, calls))
    (first, before), (second, after) = twice
    if not torch.equal(first, second):
        pairs = zip(before, after, strict=False)
        found = [one for one, two in pairs if torch.equal(one.given, two.given) and not torch.equal(one.made, two.made)]
        raise _name(
            model,
            found,
            "makes two things of one record: it draws from elsewhere than torch's generator, or keeps state outside",
        )


def not_alone(name: str, module: nn.Module, why: str) -> DataError:
    """The error that names a module and says why it cannot be trained.

    Args:
        name: of the module in its model, empty for the model itself.
        module: for its class.
        why: what it does.
    """
    which = f"its module {name} ({type(module).__name__})" if name else f"the model itself ({type(module).__name__})"
    return DataError(f"this model cannot be trained with record-level privacy: {which} {why}")


def holdings(module: nn.Module) -> list[object]:
    """What a module itself holds, its submodules apart: parameters, buffers, and the attributes that its author made.

    Lists, dictionaries and the like come before what is in them.
    """
    found: list[object] = []
    for name, one in vars(module).items():
        if name not in _TORCHS_OWN:
            _unfold(one, found, depth=8)
    return found


def _unfold(thing: object, found: list[object], depth: int) -> None:
    found.append(thing)
    if depth and isinstance(thing, dict | list | tuple | set | deque):
        for one in thing.values() if isinstance(thing, dict) else thing:
            _unfold(one, found, depth - 1)


def _known(module: nn.Module) -> str:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "mixes records and keeps running statistics: take GroupNorm or LayerNorm"
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
        return "keeps running statistics: take track_running_stats=False"
    if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Softmin) and module.dim == 0:
        return "mixes records: dimension 0 is theirs"
    return ""


@dataclass(frozen=True, slots=True)
class _Call:
    """What a module was given and has made, where both hold a row for each record."""

    name: str
    given: Tensor
    made: Tensor


@contextlib.contextmanager
def _traced(model: nn.Module) -> Iterator[list[_Call]]:
    """Keep the calls of all modules, in the order in which they end: inner ones first."""
    calls: list[_Call] = []

    def keep(name: str) -> Hook:
        def hook(module: nn.Module, given: tuple[object, ...], made: object) -> None:
            first = next((one for one in given if isinstance(one, Tensor)), None)
            made = made[0] if isinstance(made, tuple) and made else made
            if first is not None and isinstance(made, Tensor) and first.ndim and made.ndim and len(first) == len(made):
                calls.append(_Call(name, first, made))

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _gradients_mix(given: Tensor, made: Tensor) -> bool:
    """Whether a row of what was made has a gradient in another row of what was given."""
    if not (given.requires_grad and made.requires_grad and len(given) == len(made)):
        return False
    weights = torch.linspace(1.0, 2.0, made[0].numel(), dtype=made.dtype).reshape(made[0].shape)
    for row in range(len(made)):
        with contextlib.suppress(RuntimeError):  # changed in place since
            (found,) = torch.autograd.grad((made[row] * weights).sum(), given, retain_graph=True, allow_unused=True)
            if found is not None and any(found[other].any() for other in range(len(given)) if other != row):
                return True
    return False


def _values_mix(together: _Call, alone: _Call, row: int) -> bool:
    """Whether a module was given the same for a record, and has made another thing of it."""
    own = slice(row, row + 1)
    return _near(together.given[own], alone.given) and not _near(together.made[own], alone.made)


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    most = float(torch.maximum(one.abs().max(), other.abs().max())) if one.numel() else 0.0
    return bool(torch.allclose(one.double(), other.double(), rtol=0.0, atol=TOLERANCE * most, equal_nan=True))


def _draws(task: Task, model: nn.Module, features: Tensor, targets: Tensor) -> bool:
    before = torch.get_rng_state()
    with torch.no_grad():
        predict(task, model, features, targets)
    return not torch.equal(before, torch.get_rng_state())


def _name(model: nn.Module, found: list[_Call], why: str) -> DataError:
    name = found[0].name if found else ""
    return not_alone(name, model.get_submodule(name), why)


def _contents(thing: object) -> object:
    if isinstance(thing, Tensor):
        return thing.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(thing, np.ndarray):
        return thing.tobytes()
    return thing if isinstance(thing, PLAIN) else id(thing)
