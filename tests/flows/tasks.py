"""Tiny tasks on synthetic data, for tests of the flows: they take milliseconds and fail in the ways that tasks fail."""

import hashlib
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ml_tasks.task import DataError, Examples, Feature, SiteData, Task

SITES = ("ann", "bob", "cat", "dan")
LEAK = "PATIENT-4711-HAS-GOUT"


class Tiny(Task):
    """Two features, of which the first tells; three to six examples a site."""

    title = "Tiny"
    provenance = "Synthetic numbers."
    needs_data = False
    features = (Feature("first", -4.0, 4.0), Feature("second", -4.0, 4.0))

    def load(self, folder: Path | None, site: str) -> SiteData:
        seed = int.from_bytes(hashlib.sha256(site.encode()).digest()[:4], "little")
        generator = np.random.default_rng(seed)
        features = generator.normal(size=(12 + seed % 7, 2)).astype(np.float32)
        targets = (features[:, 0] > 0).astype(np.float32)
        return SiteData(Examples(features[4:], targets[4:]), Examples(features[:4], targets[:4]))

    def model(self) -> nn.Module:
        return nn.Linear(2, 1)


class Unused(nn.Linear):
    """A layer whose parameters nothing uses."""

    def forward(self, given: Tensor) -> Tensor:
        return given


class Bare(Tiny):
    """Without features to standardise: no statistics round."""

    features = ()


class Mixing(Tiny):
    """A model in which a record's output depends on the others of its batch."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


class Diverging(Tiny):
    """A loss that is NaN at one site only."""

    def load(self, folder: Path | None, site: str) -> SiteData:
        data = super().load(folder, site)
        if site == "cat":
            data.train.targets[:] = np.nan
        return data


class Crashing(Tiny):
    """A loss that raises, with a record in its text."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError(LEAK)


class Stop(BaseException):
    """No ``Exception``: what a library raises to get past whoever catches those."""


class Stopping(Tiny):
    """A loss that stops, with a record in what it raises."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise Stop(LEAK)


class Broken(Tiny):
    """A table that one site cannot read."""

    def load(self, folder: Path | None, site: str) -> SiteData:
        if site == "bob":
            raise DataError("table.csv: line 3 has 4 columns, not 14: mend the file")
        return super().load(folder, site)


class RawNorm(Tiny):
    """Laboratory values in raw units, about 5,000, standardised by nothing but the model's own batch norm."""

    features = ()

    def load(self, folder: Path | None, site: str) -> SiteData:
        generator = np.random.default_rng(SITES.index(site))
        standard = generator.normal(size=(240, 2))
        targets = (standard[:, 0] + generator.normal(size=240) > 0).astype(np.float32)
        features = (5000 + 300 * standard).astype(np.float32)
        return SiteData(Examples(features[:160], targets[:160]), Examples(features[160:], targets[160:]))

    def model(self) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))


class Squared(Tiny):
    """A loss in squared units, far beyond what a cross entropy comes to."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (100 * (logits - targets - 9)) ** 2


class Far(Tiny):
    """One value of 1e30 at one site, and some beyond their bounds at another."""

    def load(self, folder: Path | None, site: str) -> SiteData:
        data = super().load(folder, site)
        data.train.features[0, 1] = {"cat": 1e30, "dan": 5.0}.get(site, data.train.features[0, 1])
        return data
