"""The global model as it travels: parameters and standardisation in one safetensors file (SPEC 5.4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ml_tasks.tabular import Standardisation, least_scale
from protocols.errors import BadMessage
from protocols.messages import COORDINATOR

HEADER_BYTES = 4096
"""More than the safetensors header of the four arrays and the clip take."""

MOST_ENTRY = 1e9
"""Larger entries are in no model that has learnt something; what they overflow to would depend on the data."""
_ROUNDED = 1e-5
"""What a mean or a scale may lose in float32, in parts."""


def shelf(training: str) -> str:
    """The owner of a training's models on the exchange: two trainings may have the same model, and one end first."""
    return f"{COORDINATOR}/{training}"


@dataclass(frozen=True, slots=True, eq=False)
class GlobalModel:
    """What the coordinator hands out for a sum.

    Attributes:
        vector: (d,) float32, the parameters.
        standardisation: the features', where the task names features.
        clip: (1,) float32, the sites' clip, where it adapts.
    """

    vector: NDArray[np.float32]
    standardisation: Standardisation | None = None
    clip: NDArray[np.float32] | None = None

    def to_bytes(self) -> bytes:
        """Serialise; the same model gives the same bytes, whose SHA-256 is in the context."""
        arrays = {"vector": self.vector}
        if self.standardisation is not None:
            arrays |= {"mean": self.standardisation.mean, "scale": self.standardisation.scale}
        if self.clip is not None:
            arrays["clip"] = self.clip
        return save(arrays)

    @classmethod
    def from_bytes(cls, content: bytes, *, parameters: int, features: int, adaptive: bool = False) -> "GlobalModel":
        """Parse a model and check its shapes; ``adaptive`` says whether it has a clip.

        Raises:
            BadMessage: naming the coordinator, if it is not a model of this shape.
        """
        try:
            arrays = load(content)
        except (SafetensorError, KeyError):  # the types that numpy does not have, such as bfloat16, are a KeyError
            raise BadMessage(COORDINATOR, "model", "the model is not a safetensors file") from None
        shapes = {name: array.shape for name, array in arrays.items()}
        bare = {"vector": (parameters,)} | ({"clip": (1,)} if adaptive else {})
        if shapes not in (bare, bare | {"mean": (features,), "scale": (features,)}):
            raise BadMessage(COORDINATOR, "model", "the model does not have the task's shapes")
        if any(array.dtype != np.float32 for array in arrays.values()):
            raise BadMessage(COORDINATOR, "model", "the model is not float32")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise BadMessage(COORDINATOR, "model", "the model holds NaN or infinity")
        if adaptive and not arrays["clip"][0] > 0:
            raise BadMessage(COORDINATOR, "model", "the model's clip is not above 0")
        scaling = Standardisation(arrays["mean"], arrays["scale"]) if "mean" in arrays else None
        return cls(arrays["vector"], scaling, arrays.get("clip"))


def check_model(model: GlobalModel, bounds: Sequence[tuple[float, float]]) -> None:
    """Check a model for what it says itself, which is public: a site works on no other (SPEC 5.4).

    Args:
        model: the incoming one, of the task's shapes.
        bounds: of each feature, (low, high).

    Raises:
        BadMessage: naming the coordinator: an entry is beyond 1e9, a mean beyond its feature's bounds, or a scale
            smaller than any that a sum of moments can give.
    """
    if model.vector.size and float(np.abs(model.vector).max()) > MOST_ENTRY:
        raise BadMessage(COORDINATOR, "model", f"an entry of the model is beyond {MOST_ENTRY:g}: it has diverged")
    if model.standardisation is None:
        return
    for mean, scale, (low, high) in zip(model.standardisation.mean, model.standardisation.scale, bounds, strict=True):
        slack = _ROUNDED * max(abs(low), abs(high))
        if not low - slack <= mean <= high + slack:
            raise BadMessage(COORDINATOR, "model", "a mean is beyond its feature's bounds")
        if not scale >= (1 - _ROUNDED) * least_scale(low, high):
            raise BadMessage(COORDINATOR, "model", "a scale is smaller than its feature's bounds allow")
