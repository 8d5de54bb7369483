"""One site's rows of the eICU tables, and the door that keeps the answer out.

Some columns of these tables were written after the outcome was known: with one of them among the inputs a model looks
brilliant and is worthless. So this file reads `ALLOWED` columns and no others, and never opens `apachePatientResult`.
The demo (doi 10.13026/4mxk-na84) and the full, credentialed database have the same tables.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ml_tasks.csv_tables import find_table, number, read_columns
from ml_tasks.task import DataError

REGIONS = ("midwest", "south", "west", "northeast", "unknown")
ONE_HOSPITAL = re.compile(r"hospital-([0-9]+)", re.ASCII)
KEY, TARGET = "patientunitstayid", "hospitaldischargestatus"
OUTCOMES = {"Alive": 0.0, "Expired": 1.0}
MISSING = -1.0  # as the APACHE tables write it
OLDEST, OLDEST_YEARS = "> 89", 90.0

PHYSIOLOGY = (
    *("intubated", "vent", "dialysis", "eyes", "motor", "verbal", "meds", "urine", "wbc", "temperature"),
    *("respiratoryrate", "sodium", "heartrate", "meanbp", "ph", "hematocrit", "creatinine", "albumin", "pao2", "pco2"),
    *("bun", "glucose", "bilirubin", "fio2"),
)
HISTORY = (
    *("aids", "hepaticfailure", "lymphoma", "metastaticcancer", "leukemia", "immunosuppression", "cirrhosis"),
    *("diabetes", "electivesurgery", "activetx", "readmit", "ima", "midur", "thrombolytics"),
    *("oobventday1", "oobintubday1"),
)
ALLOWED: Mapping[str, tuple[str, ...]] = {
    "hospital": ("hospitalid", "region"),
    "patient": (KEY, TARGET, "uniquepid", "hospitalid", "gender", "age", "unitadmitsource", "hospitaladmitoffset"),
    "apacheApsVar": (KEY, *PHYSIOLOGY),
    "apachePredVar": (KEY, *HISTORY, "admitdiagnosis"),
}
"""What is read, by table. `TARGET` is the label and never an input."""

FORBIDDEN: Mapping[str, tuple[str, ...]] = {
    "patient": (
        *("dischargeweight", "hospitaldischargelocation", "hospitaldischargeoffset", "hospitaldischargetime24"),
        *("hospitaldischargeyear", "unitdischargelocation", "unitdischargeoffset", "unitdischargestatus"),
        "unitdischargetime24",
    ),
    "apachePredVar": ("diedinhospital", "dischargelocation", "var03hspxlos"),
    "apachePatientResult": ("*",),
}
"""Columns that are known only after the stay. Nothing reads this: the tests hold `ALLOWED` against it."""


@dataclass(frozen=True, slots=True, eq=False)
class Stays:
    """n stays in intensive care with APACHE inputs and a known outcome.

    Args:
        patients: who, by `uniquepid`; a patient may have several stays.
        targets: (n,) float32, 1 for death in hospital.
        texts: by column, n cells.
        numbers: by column, (n,) float64, NaN where missing.
    """

    patients: Sequence[str]
    targets: NDArray[np.float32]
    texts: Mapping[str, Sequence[str]]
    numbers: Mapping[str, NDArray[np.float64]]


def read_stays(folder: Path, site: str) -> Stays:
    """Read the stays of one site: a region, or `hospital-<id>`.

    Of another site's row nothing is read but its hospital or stay.

    Raises:
        DataError: if a table or column is missing or damaged, or there is no stay of this site.
    """
    admitted = _patients(folder, _hospitals(folder, site))
    physiology = _apache(folder, "apacheApsVar", PHYSIOLOGY, (), admitted)
    history = _apache(folder, "apachePredVar", HISTORY, ("admitdiagnosis",), admitted)
    if alone := len(physiology.keys() ^ history.keys()):
        raise DataError(
            f"{folder}: {alone} stays of {site} are in one of apacheApsVar and apachePredVar only; is a table "
            "truncated? Get them again"
        )
    stays = [stay for stay in admitted if stay in physiology]  # in the order of the table `patient`
    if not stays:
        raise DataError(f"{folder}: the tables hold no stay of {site} with APACHE inputs and a known outcome")
    patients = [admitted[stay] for stay in stays]
    numbers = {
        "age": np.array([patient.age for patient in patients]),
        "hospitaladmitoffset": np.array([patient.admitted_min for patient in patients]),
        **_columns(PHYSIOLOGY, [physiology[stay][0] for stay in stays]),
        **_columns(HISTORY, [history[stay][0] for stay in stays]),
    }
    texts = {
        "gender": [patient.gender for patient in patients],
        "unitadmitsource": [patient.source for patient in patients],
        "admitdiagnosis": [history[stay][1][0] for stay in stays],
    }
    targets = np.array([patient.target for patient in patients], dtype=np.float32)
    return Stays([patient.name for patient in patients], targets, texts, numbers)


@dataclass(frozen=True, slots=True)
class _Patient:
    """A row of the table `patient`; admitted_min is the hospital admission in minutes after that to the unit."""

    name: str
    target: float
    gender: str
    source: str
    age: float
    admitted_min: float


def _hospitals(folder: Path, site: str) -> frozenset[str]:
    one = ONE_HOSPITAL.fullmatch(site)
    if one is None and site not in REGIONS:
        raise DataError(f"eICU: there is no site {site!r}; use {', '.join(REGIONS)}, or hospital-<id> for one hospital")
    file = find_table(folder, "hospital")
    found: set[str] = set()
    for line, (hospital, region) in read_columns(file, ALLOWED["hospital"]):
        name = region.strip().lower() or "unknown"
        if name not in REGIONS:
            raise DataError(f"{file}: column region is not one of {', '.join(REGIONS)} in line {line}; correct it")
        if hospital == one[1] if one else name == site:
            found.add(hospital)
    if not found:
        raise DataError(f"{file}: there is no hospital of {site}; mend the plan, or get the file again")
    return frozenset(found)


def _patients(folder: Path, hospitals: Container[str]) -> dict[str, _Patient]:
    """Read the site's stays with a known outcome, by stay."""
    file = find_table(folder, "patient")
    found: dict[str, _Patient] = {}
    for line, (stay, status, name, hospital, gender, age, source, offset) in read_columns(file, ALLOWED["patient"]):
        if hospital not in hospitals or not status:
            continue
        if status not in OUTCOMES:
            raise DataError(f"{file}: column {TARGET} is not {' or '.join(OUTCOMES)} in line {line}; leave it empty")
        if not name or not stay:
            raise DataError(f"{file}: line {line} does not say which patient or stay it is; get the file again")
        if stay in found:
            raise DataError(f"{file}: line {line} repeats a stay; get the file again")
        years = OLDEST_YEARS if age == OLDEST else number(file, line, "age", age)
        minutes = number(file, line, "hospitaladmitoffset", offset)
        found[stay] = _Patient(name, OUTCOMES[status], gender, source, years, minutes)
    return found


def _apache(
    folder: Path, table: str, numbers: Sequence[str], texts: Sequence[str], stays: Container[str]
) -> dict[str, tuple[list[float], list[str]]]:
    """Read the rows of `stays` from an APACHE table: numbers, then texts, by stay."""
    file = find_table(folder, table)
    found: dict[str, tuple[list[float], list[str]]] = {}
    for line, (stay, *cells) in read_columns(file, ALLOWED[table]):
        if stay not in stays:
            continue
        if stay in found:
            raise DataError(f"{file}: line {line} repeats a stay; get the file again")
        values = [number(file, line, column, cell) for column, cell in zip(numbers, cells, strict=False)]
        found[stay] = ([math.nan if value == MISSING else value for value in values], cells[len(numbers) :])
    return found


def _columns(names: Sequence[str], rows: Sequence[list[float]]) -> dict[str, NDArray[np.float64]]:
    return dict(zip(names, np.array(rows, dtype=np.float64).T, strict=True))
