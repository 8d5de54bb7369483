import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from ml_tasks.breast_cancer import BENIGN_PERCENT, MALIGNANT_PERCENT, BreastCancer
from ml_tasks.task import DataError, SiteData

SITES = ("north", "east", "south", "west")


@pytest.fixture(scope="module")
def hospitals() -> dict[str, SiteData]:
    return {site: BreastCancer().load(None, site) for site in SITES}


def test_the_hospitals_share_out_every_mass_exactly_once(hospitals: dict[str, SiteData]) -> None:
    assert sum(BENIGN_PERCENT.values()) == sum(MALIGNANT_PERCENT.values()) == 100
    dealt = np.concatenate([part.features for data in hospitals.values() for part in (data.train, data.test)])
    everyone = load_breast_cancer().data.astype(np.float32)
    assert sorted(map(tuple, dealt.tolist())) == sorted(map(tuple, everyone.tolist()))


def test_any_number_of_numbered_hospitals_share_out_every_mass_exactly_once() -> None:
    parts = [BreastCancer().load(None, f"hospital-{place}-of-20") for place in range(1, 21)]
    dealt = np.concatenate([part.features for data in parts for part in (data.train, data.test)])
    everyone = load_breast_cancer().data.astype(np.float32)
    assert sorted(map(tuple, dealt.tolist())) == sorted(map(tuple, everyone.tolist()))
    assert all(0 < part.targets.mean() < 1 for data in parts for part in (data.train, data.test))
    with pytest.raises(DataError, match="no site"):
        BreastCancer().load(None, "hospital-3-of-2")


def test_target_1_is_malignant(hospitals: dict[str, SiteData]) -> None:
    malignant = sum(part.targets.sum() for data in hospitals.values() for part in (data.train, data.test))
    assert malignant == 212


def test_hospitals_differ_in_size_and_case_mix_and_each_part_has_both_classes(hospitals: dict[str, SiteData]) -> None:
    sizes = [len(data.train) + len(data.test) for data in hospitals.values()]
    assert max(sizes) > 3 * min(sizes)
    shares = [data.train.targets.mean() for data in hospitals.values()]
    assert max(shares) > 3 * min(shares)
    for data in hospitals.values():
        assert 0 < data.train.targets.mean() < 1
        assert 0 < data.test.targets.mean() < 1


def test_the_hospitals_are_the_same_on_every_machine(hospitals: dict[str, SiteData]) -> None:
    targets = b"".join(part.targets.tobytes() for data in hospitals.values() for part in (data.train, data.test))
    areas = b"".join(data.test.features[:, 3].tobytes() for data in hospitals.values())
    digest = hashlib.sha256(targets + areas).hexdigest()
    assert digest == "2b9373c7fb594854d5f6ec067d0dececc0603c47ca91805b233db1da6ba0819f"


def test_the_features_carry_scikit_learns_names_in_its_order_and_plausible_bounds(
    hospitals: dict[str, SiteData],
) -> None:
    assert [feature.name for feature in BreastCancer.features] == list(load_breast_cancer().feature_names)
    features = np.concatenate([data.train.features for data in hospitals.values()])
    low = np.array([feature.low for feature in BreastCancer.features])
    high = np.array([feature.high for feature in BreastCancer.features])
    assert ((features < low) | (features > high)).mean() < 0.01


def test_an_unknown_hospital_is_refused() -> None:
    with pytest.raises(DataError, match="no site 'centre'; use north, east, south, west"):
        BreastCancer().load(None, "centre")
