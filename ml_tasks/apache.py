"""The published point tables of APACHE III: how far a first day's worst values are from health.

Knaus et al. 1991, The APACHE III prognostic system, Chest 100(6), 1619-1636. Points come from thousands of patients of
other hospitals and are public, so that a federation learns from them without spending any of its own patients. Most
measurements are abnormal both ways, which a linear model cannot express and points can.

Values arrive as columns by name, each (n,) float64 with NaN where missing; a missing value has missing points.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]
Columns = Mapping[str, Column]

# Points by interval: the points below the first threshold, then (threshold, points from there on).
Table = tuple[float, tuple[tuple[float, float], ...]]
TABLES: dict[str, Table] = {
    "heartrate": (8, ((40, 5), (50, 0), (100, 1), (110, 5), (120, 7), (140, 13), (155, 17))),  # 1/min
    "meanbp": (23, ((40, 15), (60, 7), (70, 6), (80, 0), (100, 4), (120, 7), (130, 9), (140, 10))),  # mm Hg
    "temperature": (20, ((33, 16), (33.5, 13), (34, 8), (35, 2), (36, 0), (40, 4))),  # deg C
    "respiratoryrate": (17, ((6, 8), (12, 7), (14, 0), (25, 6), (35, 9), (40, 11), (50, 18))),  # 1/min
    "hematocrit": (3, ((41, 0), (50, 3))),  # %
    "wbc": (19, ((1, 5), (3, 0), (20, 1), (25, 5))),  # 1000/ul
    "creatinine": (3, ((0.5, 0), (1.5, 4), (1.95, 7))),  # mg/dl, without acute renal failure
    "urine": (15, ((400, 8), (600, 7), (900, 5), (1500, 4), (2000, 0), (4000, 1))),  # ml/day
    "bun": (0, ((17, 2), (20, 7), (40, 11), (80, 12))),  # mg/dl
    "sodium": (3, ((120, 2), (135, 0), (155, 4))),  # mmol/l
    "albumin": (11, ((2, 6), (2.5, 0), (4.5, 4))),  # g/dl
    "bilirubin": (0, ((2, 5), (3, 6), (5, 8), (8, 16))),  # mg/dl
    "glucose": (8, ((40, 9), (60, 0), (200, 3), (350, 5))),  # mg/dl
}
PAO2: Table = (15, ((50, 5), (70, 2), (80, 0)))  # mm Hg
AADO2: Table = (0, ((100, 7), (250, 9), (350, 11), (500, 14)))  # mm Hg, of intubated patients with FiO2 of 50 % or more
AGE: Table = (0, ((45, 5), (60, 11), (65, 13), (70, 16), (75, 17), (85, 24)))  # years
# Acid-base disturbance: rows by pH, and within a row points by pCO2 (mm Hg).
ACID_BASE: tuple[tuple[float, Table], ...] = (
    (7.20, (12, ((50, 4),))),
    (7.30, (9, ((30, 6), (40, 3), (50, 2)))),
    (7.35, (9, ((30, 0), (45, 1)))),
    (7.45, (5, ((30, 0), (45, 1)))),
    (7.50, (5, ((30, 0), (35, 2), (45, 12)))),
    (7.60, (3, ((40, 12),))),
    (np.inf, (0, ((25, 3), (40, 12)))),
)
# Neurological abnormality by eyes open or not; rows by verbal response (1, 2-3, 4, 5), within a row by motor response.
EYES_SHUT: tuple[Table, ...] = (
    (48, ((3, 33), (5, 16))),
    (29, ((3, 24),)),
    (29, ((3, 24),)),
    (29, ((3, 24),)),
)
EYES_OPEN: tuple[Table, ...] = (
    (29, ((3, 24), (5, 15))),
    (29, ((3, 24), (5, 13), (6, 10))),
    (13, ((5, 8), (6, 3))),
    (3, ((6, 0),)),
)
VERBAL: Table = (0, ((2, 1), (4, 2), (5, 3)))  # the row of a verbal response
LARGEST = {name: float(max(below, *(points for _, points in steps))) for name, (below, steps) in TABLES.items()} | {
    "creatinine": 10.0,
    "oxygenation": 15.0,
    "acid-base": 12.0,
    "coma": 48.0,
}
"""The most points of each part of the acute physiology score."""
CHRONIC = {
    "aids": 23.0,
    "hepaticfailure": 16.0,
    "lymphoma": 13.0,
    "metastaticcancer": 11.0,
    "leukemia": 10.0,
    "immunosuppression": 10.0,
    "cirrhosis": 4.0,
}


def lookup(values: Column, table: Table) -> Column:
    """Give the points of each value; NaN stays NaN."""
    below, steps = table
    points = np.array([below, *(points for _, points in steps)])
    found = points[np.searchsorted([threshold for threshold, _ in steps], values, side="right")]
    return np.where(np.isnan(values), np.nan, found)


def physiology(columns: Columns) -> dict[str, Column]:
    """Give the points of each of the 16 parts of the acute physiology score.

    Args:
        columns: the columns named in `TABLES`, and ph, pco2, pao2, fio2 (%), eyes, verbal, motor, and the flags
            intubated, vent, dialysis, meds (sedated: the coma scale cannot be had).

    Returns:
        One column for each part; their sum, missing ones as 0, is the acute physiology score.
    """
    points = {name: lookup(columns[name], table) for name, table in TABLES.items()}
    rate = columns["respiratoryrate"]
    slow = (columns["vent"] == 1) & (rate >= 6) & (rate <= 12)  # the machine sets it
    points["respiratoryrate"] = np.where(slow, 0.0, points["respiratoryrate"])
    failing = (columns["urine"] < 410) & (columns["creatinine"] >= 1.5) & (columns["dialysis"] != 1)
    points["creatinine"] = np.where(failing, 10.0, points["creatinine"])
    points["oxygenation"] = _oxygenation(columns)
    points["acid-base"] = _acid_base(columns["ph"], columns["pco2"])
    points["coma"] = _coma(columns)
    return points


def chronic_health(columns: Columns) -> Column:
    """Give the points of the gravest chronic condition; those after elective surgery count none."""
    points = np.max([np.nan_to_num(columns[name]) * points for name, points in CHRONIC.items()], axis=0)
    return np.where(columns["electivesurgery"] == 1, 0.0, points)


def _oxygenation(columns: Columns) -> Column:
    fraction = columns["fio2"] / 100
    # Alveolar minus arterial oxygen: barometric pressure 760, water vapour 47 mm Hg, respiratory quotient 1.
    gradient = fraction * (760 - 47) - columns["pco2"] - columns["pao2"]
    machine = (columns["intubated"] == 1) & (fraction >= 0.5)
    return np.where(machine, lookup(gradient, AADO2), lookup(columns["pao2"], PAO2))


def _acid_base(ph: Column, pco2: Column) -> Column:
    rows = np.array([lookup(pco2, table) for _, table in ACID_BASE])  # (rows, n)
    row = np.searchsorted([limit for limit, _ in ACID_BASE[:-1]], ph, side="right")
    return np.where(np.isnan(ph), np.nan, rows[row, np.arange(len(ph))])


def _coma(columns: Columns) -> Column:
    eyes, verbal, motor = columns["eyes"], columns["verbal"], columns["motor"]
    row = np.nan_to_num(lookup(verbal, VERBAL)).astype(np.int64)
    here = np.arange(len(eyes))
    shut = np.array([lookup(motor, table) for table in EYES_SHUT])[row, here]
    opened = np.array([lookup(motor, table) for table in EYES_OPEN])[row, here]
    points = np.where(eyes == 1, shut, opened)
    return np.where(np.isnan(eyes) | np.isnan(verbal), np.nan, points)
