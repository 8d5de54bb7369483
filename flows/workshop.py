"""Where a site's local work is done: the interface between a site and whatever runs the task's code (SPEC 6.9, 8).

A site hands over an order of plain values and gets arrays back. The order holds no key, and what fails on the way is
a ``WorkFailed`` whose reason stays at the site: nothing that leaves before a masked vector may tell of it (SPEC 1).
``flows.local_work`` does the work in this process; ``flows.sandbox`` in a locked child. Neither PyTorch nor a task is
imported here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flows.plan import Plan
from ml_tasks.layout import Sizes
from protocols.contexts import Purpose

Values = dict[str, NDArray[Any]]


class WorkFailed(Exception):
    """Local work that gave nothing: one line for the site's own log and its data steward, for nobody else.

    Attributes:
        in_full: with the line of the task's code and on what it failed, where that is known. A refusal to join quotes
            the reason, and so the place is not in it.
    """

    def __init__(self, reason: str, in_full: str = "") -> None:
        super().__init__(reason, in_full)
        self.in_full = in_full or reason

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """One piece of local work on an attempt's incoming model.

    Attributes:
        purpose: what is summed.
        step: ``moments``, ``train`` or ``evaluate``.
        round: its number, from which batches are drawn without privacy.
        model: the model's safetensors file.
        subset: 32 bytes that choose the examples where a site has more than the plan's bound.
    """

    purpose: Purpose
    step: str
    round: int
    model: bytes
    subset: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Worked:
    """What local work gives.

    Attributes:
        values: float arrays by segment.
        content: SHA-256 over the site's examples, 64 hex digits, which never leaves the site as it is.
    """

    values: Values
    content: str


@dataclass(frozen=True, slots=True)
class Described:
    """What a task is before it has read any data: how long its sums are, and its features' public bounds."""

    sizes: Sizes
    bounds: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a look at a site's data has found.

    Attributes:
        wrong: every reason why plan, task and data do not fit, in full; empty where they do.
        examples: how many there are of each part: train, test, and validation where the task has it.
        odd: what can be trained with and should be looked at, such as values outside of their declared bounds.
    """

    wrong: tuple[str, ...]
    examples: Mapping[str, int]
    odd: tuple[str, ...] = ()


class Workshop(Protocol):
    """Does one training's local work at one site, one order at a time."""

    def describe(self, limit_s: float) -> Described:
        """Import the task and describe it; reads no data.

        Raises:
            WorkFailed: the task cannot be used, or has not answered in time.
        """

    def check(self, limit_s: float) -> Checked:
        """Read the data and try the task on them.

        Raises:
            WorkFailed: the task's own code failed, or that could not be found out in time.
        """

    def work(self, order: WorkOrder, limit_s: float) -> Worked:
        """Do one piece of work.

        Raises:
            WorkFailed: it gave nothing, or not in time; nothing of it goes on.
        """

    def stop(self) -> None:
        """End whatever still runs; a later order starts anew."""


Workshops = Callable[[Plan, str, Path | None], Workshop]
"""Makes the workshop of a plan at a site (its name) whose data set lies in a folder."""


def steps_of(plan: Plan, purpose: Purpose) -> tuple[str, ...]:
    """The local work that a sum of this purpose takes, by step.

    With privacy no round is measured, since each measurement would be paid for.
    """
    match purpose:
        case "statistics":
            return ("moments",)
        case "training":
            return ("train", "evaluate") if plan.privacy.unit == "none" else ("train",)
        case "evaluation":
            return ("evaluate",)


def zeros(names: Sequence[tuple[str, int]]) -> Values:
    """The contribution of a site whose work has failed: nothing in every segment, (name, length)."""
    return {name: np.zeros(length) for name, length in names}
