import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ml_tasks import tabular, training
from ml_tasks.eicu import FEATURES, Eicu, features_of, part_of
from ml_tasks.eicu_tables import ALLOWED, FORBIDDEN, KEY, REGIONS, TARGET, read_stays
from ml_tasks.metrics import summarise
from ml_tasks.private import units
from ml_tasks.task import DataError
from ml_tasks.training import LocalTraining

# A value that occurs nowhere else, to find it again where it must not be: in messages.
CELL = "73.625"
Row = dict[str, str]
Tables = dict[str, list[Row]]
# The headers of the demo's tables, in alphabetical order: a loader must go by name.
HEADERS = {
    "hospital": ["hospitalid", "numbedscategory", "region", "teachingstatus"],
    "patient": sorted({*ALLOWED["patient"], *FORBIDDEN["patient"], "ethnicity", "unittype", "admissionheight"}),
    "apacheApsVar": sorted({*ALLOWED["apacheApsVar"], "apacheapsvarid"}),
    "apachePredVar": sorted({*ALLOWED["apachePredVar"], *FORBIDDEN["apachePredVar"], "apachepredvarid", "admitsource"}),
}


@pytest.fixture(scope="module")
def demo(shared_data: Path) -> Path:
    return shared_data / "eicu-demo"


def _tables(stays: int = 12) -> Tables:
    """Hospital 1 is in the Midwest, 2 in the South, 3 nowhere known; every fourth stay ends in death."""
    tables: Tables = {
        "hospital": [{"hospitalid": str(i + 1), "region": r} for i, r in enumerate(["Midwest", "South", ""])]
    }
    status = ["Expired", "Alive", "Alive", "Alive"]
    tables["patient"] = [
        {
            KEY: str(100 + i),
            TARGET: status[i % 4],
            "uniquepid": f"p{i}",
            "hospitalid": str(i % 3 + 1),
            "age": str(40 + i),
        }
        for i in range(stays)
    ]
    tables["apacheApsVar"] = [{KEY: str(100 + i), "heartrate": str(60 + 10 * i), "ph": "-1"} for i in range(stays)]
    tables["apachePredVar"] = [{KEY: str(100 + i), "admitdiagnosis": "SEPSISPULM"} for i in range(stays)]
    return tables


