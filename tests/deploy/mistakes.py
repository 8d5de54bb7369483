"""Tasks with the mistakes that their authors make, one each: what ``fedseal run`` says of them is tested by rows."""

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_tasks.task import DataError, Examples, Feature, SiteData, Task

SITES = ("ann", "bob", "cat")
ROWS, COLUMNS = 12, 5


class Sound(Task):
    """Five columns of which the first tells; the mistakes are made from this."""

    title = "Sound"
    provenance = "Synthetic numbers."
    needs_data = False

    def arrays(self, site: str, part: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        generator = np.random.default_rng([SITES.index(site), len(part)])
        features = generator.normal(size=(ROWS, COLUMNS))
        return features, (features[:, 0] > 0).astype(np.float64)

    def load(self, folder: Path | None, site: str) -> SiteData:
        return SiteData(*(Examples(*self.arrays(site, part)) for part in ("train", "test")))

    def model(self) -> nn.Module:
        return nn.Linear(COLUMNS, 1)


class LoadRaises(Sound):
    def load(self, folder: Path | None, site: str) -> SiteData:
        raise KeyError("lactate")


class LoadRefuses(Sound):
    def load(self, folder: Path | None, site: str) -> SiteData:
        raise DataError("admissions.csv: cannot be read: export it as numbers")


class LoadExits(Sound):
    def load(self, folder: Path | None, site: str) -> SiteData:
        sys.exit(3)


class LoadGivesTuple(Sound):
    def load(self, folder: Path | None, site: str) -> SiteData:
        return self.arrays(site, "train"), self.arrays(site, "test")  # type: ignore[return-value]


class LoadGivesArrays(Sound):
    def load(self, folder: Path | None, site: str) -> SiteData:
        return SiteData(*self.arrays(site, "train"))  # type: ignore[arg-type]


class LoadGivesText(Sound):
    def load(self, folder: Path | None, site: str) -> SiteData:
        features, targets = self.arrays(site, "train")
        return SiteData(Examples(features.astype(str), targets), Examples(features, targets))  # type: ignore[arg-type]


class ModelRaises(Sound):
    def model(self) -> nn.Module:
        raise RuntimeError("hidden size must be positive")


class ModelIsAttribute(Sound):
    model = nn.Linear(COLUMNS, 1)  # type: ignore[assignment]


class ModelIsNone(Sound):
    def model(self) -> nn.Module:
        return None  # type: ignore[return-value]


class NoParameters(Sound):
    def model(self) -> nn.Module:
        return nn.Flatten()


class Lazy(Sound):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1))


class Large(Sound):
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(COLUMNS, 4), nn.Linear(4, 1))


class NotLoadable(Sound):
    def model(self) -> nn.Module:
        class Model(nn.Linear):
            def load_state_dict(self, state_dict, strict=True, assign=False):  # type: ignore[no-untyped-def]
                raise ValueError("from checkpoints of version 2 only")

        return Model(COLUMNS, 1)


class OtherColumns(Sound):
    def model(self) -> nn.Module:
        return nn.Linear(COLUMNS + 1, 1)


class TwoOutputs(Sound):
    def model(self) -> nn.Module:
        return nn.Linear(COLUMNS, 2)


class LossRaises(Sound):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("boom in loss")


class LossIsMean(Sound):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().loss(logits, targets).mean()


class LossIsDetached(Sound):
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return super().loss(logits, targets).detach()


class Indices(Sound):
    """An embedding of columns that hold numbers of categories."""

    def arrays(self, site: str, part: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        features, targets = super().arrays(site, part)
        return np.clip(np.round(features) + 8, 0, 15).astype(np.int64), targets  # type: ignore[return-value]

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Embedding(16, 4), nn.Flatten(), nn.Linear(4 * COLUMNS, 1))


class HalfWeights(Sound):
    def model(self) -> nn.Module:
        return nn.Linear(COLUMNS, 1).to(torch.bfloat16)


class OneExample(Sound):
    """A batch norm, and one example at the first site."""

    def load(self, folder: Path | None, site: str) -> SiteData:
        data = super().load(folder, site)
        few = Examples(data.train.features[:1], data.train.targets[:1])
        return SiteData(few, data.test) if site == SITES[0] else data

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(COLUMNS, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


class SignedTargets(Sound):
    def arrays(self, site: str, part: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        features, _ = super().arrays(site, part)
        return features, np.where(np.arange(ROWS) < 4, -1.0, 1.0)


class MissingTargets(Sound):
    def arrays(self, site: str, part: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        features, targets = super().arrays(site, part)
        targets[3] = np.nan if (site, part) == ("bob", "train") else targets[3]
        return features, targets


class InfiniteFeatures(Sound):
    def arrays(self, site: str, part: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        features, targets = super().arrays(site, part)
        if (site, part) == ("bob", "train"):
            features[3:5, 1], features[4, 2] = np.inf, -np.inf
        return features, targets


class NamedInfiniteFeatures(InfiniteFeatures):
    features = tuple(Feature(name, -9.0, 9.0) for name in ("age", "lactate", "sodium", "urea", "pH"))


class TooFewFeatures(Sound):
    features = (Feature("age", 0.0, 1.0), Feature("lactate", 0.0, 1.0))


class NoExamples(Sound):
    def load(self, folder: Path | None, site: str) -> SiteData:
        none = Examples(np.zeros((0, COLUMNS)), np.zeros(0))
        return SiteData(none, none)


class NoTestExamples(Sound):
    def load(self, folder: Path | None, site: str) -> SiteData:
        data = super().load(folder, site)
        none = Examples(np.zeros((0, COLUMNS)), np.zeros(0))
        return SiteData(none if site == "bob" else data.train, none)


class NoTitle(Task):
    provenance = "Synthetic numbers."

    def load(self, folder: Path | None, site: str) -> SiteData:
        return Sound().load(folder, site)

    def model(self) -> nn.Module:
        return Sound().model()


class Printing(Sound):
    def load(self, folder: Path | None, site: str) -> SiteData:
        print("load was called")
        return super().load(folder, site)

    def model(self) -> nn.Module:
        print("model was called")
        return super().model()


class Tied(Sound):
    """Two layers that share their weights."""

    def model(self) -> nn.Module:
        first, second = nn.Linear(COLUMNS, COLUMNS), nn.Linear(COLUMNS, COLUMNS)
        second.weight = first.weight
        return nn.Sequential(first, second, nn.Linear(COLUMNS, 1))


class Odd(Sound):
    """Nothing that stops a training: one class only at a site, values beyond their bounds."""

    features = tuple(Feature(name, -4, 4) for name in ("age", "lactate", "sodium", "glucose", "pulse"))

    def arrays(self, site: str, part: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        features, targets = super().arrays(site, part)
        if part == "train" and site == "bob":
            features[:3, 1] = 4.5
        return features, targets if site != "cat" else np.zeros(ROWS)


class Unmeasured(Sound):
    """A value that is no measurement, at one site."""

    def arrays(self, site: str, part: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        features, targets = super().arrays(site, part)
        if site == "bob":
            features[3, 1] = 1e30
        return features, targets


class NamedUnmeasured(Unmeasured):
    features = Odd.features


class Uncapped(Sound):
    loss_cap = float("inf")
