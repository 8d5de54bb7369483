import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from ml_tasks import apache
from ml_tasks.eicu_tables import PHYSIOLOGY, REGIONS, read_stays

HEALTHY = {
    **{name: 0.0 for name in ("intubated", "vent", "dialysis", "meds")},
    **{"eyes": 4, "motor": 6, "verbal": 5, "urine": 2500, "wbc": 8, "temperature": 37, "respiratoryrate": 16},
    **{"sodium": 140, "heartrate": 75, "meanbp": 90, "ph": 7.4, "hematocrit": 45, "creatinine": 1, "albumin": 3.5},
    **{"pao2": 95, "pco2": 40, "bun": 12, "glucose": 120, "bilirubin": 0.8, "fio2": 21},
}


def _points(**changed: float) -> dict[str, float]:
    columns = {name: np.array([value], dtype=np.float64) for name, value in (HEALTHY | changed).items()}
    return {part: points[0] for part, points in apache.physiology(columns).items()}


def test_the_healthy_have_no_points() -> None:
    assert set(_points().values()) == {0.0}
    assert set(HEALTHY) == set(PHYSIOLOGY)


@pytest.mark.parametrize(
    ("changed", "part", "points"),
    [
        ({"heartrate": 39}, "heartrate", 8),
        ({"heartrate": 155}, "heartrate", 17),
        ({"meanbp": 39}, "meanbp", 23),
        ({"meanbp": 80}, "meanbp", 0),
        ({"temperature": 33.4}, "temperature", 16),
        ({"respiratoryrate": 5}, "respiratoryrate", 17),
        ({"respiratoryrate": 11}, "respiratoryrate", 8),
        ({"respiratoryrate": 12, "vent": 1}, "respiratoryrate", 0),
        ({"respiratoryrate": 5, "vent": 1}, "respiratoryrate", 17),
        ({"creatinine": 2, "urine": 800}, "creatinine", 7),
        ({"creatinine": 2, "urine": 300}, "creatinine", 10),
        ({"creatinine": 2, "urine": 300, "dialysis": 1}, "creatinine", 7),
        ({"pao2": 49}, "oxygenation", 15),
        ({"pao2": 100, "fio2": 100, "pco2": 40}, "oxygenation", 0),
        ({"pao2": 100, "fio2": 100, "pco2": 40, "intubated": 1}, "oxygenation", 14),
        ({"pao2": 323, "fio2": 100, "pco2": 40, "intubated": 1}, "oxygenation", 11),
        ({"pao2": 324, "fio2": 100, "pco2": 40, "intubated": 1}, "oxygenation", 9),
        ({"ph": 7.1, "pco2": 30}, "acid-base", 12),
        ({"ph": 7.1, "pco2": 60}, "acid-base", 4),
        ({"ph": 7.65, "pco2": 20}, "acid-base", 0),
        ({"eyes": 1, "verbal": 1, "motor": 1}, "coma", 48),
        ({"eyes": 1, "verbal": 1, "motor": 6}, "coma", 16),
        ({"eyes": 3, "verbal": 1, "motor": 6}, "coma", 15),
        ({"eyes": 4, "verbal": 4, "motor": 5}, "coma", 8),
    ],
)
def test_points_are_those_of_the_published_tables(changed: dict[str, float], part: str, points: float) -> None:
    assert _points(**changed)[part] == points


@pytest.mark.parametrize("missing", [*sorted(apache.TABLES), "ph", "pco2", "eyes", "verbal", "motor"])
def test_what_was_not_measured_has_no_points(missing: str) -> None:
    points = _points(**{missing: np.nan})
    part = {"ph": "acid-base", "pco2": "acid-base", "eyes": "coma", "verbal": "coma", "motor": "coma"}
    assert np.isnan(points[part.get(missing, missing)])
    assert np.nansum(list(points.values())) == 0


def test_no_part_exceeds_its_largest() -> None:
    generator = np.random.default_rng(3)
    columns = {name: generator.uniform(0, 2.5 * max(value, 1), 4000) for name, value in HEALTHY.items()}
    columns |= {name: generator.integers(0, 2, 4000).astype(np.float64) for name in ("intubated", "vent", "dialysis")}
    columns |= {name: generator.integers(1, most + 1, 4000).astype(float) for name, most in (("eyes", 4), ("motor", 6))}
    columns |= {"verbal": generator.integers(1, 6, 4000).astype(np.float64), "ph": generator.uniform(6.9, 7.7, 4000)}
    points = apache.physiology(columns)
    assert set(points) == set(apache.LARGEST)
    for part, most in apache.LARGEST.items():
        assert points[part].min() >= 0
        assert points[part].max() <= most
    assert sum(apache.LARGEST.values()) == 252  # Knaus et al. 1991: the score runs from 0 to 252


def test_the_gravest_chronic_condition_counts_but_not_after_elective_surgery() -> None:
    columns = {name: np.zeros(3) for name in [*apache.CHRONIC, "electivesurgery"]}
    columns["cirrhosis"][:] = columns["lymphoma"][1:] = columns["electivesurgery"][2] = 1
    assert apache.chronic_health(columns).tolist() == [4, 13, 0]


def test_scores_are_apaches_own_for_every_stay_of_the_demo(shared_data: Path) -> None:
    folder = shared_data / "eicu-demo"
    with gzip.open(folder / "apachePatientResult.csv.gz", "rt", newline="") as text:
        own = [row for row in csv.DictReader(text) if row["apacheversion"] == "IVa" and row["apachescore"] != "-1"]
    with gzip.open(folder / "patient.csv.gz", "rt", newline="") as text:
        status = {row["patientunitstayid"]: row["hospitaldischargestatus"] for row in csv.DictReader(text)}
    theirs = sorted(
        (int(row["acutephysiologyscore"]), int(row["apachescore"])) for row in own if status[row["patientunitstayid"]]
    )
    ours: dict[tuple[int, int], int] = {}
    for region in REGIONS:
        numbers = read_stays(folder, region).numbers
        physiology = np.nansum(list(apache.physiology(numbers).values()), axis=0)
        score = physiology + np.nan_to_num(apache.lookup(numbers["age"], apache.AGE)) + apache.chronic_health(numbers)
        for pair in zip(physiology.astype(int).tolist(), score.astype(int).tolist(), strict=True):
            ours[pair] = ours.get(pair, 0) + 1
    assert len(theirs) > 1700
    for pair in theirs:  # APACHE scores fewer stays than have inputs: its scores are among ours, each once
        ours[pair] = ours.get(pair, 0) - 1
    assert min(ours.values()) >= 0
