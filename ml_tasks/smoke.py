"""A task for trying a consortium out: made-up numbers for any site's name, and nothing that is worth learning."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import nn

from ml_tasks.task import Examples, Feature, SiteData, Task

EXAMPLES, TESTED = 64, 16


class Smoke(Task):
    """Is the first of two made-up numbers above 0? The same numbers for a name on every machine."""

    title: ClassVar[str] = "Smoke test"
    provenance: ClassVar[str] = "Made-up numbers, drawn from each site's name: they say nothing of anybody."
    needs_data: ClassVar[bool] = False
    features: ClassVar[tuple[Feature, ...]] = (Feature("first", -4.0, 4.0), Feature("second", -4.0, 4.0))

    def load(self, folder: Path | None, site: str) -> SiteData:
        """Draw a site's numbers from its name."""
        generator = np.random.default_rng(list(hashlib.sha256(site.encode()).digest()))
        features = generator.uniform(-2.0, 2.0, (EXAMPLES + TESTED, 2)).astype(np.float32)
        targets = (features[:, 0] > 0).astype(np.float32)
        return SiteData(Examples(features[TESTED:], targets[TESTED:]), Examples(features[:TESTED], targets[:TESTED]))

    def model(self) -> nn.Module:
        """Build a logistic regression: (n, 2) -> (n, 1)."""
        return nn.Linear(2, 1)
