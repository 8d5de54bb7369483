"""A worked example at scale: death in hospital after admission to intensive care (eICU).

Sites are regions of the United States, or single hospitals named `hospital-<id>`. The inputs are what APACHE asks for
on the first day: the points that a measurement has in the published tables of APACHE III (`apache`), whether it was
taken at all, age, chronic conditions, where the patient came from, and a coarse group of the admission diagnosis.
Type of unit did not help in cross-validation; ethnicity did so within noise, and a risk by ethnicity would need a
better reason (ADR 0008).

A patient's stays all fall in the same part, at whatever site they are: the split is a hash of the patient's id.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ml_tasks import apache
from ml_tasks.eicu_tables import Stays, read_stays
from ml_tasks.task import DataError, Examples, Feature, SiteData, Task

TEST_PERCENT, VALIDATION_PERCENT = 20, 16
LARGEST_Z = 4.0  # standardised inputs are clamped there: a rare flag or a wild value must not outweigh all others
USUAL_RISK = 0.1  # of death in hospital: the untrained model predicts it for everyone, and training moves from there
INTERCEPT_SPEED = 3.0  # its gradient and its effect both grow by this, so that it learns 9 times as fast as a weight
MINUTES_PER_DAY = 1440

MEASURED = (
    *("urine", "wbc", "temperature", "respiratoryrate", "sodium", "heartrate", "meanbp", "hematocrit", "creatinine"),
    *("albumin", "bun", "glucose", "bilirubin", "ph", "eyes"),  # ph stands for the blood gases, eyes for the coma scale
)
FLAGS = (
    *("intubated", "vent", "dialysis", "meds", "oobventday1", "oobintubday1", "activetx", "readmit", "ima", "midur"),
    *("diabetes", "thrombolytics", *apache.CHRONIC),
)
# Where the patient came from, as APACHE groups it.
SOURCES = {
    "emergency": ("Emergency Department", "Chest Pain Center"),
    "ward": ("Floor", "Acute Care/Floor"),
    "operation": ("Operating Room", "Recovery Room", "PACU"),
    "direct": ("Direct Admit",),
    "step-down": ("Step-Down Unit (SDU)", "ICU to SDU"),
    "elsewhere": ("Other Hospital", "Other ICU", "ICU"),
}
# Groups of APACHE's admission diagnoses by the beginning of their codes (S- is surgical), by organ and by how they are
# treated. The first group that fits counts; the rest of the several hundred codes are in none.
DIAGNOSES = {
    "cardiac arrest or shock": ("CARDARREST", "CARDSHOCK"),
    "sepsis": ("SEPSIS",),
    "lungs": (
        *("PNEUM", "ARDS", "RESPARREST", "RESLUNGDIS", "M-RESOTHER", "PLEUREFFUS", "WEANVENT", "ATELECTAS"),
        "PULMEMBOL",
    ),
    "airways": ("EMPHYSBRON", "ASTHMA", "AIROBSTRX"),
    "heart failure": ("CHF", "CARDIOMYOP"),
    "coronary": ("AMI", "UNSTANGINA", "STABANGINA", "CP-", "OTH_MI", "ATYPCHSTPA"),
    "rhythm": ("RHYTH",),
    "bleeding": ("UGIBLEED", "LOWGIBLEED", "UNKGIBLEED", "VARICBLEED"),
    "liver": ("ACUHEPFAIL", "HEPENCEPH"),
    "sugar": ("DKA", "DHNKA", "HYPOGLYCEM"),
    "drugs": ("OD", "DRUGWITHD", "ETOHWITHD", "DRUGTOXIC"),
    "brain": ("CVASTROKE", "ICH", "SDH", "SAH", "COMA", "NTCOMA"),
    "seizures": ("SEIZURES",),
    "trauma": ("TRAUM", "TR"),
    "kidney and fluids": ("ARENFAIL", "ACIDBASE", "RENALOBST", "HYPOVOLEM"),
    "heart surgery": ("S-CABG", "S-VALV"),
    "vessel surgery": (*("S-CAROT", "S-AAA", "S-TAA", "S-FEM", "S-AFEM", "S-THROMB", "S-VAS", "S-OTHGRAFT"),),
    "bowel surgery": ("S-GI", "S-CHOL", "S-LGINT", "S-SMINT", "S-APPEN"),
    "brain surgery": ("S-CRAN", "S-SDH", "S-ICH", "S-EPIHEMA", "NEURONEO"),
}
FEATURES = (
    Feature("age", 0, 100),  # years
    Feature("physiology points", 0, 252),
    Feature("APACHE III score", 0, 299),
    *(Feature(f"{part} points", 0, most) for part, most in apache.LARGEST.items()),
    Feature("chronic points", 0, 23),
    Feature("elective surgery", 0, 1),
    Feature("surgical diagnosis", 0, 1),
    *(Feature(f"from {source}", 0, 1) for source in SOURCES),
    *(Feature(flag, 0, 1) for flag in FLAGS),
    Feature("female", 0, 1),
    *(Feature(f"diagnosis: {group}", 0, 1) for group in DIAGNOSES),
    Feature("diagnosis missing", 0, 1),
    Feature("log days in hospital before", 0, 6),  # a year
    *(Feature(f"{column} missing", 0, 1) for column in MEASURED),
)


class Eicu(Task):
    """Death in hospital from the first day in intensive care, with logistic regression on APACHE III's points."""

    title: ClassVar[str] = "Death in hospital after admission to intensive care (eICU)"
    provenance: ClassVar[str] = (
        "Real patients of real hospitals (eICU Collaborative Research Database, PhysioNet); sites are the regions of "
        "the hospitals, or single hospitals."
    )
    validates: ClassVar[bool] = True
    features: ClassVar[tuple[Feature, ...]] = FEATURES

    def load(self, folder: Path | None, site: str) -> SiteData:
        """Read one site's stays, split by patient into train, validation and test (64, 16 and 20 percent).

        Raises:
            DataError: if a table is missing or damaged, or holds no stay of this site.
        """
        if folder is None or not folder.is_dir():
            raise DataError(f"{folder}: no such folder; name the one that holds the tables of eICU")
        stays = read_stays(folder, site)
        features = features_of(stays)
        parts = np.array([part_of(patient) for patient in stays.patients])
        patients = np.unique(np.array(stays.patients), return_inverse=True)[1].astype(np.int64)
        train, validation, test = (
            Examples(features[parts == part], stays.targets[parts == part], patients[parts == part])
            for part in ("train", "validation", "test")
        )
        return SiteData(train, test, validation)

    def model(self) -> nn.Module:
        """Build a logistic regression that starts at `USUAL_RISK` for everyone: (n, 84) -> (n, 1)."""
        return _Logistic(len(self.features))


