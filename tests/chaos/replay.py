"""What a training must have come to: its recorded survivor sets over the recorded vectors, in plain arithmetic."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.model import GlobalModel
from ml_tasks.tabular import standardisation
from ml_tasks.task import Task
from protocols.contexts import AttemptContext
from protocols.encoding import Segment
from protocols.receipt import Receipt


def replay(receipt: Receipt, records: Path, task: Task, initial: NDArray[np.float32]) -> str:
    """Make every sum and every model of a training anew; gives the digest of the last model.

    The integers are Python's, the sum is reduced once, and nothing of ``protocols`` but its tables is used.

    Raises:
        AssertionError: a sum or a model of the receipt is another one.
    """
    model = GlobalModel(initial)
    for entry in receipt.rounds:
        assert entry.context.model == digest(model), f"{entry.context.purpose} {entry.context.round}: another model"
        vectors = [masked_by(records, site, entry.context) for site in entry.survivors]
        sums = {
            segment.name: [sum(column) for column in zip(*columns, strict=True)]
            for segment, *columns in zip(
                entry.context.segments, *(signed(one, entry.context) for one in vectors), strict=True
            )
        }
        wire = b"".join(
            (total % 2**segment.bits).to_bytes(segment.bits // 8, "little")
            for segment in entry.context.segments
            for total in sums[segment.name]
        )
        assert hashlib.sha256(wire).hexdigest() == entry.sum, f"{entry.context.purpose} {entry.context.round}: the sum"
        floats = {one.name: np.array(sums[one.name], np.float64) / one.scale for one in entry.context.segments}
        model = next_model(entry.context, model, floats, task)
        assert entry.model == digest(model), f"{entry.context.purpose} {entry.context.round}: the next model"
    return digest(model)


def next_model(
    context: AttemptContext, model: GlobalModel, sums: dict[str, NDArray[np.float64]], task: Task
) -> GlobalModel:
    """Standardise, average, or leave the model as it is."""
    match context.purpose:
        case "statistics":
            return GlobalModel(model.vector, standardisation(sums["moments"], task.features))
        case "training":
            moved = model.vector.astype(np.float64) + sums["update"] / sums["weight"][0]
            return GlobalModel(moved.astype(np.float32), model.standardisation)
        case "evaluation":
            return model


def masked_by(records: Path, site: str, context: AttemptContext) -> bytes:
    """The one vector that a site has masked in a context."""
    (path,) = (records / site / context.digest).iterdir()
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == path.name
    return content


def signed(vector: bytes, context: AttemptContext) -> list[list[int]]:
    """A vector's elements by segment, as signed integers."""
    found, start = [], 0
    for segment in context.segments:
        found.append([element(vector, start + place * segment.bits // 8, segment) for place in range(segment.length)])
        start += segment.length * segment.bits // 8
    assert start == len(vector)
    return found


def element(vector: bytes, start: int, segment: Segment) -> int:
    """One little-endian element."""
    return int.from_bytes(vector[start : start + segment.bits // 8], "little", signed=True)


def digest(model: GlobalModel) -> str:
    """SHA-256 of a model's file."""
    return hashlib.sha256(model.to_bytes()).hexdigest()
