"""A worked example that needs no download: is a breast mass malignant? Real patients, four simulated hospitals."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from torch import nn

from ml_tasks.task import DataError, Examples, Feature, SiteData, Task

# Each hospital's share of all benign and of all malignant masses, in percent. They differ, so that hospitals differ in
# size and case mix: north is large, west is a referral centre that sees mostly cancers, south is small.
BENIGN_PERCENT = {"north": 50, "east": 30, "south": 12, "west": 8}
MALIGNANT_PERCENT = {"north": 42, "east": 12, "south": 12, "west": 34}
TEST_PERCENT = 30
NUMBERED = re.compile(r"hospital-([1-9][0-9]?)-of-([1-9][0-9]?)")
"""More hospitals, all alike, for trying out with any number of sites: the k-th of n."""

# The largest plausible value of each measurement of the cell nuclei in an aspirate (Street, Wolberg, Mangasarian 1993).
# A nucleus's radius stays below 40 in the units of the images; a circle of it bounds perimeter and area; texture is a
# standard deviation of grey levels, the rest are ratios. None can be negative.
LARGEST = {
    "radius": 40.0,
    "texture": 60.0,
    "perimeter": 250.0,
    "area": 5000.0,
    "smoothness": 0.3,
    "compactness": 1.5,
    "concavity": 1.5,
    "concave points": 0.5,
    "symmetry": 1.0,
    "fractal dimension": 0.3,
}
ERROR_SHARE = 0.2  # the standard error of a measurement over the nuclei of one image, against its largest value


class BreastCancer(Task):
    """Malignancy of a breast mass from 30 measurements of cell nuclei, with logistic regression."""

    title: ClassVar[str] = "Malignancy of a breast mass (Wisconsin Diagnostic Breast Cancer)"
    provenance: ClassVar[str] = (
        "Real patients of one centre (Wisconsin Diagnostic Breast Cancer, 569 masses, as packaged in scikit-learn); "
        "the four hospitals are simulated."
    )
    needs_data: ClassVar[bool] = False
    features: ClassVar[tuple[Feature, ...]] = (
        *(Feature(f"mean {name}", 0.0, largest) for name, largest in LARGEST.items()),
        *(Feature(f"{name} error", 0.0, largest * ERROR_SHARE) for name, largest in LARGEST.items()),
        *(Feature(f"worst {name}", 0.0, largest) for name, largest in LARGEST.items()),
    )

    def load(self, folder: Path | None, site: str) -> SiteData:
        """Give the masses of one simulated hospital; the same ones on every machine."""
        if site not in BENIGN_PERCENT and not _is_numbered(site):
            raise DataError(
                f"breast cancer: there is no site {site!r}; use {', '.join(BENIGN_PERCENT)}, or hospital-1-of-6 and so"
                " on"
            )
        features, benign = load_breast_cancer(return_X_y=True)
        features, targets = features.astype(np.float32), (benign == 0).astype(np.float32)
        parts = [_rows(targets, 0, BENIGN_PERCENT, site), _rows(targets, 1, MALIGNANT_PERCENT, site)]
        train = np.sort(np.concatenate([part[_cut(len(part), TEST_PERCENT) :] for part in parts]))
        test = np.sort(np.concatenate([part[: _cut(len(part), TEST_PERCENT)] for part in parts]))
        return SiteData(Examples(features[train], targets[train]), Examples(features[test], targets[test]))

    def model(self) -> nn.Module:
        """Build a logistic regression: (n, 30) -> (n, 1)."""
        return nn.Linear(len(self.features), 1)


def _rows(targets: NDArray[np.float32], diagnosis: int, percent: dict[str, int], site: str) -> NDArray[np.int64]:
    """Deal out the rows of one diagnosis in the order of their hashes, and give the rows of `site` in that order.

    A hash and not a random generator: generators may change between versions of numpy, and the sites with them.
    """
    rows = sorted(np.flatnonzero(targets == diagnosis).tolist(), key=lambda row: _hash(row, diagnosis))
    if (numbered := NUMBERED.fullmatch(site)) is not None:
        place, hospitals = int(numbered[1]), int(numbered[2])
        first, last = len(rows) * (place - 1) // hospitals, len(rows) * place // hospitals
    else:
        names = list(percent)
        before = sum(percent[name] for name in names[: names.index(site)])
        first, last = _cut(len(rows), before), _cut(len(rows), before + percent[site])
    return np.array(rows[first:last], dtype=np.int64)


def _is_numbered(site: str) -> bool:
    numbered = NUMBERED.fullmatch(site)
    return numbered is not None and int(numbered[1]) <= int(numbered[2])


def _hash(row: int, diagnosis: int) -> bytes:
    return hashlib.sha256(f"{row}:{diagnosis}".encode()).digest()


def _cut(length: int, percent: int) -> int:
    return length * percent // 100