class _Logistic(nn.Module):
    """A linear model that starts from the usual risk, and whose intercept learns faster than its weights.

    The intercept alone must follow the mean risk while the weights grow, or every risk would come out too high; and
    weight decay must not pull risks to one half.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weights = nn.Linear(inputs, 1, bias=False)
        nn.init.zeros_(self.weights.weight)
        self.intercept = nn.Parameter(torch.zeros(1))
        self.usual = math.log(USUAL_RISK / (1 - USUAL_RISK))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.weights(features.clamp(-LARGEST_Z, LARGEST_Z))
        return logits + self.usual + INTERCEPT_SPEED * self.intercept


def part_of(patient: str) -> str:
    """Give the part that all of a patient's stays belong to, at every site: train, validation or test."""
    percent = int.from_bytes(hashlib.sha256(f"fedseal eicu split:{patient}".encode()).digest()[:8]) % 100
    if percent < TEST_PERCENT:
        return "test"
    return "validation" if percent < TEST_PERCENT + VALIDATION_PERCENT else "train"


def features_of(stays: Stays) -> NDArray[np.float32]:
    """Turn stays into the inputs of the model.

    Returns:
        (n, len(FEATURES)); NaN where age or a flag is missing. Missing measurements have no points and a flag instead.
    """
    numbers = stays.numbers
    points = {part: np.nan_to_num(values) for part, values in apache.physiology(numbers).items()}
    physiology, chronic = np.sum(list(points.values()), axis=0), apache.chronic_health(numbers)
    score = physiology + np.nan_to_num(apache.lookup(numbers["age"], apache.AGE)) + chronic
    groups = np.array([_group(code) for code in stays.texts["admitdiagnosis"]])
    waited_days = np.maximum(-np.nan_to_num(numbers["hospitaladmitoffset"]), 0) / MINUTES_PER_DAY
    columns = [
        numbers["age"],
        physiology,
        score,
        *(points[part] for part in apache.LARGEST),
        chronic,
        numbers["electivesurgery"] == 1,
        np.char.startswith(stays.texts["admitdiagnosis"], "S-"),
        *(np.isin(stays.texts["unitadmitsource"], sources) for sources in SOURCES.values()),
        *(numbers[flag] for flag in FLAGS),
        np.array(stays.texts["gender"]) == "Female",
        *(groups == group for group in DIAGNOSES),
        np.array(stays.texts["admitdiagnosis"]) == "",
        np.log1p(waited_days),
        *(np.isnan(numbers[column]) for column in MEASURED),
    ]
    return np.stack([np.asarray(column, dtype=np.float32) for column in columns], axis=1)


def _group(code: str) -> str:
    return next((group for group, codes in DIAGNOSES.items() if code.startswith(codes)), "")
