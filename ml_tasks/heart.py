"""A worked example with real hospital boundaries: heart disease in four hospitals (UCI Heart Disease).

Preparation and train/test split are those of the benchmark FLamby (Fed-Heart-Disease; Ogier du Terrail et al. 2022), so
that results compare: the columns slope, ca and thal are dropped, then rows with a missing value; cp and restecg become
indicators of all levels but the first. The folder holds `processed.<site>.data` (UCI's) and `flamby_split.csv`. A site
reads its own table and its own lines of the split, and nothing of the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import nn

from ml_tasks.csv_tables import to_number
from ml_tasks.task import DataError, Examples, Feature, SiteData, Task

SITES = ("cleveland", "hungarian", "switzerland", "va")
SPLIT_FILE = "flamby_split.csv"
SPLIT_COLUMNS = ["center", "center_id", "row_in_file", "split"]
COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal", "num"),
)
DROPPED = ("slope", "ca", "thal")  # missing for most patients outside Cleveland
MISSING = "?"
LEVELS = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2), "num": (0, 1, 2, 3, 4)}
NUMBERS = (
    Feature("age", 18, 100),  # years
    Feature("sex", 0, 1),
    Feature("trestbps", 60, 240),  # mm Hg at rest
    Feature("chol", 0, 600),  # mg/dl; from 0, for some hospitals write 0 where they did not measure
    Feature("fbs", 0, 1),
    Feature("thalach", 40, 220),  # beats per minute
    Feature("exang", 0, 1),
    Feature("oldpeak", -3, 8),  # mm of ST depression
)
INDICATORS = (("cp", 2), ("cp", 3), ("cp", 4), ("restecg", 1), ("restecg", 2))


class HeartDisease(Task):
    """Presence of heart disease from 13 clinical features, with logistic regression."""

    title: ClassVar[str] = "Heart disease in four hospitals (UCI Heart Disease, split of FLamby)"
    provenance: ClassVar[str] = (
        "Real patients of four real hospitals (Janosi, Steinbrunn, Pfisterer, Detrano 1988, UCI, CC BY 4.0), "
        "prepared and split as in FLamby's Fed-Heart-Disease."
    )
    features: ClassVar[tuple[Feature, ...]] = (
        *NUMBERS,
        *(Feature(f"{column}={level}", 0, 1) for column, level in INDICATORS),
    )

    def load(self, folder: Path | None, site: str) -> SiteData:
        """Read one hospital's complete rows and its part of FLamby's split.

        Raises:
            DataError: if a file is missing or damaged, or the split does not fit the table.
        """
        if site not in SITES:
            raise DataError(f"heart disease: there is no site {site!r}; use {', '.join(SITES)}")
        if folder is None or not folder.is_dir():
            raise DataError(f"{folder}: no such folder; name the one that holds processed.{site}.data and {SPLIT_FILE}")
        table, split_file = folder / f"processed.{site}.data", folder / SPLIT_FILE
        patients = dict(_patients(table))
        split = _split(split_file, site)
        _check_cover(table, patients, split_file, split)
        return SiteData(_examples(patients, split, "train"), _examples(patients, split, "test"))

    def model(self) -> nn.Module:
        """Build FLamby's baseline, a logistic regression: (n, 13) -> (n, 1)."""
        return nn.Linear(len(self.features), 1)


def _patients(table: Path) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Give each complete row's index in the file (from 0, rows that are left out counted) and its columns."""
    for row, cells in enumerate(_lines(table)):
        if len(cells) != len(COLUMNS):
            raise DataError(
                f"{table}: line {row + 1} has {len(cells)} columns instead of {len(COLUMNS)}; is the file truncated? "
                "Get it again from the UCI repository"
            )
        used = {column: cell for column, cell in zip(COLUMNS, cells, strict=True) if column not in DROPPED}
        if MISSING not in used.values():
            yield row, {column: _number(table, row, column, cell) for column, cell in used.items()}


def _number(table: Path, row: int, column: str, cell: str) -> float:
    value = to_number(cell)
    if not math.isfinite(value):
        raise DataError(
            f"{table}: column {column} is not a number in line {row + 1}; correct it, or write {MISSING} if missing"
        )
    if column in LEVELS and value not in LEVELS[column]:
        levels = ", ".join(map(str, LEVELS[column]))
        raise DataError(
            f"{table}: column {column} is not one of {levels} in line {row + 1}; correct it, or write {MISSING}"
        )
    return value


def _split(split_file: Path, site: str) -> dict[int, str]:
    """Read which of the site's rows are for training and which for testing, by row index in the site's table."""
    lines = _lines(split_file)
    if next(lines, None) != SPLIT_COLUMNS:
        raise DataError(f"{split_file}: line 1 is not {','.join(SPLIT_COLUMNS)}; get the file again")
    split: dict[int, str] = {}
    for line, cells in enumerate(lines, start=2):
        if cells[:1] != [site]:
            continue
        if len(cells) != len(SPLIT_COLUMNS):
            raise DataError(
                f"{split_file}: line {line} has {len(cells)} columns instead of {len(SPLIT_COLUMNS)}; "
                "is the file truncated? Get it again"
            )
        row, part = cells[2], cells[3]
        if not (row.isascii() and row.isdigit()) or part not in ("train", "test"):
            raise DataError(f"{split_file}: line {line} does not give a row and train or test; get the file again")
        if int(row) in split:
            raise DataError(f"{split_file}: line {line} repeats a row of {site}; get the file again")
        split[int(row)] = part
    return split


def _check_cover(table: Path, patients: Mapping[int, object], split_file: Path, split: Mapping[int, str]) -> None:
    absent, unassigned = len(split.keys() - patients.keys()), len(patients.keys() - split.keys())
    if absent:
        raise DataError(
            f"{table}: {absent} rows that {split_file.name} assigns are missing or incomplete; is the table truncated? "
            "Get it again from the UCI repository"
        )
    if unassigned:
        raise DataError(
            f"{split_file}: {unassigned} complete rows of {table.name} are not assigned to train or test; "
            "is the split truncated? Get it again"
        )


def _examples(patients: Mapping[int, Mapping[str, float]], split: Mapping[int, str], part: str) -> Examples:
    rows = [patients[row] for row in sorted(split) if split[row] == part]
    features = np.array([_features(columns) for columns in rows], dtype=np.float32)
    targets = np.array([columns["num"] > 0 for columns in rows], dtype=np.float32)
    return Examples(features.reshape(len(rows), len(NUMBERS) + len(INDICATORS)), targets)


def _features(columns: Mapping[str, float]) -> list[float]:
    """Give 13 features in FLamby's order: the numbers, then the indicators."""
    numbers = [columns[feature.name] for feature in NUMBERS]
    return numbers + [float(columns[column] == level) for column, level in INDICATORS]


def _lines(file: Path) -> Iterator[list[str]]:
    """Read comma-separated lines; blank ones at the end do not count."""
    try:
        text = file.read_text(encoding="ascii")
    except UnicodeDecodeError:
        text = None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); put it there and let this user read it") from None
    if text is None:  # outside the handler: the decoding error carries the file's bytes
        raise DataError(f"{file}: is not a text file; get it again")
    return (line.split(",") for line in text.rstrip().splitlines())