def _write(
    folder: Path, tables: Tables, suffix: str = ".csv.gz", drop: dict[str, tuple[str, ...]] | None = None
) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        header = [column for column in HEADERS[name] if column not in (drop or {}).get(name, ())]
        file = folder / f"{name}{suffix}"
        with gzip.open(file, "wt") if suffix == ".csv.gz" else file.open("w") as text:
            writer = csv.DictWriter(text, header, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return folder


def _column(features: NDArray[np.float32], name: str) -> list[float]:
    return features[:, [feature.name for feature in FEATURES].index(name)].tolist()


def test_each_region_of_the_demo_has_its_stays_and_deaths(demo: Path) -> None:
    found = {region: read_stays(demo, region) for region in REGIONS}
    assert {region: (len(stays.patients), int(stays.targets.sum())) for region, stays in found.items()} == {
        "midwest": (718, 52),
        "south": (666, 59),
        "west": (458, 44),
        "northeast": (138, 19),
        "unknown": (199, 22),
    }  # in all 2,179 and 196


def test_a_patient_of_two_regions_is_in_the_same_part_in_both(demo: Path) -> None:
    patients = {region: set(read_stays(demo, region).patients) for region in REGIONS}
    assert len(set().union(*patients.values())) < sum(map(len, patients.values())), "no patient has moved"
    data = [Eicu().load(demo, region) for region in REGIONS]
    for part in ("train", "validation", "test"):
        expected = [sum(part_of(name) == part for name in read_stays(demo, region).patients) for region in REGIONS]
        assert [len(getattr(one, part)) for one in data] == expected


def test_a_patient_s_stays_are_one_unit_of_privacy(demo: Path) -> None:
    for region in REGIONS:
        stays, data = read_stays(demo, region), Eicu().load(demo, region)
        train = [name for name in stays.patients if part_of(name) == "train"]
        assert len(train) == len(data.train)
        assert units(data.train).max() + 1 == len(set(train)) < len(train)
        assert np.array_equal(np.array(train)[:, None] == train, units(data.train)[:, None] == units(data.train))


def test_the_parts_have_their_shares_and_do_not_change() -> None:
    parts = [part_of(f"002-{i}") for i in range(10_000)]
    assert [parts.count(part) / 100 for part in ("train", "validation", "test")] == pytest.approx([64, 16, 20], abs=1.5)
    # A split that moved would put test patients of an earlier training into a later one.
    assert parts[:8] == ["train", "train", "validation", "train", "train", "validation", "test", "train"]


def test_the_public_bounds_hold_for_all_but_implausible_values(demo: Path) -> None:
    for region in REGIONS:
        features = features_of(read_stays(demo, region))
        assert features.shape[1] == len(FEATURES) == 84
        for column, feature in enumerate(FEATURES):
            outside = (features[:, column] < feature.low) | (features[:, column] > feature.high)
            assert outside.mean() <= 0.01, f"{feature.name} in {region}"
            assert np.isnan(features[:, column]).mean() < 0.1, f"{feature.name} in {region}"


def test_training_on_two_thirds_of_a_region_ranks_the_rest_better_than_chance(demo: Path) -> None:
    task, data = Eicu(), Eicu().load(demo, "south")
    scaled = tabular.standardisation(tabular.moments(data.train.features, FEATURES), FEATURES)
    vector = training.initial_vector(task, 1)
    assert summarise(training.evaluate(task, data.train, vector, scaled))["observed_expected"] == pytest.approx(
        0.9, abs=0.2
    )
    vector = vector + training.train(task, data.train, vector, scaled, LocalTraining(200, 64, 0.05), 1)
    assert data.validation is not None
    assert summarise(training.evaluate(task, data.validation, vector, scaled))["auroc"] > 0.7


# The door: what is known only after the stay is no input.


def test_nothing_forbidden_is_allowed_and_whatever_tells_of_the_end_is_forbidden(demo: Path) -> None:
    assert "apachePatientResult" not in ALLOWED
    for table, columns in ALLOWED.items():
        assert not set(columns) & set(FORBIDDEN.get(table, ()))
        with gzip.open(demo / f"{table}.csv.gz", "rt") as text:
            header = next(csv.reader(text))
        assert set(columns) <= set(header)
        telling = ("discharge", "died", "death", "actual", "predicted", "hspxlos", "status")
        ends = {name for name in header if any(word in name for word in telling)} - {TARGET, "teachingstatus"}
        assert ends <= set(FORBIDDEN.get(table, ())), "forbid it, or say here why it may be read"


@pytest.mark.parametrize("site", ["midwest", "south", "unknown"])
def test_a_perfect_leak_in_every_forbidden_column_changes_nothing(tmp_path: Path, site: str) -> None:
    honest, leaky = _tables(), _tables()
    died = {row[KEY]: row[TARGET] == "Expired" for row in leaky["patient"]}
    for table, columns in FORBIDDEN.items():
        for row in leaky.get(table, []):
            row |= {column: "999" if died[row[KEY]] else "0" for column in columns}
    found = read_stays(_write(tmp_path / "honest", honest), site)
    for folder in (
        _write(tmp_path / "leaky", leaky),
        _write(tmp_path / "without", leaky, drop=dict(FORBIDDEN)),
    ):
        (folder / "apachePatientResult.csv.gz").write_bytes(b"not even gzip")
        again = read_stays(folder, site)
        np.testing.assert_array_equal(features_of(again), features_of(found))
        np.testing.assert_array_equal(again.targets, found.targets)


def test_the_outcome_is_the_target_and_no_input(tmp_path: Path) -> None:
    turned = _tables()
    for row in turned["patient"]:
        row[TARGET] = "Alive" if row[TARGET] == "Expired" else "Expired"
    before, after = (read_stays(_write(tmp_path / n, t), "south") for n, t in (("a", _tables()), ("b", turned)))
    np.testing.assert_array_equal(features_of(before), features_of(after))
    assert before.targets.tolist() == [0, 1, 0, 0]
    assert after.targets.tolist() == [1, 0, 1, 1]


# The loader, on tables that are written here.


def test_a_row_reads_as_it_is_written(tmp_path: Path) -> None:
    tables = _tables(3)
    tables["patient"][1] |= {
        "age": "> 89",
        "gender": "Female",
        "unitadmitsource": "PACU",
        "hospitaladmitoffset": "-1440",
    }
    tables["apacheApsVar"][1] |= {
        "heartrate": "160",
        "urine": "-1",
        "wbc": "8",
        "meds": "-1",
        "ph": "7.1",
        "pco2": "30",
    }
    tables["apachePredVar"][1] |= {
        "electivesurgery": "1",
        "admitdiagnosis": "S-CABGAOV",
        "diabetes": "1",
        "cirrhosis": "1",
    }
    features = features_of(read_stays(_write(tmp_path, tables), "south"))
    expected = {
        "age": 90,
        "heartrate points": 17,
        "acid-base points": 12,
        "physiology points": 29,
        "chronic points": 0,  # after elective surgery
        "APACHE III score": 53,  # 24 for the age
        "elective surgery": 1,
        "surgical diagnosis": 1,
        "from operation": 1,
        "from emergency": 0,
        "female": 1,
        "diagnosis: heart surgery": 1,
        "diagnosis: sepsis": 0,
        "diabetes": 1,
        "cirrhosis": 1,
        "urine missing": 1,
        "wbc missing": 0,
        "log days in hospital before": float(np.float32(np.log(2))),
    }
    assert {name: _column(features, name)[0] for name in expected} == pytest.approx(expected)
    assert np.isnan(_column(features, "meds")[0])


def test_stays_without_an_outcome_or_without_apache_inputs_are_left_out(tmp_path: Path) -> None:
    tables = _tables()
    tables["patient"][1][TARGET] = ""
    del tables["apacheApsVar"][4], tables["apachePredVar"][4]
    assert read_stays(_write(tmp_path, tables), "south").patients == ["p7", "p10"]


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv"])
def test_gzipped_and_plain_tables_read_the_same(tmp_path: Path, suffix: str) -> None:
    stays = read_stays(_write(tmp_path, _tables(), suffix), "midwest")
    assert stays.patients == ["p0", "p3", "p6", "p9"]
    assert stays.targets.tolist() == [1, 0, 0, 0]


def test_a_hospital_of_its_own_is_a_site(tmp_path: Path) -> None:
    folder = _write(tmp_path, _tables())
    assert read_stays(folder, "hospital-2").patients == read_stays(folder, "south").patients
    with pytest.raises(DataError, match="no hospital of hospital-4"):
        read_stays(folder, "hospital-4")


def test_a_site_is_not_stopped_by_what_is_in_anothers_rows(tmp_path: Path) -> None:
    tables = _tables()
    tables["patient"][0] |= {TARGET: "?", "age": "old"}
    tables["apacheApsVar"][0]["heartrate"] = "fast"
    tables["apachePredVar"].append(tables["apachePredVar"][0])
    assert len(read_stays(_write(tmp_path, tables), "south").patients) == 4


def test_a_site_without_deaths_trains_and_is_measured(tmp_path: Path) -> None:
    tables = _tables(120)
    for row in tables["patient"]:
        row[TARGET] = "Alive"
    task, data = Eicu(), Eicu().load(_write(tmp_path, tables), "midwest")
    scaled = tabular.standardisation(tabular.moments(data.train.features, FEATURES), FEATURES)
    vector = training.initial_vector(task, 0)
    update = training.train(task, data.train, vector, scaled, LocalTraining(5, 16, 0.05), 0)
    assert np.isfinite(update).all()
    assert "auroc" not in summarise(training.evaluate(task, data.test, vector + update, scaled))


@pytest.mark.parametrize("table", ["hospital", "patient", "apacheApsVar", "apachePredVar"])
def test_a_missing_table_or_column_is_named(tmp_path: Path, table: str) -> None:
    column = ALLOWED[table][-1]
    folder = _write(tmp_path, _tables(), drop={table: (column,)})
    with pytest.raises(DataError, match=rf"{table}\.csv\.gz: line 1 names no column {column}; "):
        read_stays(folder, "south")
    (folder / f"{table}.csv.gz").unlink()
    with pytest.raises(DataError, match=rf"no table {table}\.csv\.gz or {table}\.csv"):
        read_stays(folder, "south")


@pytest.mark.parametrize("table", ["hospital", "patient", "apacheApsVar", "apachePredVar"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.99])
def test_a_gzip_that_ends_early_is_refused(tmp_path: Path, table: str, share: float) -> None:
    file = _write(tmp_path, _tables(400)) / f"{table}.csv.gz"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    _refused(tmp_path, "south", [file.name])


def test_a_damaged_or_mistaken_gzip_is_refused(tmp_path: Path) -> None:
    file = _write(tmp_path, _tables(400)) / "apacheApsVar.csv.gz"
    good = bytearray(file.read_bytes())
    for wrong in (b"patientunitstayid,heartrate\n1,2\n", bytes(good[:60] + bytes([good[60] ^ 255]) + good[61:])):
        file.write_bytes(wrong)
        _refused(tmp_path, "south", [file.name, "get it again"])


@pytest.mark.parametrize(
    ("table", "row", "changed", "said"),
    [
        ("apacheApsVar", 1, {"heartrate": f"{CELL}x"}, ["apacheApsVar", "heartrate is not a number in line 3"]),
        ("apacheApsVar", 1, {"wbc": "nan"}, ["wbc is not a number in line 3"]),
        ("apachePredVar", 4, {"diabetes": "inf"}, ["apachePredVar", "diabetes is not a number in line 6"]),
        ("apacheApsVar", 4, {KEY: "101", "heartrate": CELL}, ["line 6 repeats a stay"]),
        ("apachePredVar", 4, {KEY: "999"}, ["1 stays of south are in one of", "truncated"]),
        ("patient", 4, {KEY: "101"}, ["patient", "line 6 repeats a stay"]),
        ("patient", 1, {"age": f"{CELL} years"}, ["patient", "age is not a number in line 3"]),
        ("patient", 1, {TARGET: CELL}, [f"{TARGET} is not Alive or Expired in line 3"]),
        ("patient", 1, {"uniquepid": ""}, ["line 3 does not say which patient"]),
        ("hospital", 0, {"region": CELL}, ["hospital", "region is not one of midwest, south", "in line 2"]),
        ("hospital", 1, {"region": "West"}, ["there is no hospital of south"]),
    ],
)
def test_damaged_data_are_refused_in_one_line_that_says_where_and_quotes_no_cell(
    tmp_path: Path, table: str, row: int, changed: Row, said: list[str]
) -> None:
    tables = _tables()
    tables[table][row] |= changed
    _refused(_write(tmp_path, tables, suffix=".csv"), "south", said)


def test_a_plain_table_that_ends_within_a_row_or_is_not_text_is_refused(tmp_path: Path) -> None:
    file = _write(tmp_path, _tables(), suffix=".csv") / "apacheApsVar.csv"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    _refused(tmp_path, "south", ["apacheApsVar.csv", "line 13 has", "truncated"])
    file.write_bytes(whole + f'"{CELL}'.encode())
    _refused(tmp_path, "south", ["apacheApsVar.csv", "not CSV"])
    file.write_bytes(whole + CELL.encode() + b"\xe9\xff")
    _refused(tmp_path, "south", ["apacheApsVar.csv", "not UTF-8"])


def test_a_site_with_no_stays_an_unknown_site_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    tables = _tables()
    tables["patient"] = [row for row in tables["patient"] if row["hospitalid"] != "2"]
    _refused(_write(tmp_path, tables), "south", ["no stay of south"])
    with pytest.raises(
        DataError, match="no site 'east'; use midwest, south, west, northeast, unknown, or hospital-<id>"
    ):
        Eicu().load(tmp_path, "east")
    for folder in (None, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="no such folder; name the one that holds the tables of eICU"):
            Eicu().load(folder, "south")


def _refused(folder: Path, site: str, said: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        Eicu().load(folder, site)
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert "\n" not in message
    assert CELL not in message.replace(str(folder), "")
    assert caught.value.__context__ is None, "a logged traceback would quote the cell through the original error"
