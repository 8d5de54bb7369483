"""Does each unit stand alone? What a steward and a plan check before a task is trained privately (SPEC 12.4).

``clipped_sum`` computes each unit by itself whatever the model does. But a model whose modules mix records then learns
something else than its author meant, and one that keeps state or draws elsewhere may carry a record to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ml_tasks.alone import evaluate_alone
from ml_tasks.averaging import load_vector, to_vector
from ml_tasks.metrics import counts
from ml_tasks.mixing import not_alone, refuse_found_mixing, refuse_memory, refuse_mixing, refuse_unsteady
from ml_tasks.private import clipped_sum, count_units, one_each, units
from ml_tasks.tabular import Standardisation, apply, from_bounds
from ml_tasks.task import DataError, Examples, Task
from ml_tasks.training import predict, seeded

WHOLE = tuple(count.name for count in counts() if count.integral)
"""The counts that are whole numbers: their sums are the same in any order, bit for bit."""
TRIED = 6
"""Units that are computed together and one by one."""
SEED = 12


def check_stands_alone(
    task: Task, examples: Examples | None = None, *, features_shape: Sequence[int] | None = None
) -> None:
    """Check that what a unit adds to a private sum depends on that unit and on public things alone.

    A few units are computed together and one by one, in two orders, which must give the same bits; modules that mix
    records or keep something of them are refused by name. Made examples are normal numbers, or zeros and ones where
    the task takes no others; a task that takes neither, or whose features' shape is not known, is checked by the
    classes of its modules alone, unless real examples are given.

    Args:
        task: what is to be trained.
        examples: a site's; the first few units are tried.
        features_shape: of one record, where neither examples nor ``task.features`` tell it.

    Raises:
        DataError: one line that names the module, without anything of a record.
    """
    cpu = torch.device("cpu")
    with seeded(SEED, cpu):
        model = task.model()
        refuse_mixing(model)
        for parameter in model.parameters():  # a model that starts at zero says nothing of its records
            parameter.data += 0.1 * torch.randn_like(parameter)
        vector = to_vector(model)
    for tried, scaling, real in _examples(task, examples, features_shape):
        if not real and not _takes(task, vector, tried):
            continue
        _check_modules(task, vector, one_each(tried), scaling)
        _check_bits(task, vector, tried, scaling)
        if not real:
            break


def _examples(
    task: Task, examples: Examples | None, shape: Sequence[int] | None
) -> Iterator[tuple[Examples, Standardisation | None, bool]]:
    """Examples to try, how to scale them, and whether they are real."""
    if examples is not None and len(examples):
        yield _first(examples), from_bounds(task.features) if task.features else None, True
        shape = examples.features.shape[1:]
    elif task.features:
        shape = (len(task.features),)
    if shape is not None:
        generator = np.random.default_rng(SEED)
        groups = np.arange(TRIED + 2) % TRIED  # two units of two records
        targets = (groups % 2).astype(np.float32)
        normal = generator.normal(size=(len(groups), *shape)).astype(np.float32)
        yield Examples(normal, targets, groups), None, False
        yield Examples((normal > 0).astype(np.float32), targets, groups), None, False


def _first(examples: Examples) -> Examples:
    rows = units(examples) < TRIED
    groups = None if examples.groups is None else examples.groups[rows]
    return Examples(examples.features[rows], examples.targets[rows], groups)


def _takes(task: Task, vector: NDArray[np.float32], examples: Examples) -> bool:
    """Whether the task computes such numbers at all."""
    with seeded(SEED, torch.device("cpu")), torch.no_grad():
        model = task.model()
        load_vector(model, vector)
        try:
            predict(task, model, torch.tensor(examples.features), torch.tensor(examples.targets))
        except Exception:
            return False
    return True


def _check_modules(
    task: Task, vector: NDArray[np.float32], examples: Examples, scaling: Standardisation | None
) -> None:
    features, targets = torch.tensor(apply(examples.features, scaling)), torch.tensor(examples.targets)
    for check in (refuse_memory, refuse_unsteady, refuse_found_mixing):
        with seeded(SEED, torch.device("cpu")):
            model = task.model()
            load_vector(model, vector)
            try:
                check(task, model, features, targets)
            except DataError:
                raise
            except ValueError as error:
                raise DataError(f"this task cannot be trained with record-level privacy: {error}") from None
            except Exception as error:
                raise not_alone("", model, f"raises {type(error).__name__} for a few records") from None


def _check_bits(task: Task, vector: NDArray[np.float32], examples: Examples, scaling: Standardisation | None) -> None:
    """The sum of units must be that of the units one by one, in any order."""
    number, members = count_units(examples), units(examples)
    backwards = np.argsort(-members, kind="stable")
    turned = Examples(examples.features[backwards], examples.targets[backwards], number - 1 - members[backwards])

    def summed(tried: Examples, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        counted = evaluate_alone(task, one_each(_chosen(tried, chosen)), vector, scaling)
        gradient = clipped_sum(task, tried, chosen, vector, scaling, 1.0)
        return np.concatenate([gradient, *(counted[name] for name in WHOLE)])

    everyone = np.ones(number, np.bool_)
    one_by_one = sum(summed(examples, np.arange(number) == unit) for unit in range(number))
    if not all(np.array_equal(one_by_one, summed(tried, everyone)) for tried in (examples, turned)):
        raise not_alone(
            "",
            task.model(),
            "makes another thing of a record when it has met others: it, or the task's loss, keeps state outside of "
            "its modules",
        )


def _chosen(examples: Examples, chosen: NDArray[np.bool_]) -> Examples:
    rows = chosen[units(examples)]
    groups = None if examples.groups is None else examples.groups[rows]
    return Examples(examples.features[rows], examples.targets[rows], groups)
