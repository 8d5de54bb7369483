"""The global model as it travels: parameters and standardisation in one safetensors file (SPEC 5.4)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ml_tasks.tabular import Standardisation
from protocols.errors import BadMessage
from protocols.messages import COORDINATOR

HEADER_BYTES = 4096
"""More than the safetensors header of the three arrays takes."""


@dataclass(frozen=True, slots=True, eq=False)
class GlobalModel:
    """The parameters, shape (d,) float32, and the features' standardisation where the task names features."""

    vector: NDArray[np.float32]
    standardisation: Standardisation | None = None

    def to_bytes(self) -> bytes:
        """Serialise; the same model gives the same bytes, whose SHA-256 is in the context."""
        arrays = {"vector": self.vector}
        if self.standardisation is not None:
            arrays |= {"mean": self.standardisation.mean, "scale": self.standardisation.scale}
        return save(arrays)

    @classmethod
    def from_bytes(cls, content: bytes, *, parameters: int, features: int) -> "GlobalModel":
        """Parse a model and check its shapes.

        Raises:
            BadMessage: naming the coordinator, if it is not a model of this shape.
        """
        try:
            arrays = load(content)
        except SafetensorError:
            raise BadMessage(COORDINATOR, "model", "the model is not a safetensors file") from None
        shapes = {name: array.shape for name, array in arrays.items()}
        bare = {"vector": (parameters,)}
        if shapes not in (bare, bare | {"mean": (features,), "scale": (features,)}):
            raise BadMessage(COORDINATOR, "model", "the model does not have the task's shapes")
        if any(array.dtype != np.float32 for array in arrays.values()):
            raise BadMessage(COORDINATOR, "model", "the model is not float32")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise BadMessage(COORDINATOR, "model", "the model holds NaN or infinity")
        scaling = Standardisation(arrays["mean"], arrays["scale"]) if "mean" in arrays else None
        return cls(arrays["vector"], scaling)
