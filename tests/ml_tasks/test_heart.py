from pathlib import Path

import numpy as np
import pytest

from ml_tasks import heart
from ml_tasks.heart import HeartDisease
from ml_tasks.task import DataError

# Values that occur nowhere else, to find them again where they must not be: in messages.
CELLS = "61.25,1.0,3.0,147.25,281.25,0.0,2.0,133.25,1.0,1.125,?,?,?,1"
INCOMPLETE = CELLS.replace("147.25", "?")
HEADER = "center,center_id,row_in_file,split"


@pytest.fixture(scope="module")
def real_folder(shared_data: Path) -> Path:
    folder = shared_data / "uci-heart"
    if not folder.is_dir():
        pytest.skip(f"UCI Heart Disease with FLamby's split is not at {folder}")
    return folder


def _write(folder: Path, rows: list[str], split: list[str]) -> Path:
    (folder / "processed.va.data").write_text("\n".join(rows) + "\n")
    (folder / heart.SPLIT_FILE).write_text("\n".join([HEADER, *split]) + "\n")
    return folder


@pytest.mark.parametrize(
    ("site", "train", "test"),
    [("cleveland", 199, 104), ("hungarian", 172, 89), ("switzerland", 30, 16), ("va", 85, 45)],
)
def test_each_hospital_has_flambys_rows_and_split(real_folder: Path, site: str, train: int, test: int) -> None:
    data = HeartDisease().load(real_folder, site)
    assert (len(data.train), len(data.test)) == (train, test)
    assert train + test == {"cleveland": 303, "hungarian": 261, "switzerland": 46, "va": 130}[site]
    assert data.train.features.shape == (train, len(HeartDisease.features)) == (train, 13)
    for part in (data.train, data.test):
        assert np.isfinite(part.features).all()
        assert set(part.targets.tolist()) <= {0, 1}


def test_the_first_patient_of_cleveland_reads_as_in_the_file(real_folder: Path) -> None:
    first = HeartDisease().load(real_folder, "cleveland").train  # row 0 is in the train part
    assert first.features[0].tolist() == pytest.approx([63, 1, 145, 233, 1, 150, 0, 2.3, 0, 0, 0, 0, 1])
    assert first.targets[:3].tolist() == [0, 1, 1]


def test_the_public_bounds_hold_for_all_but_implausible_values(real_folder: Path) -> None:
    for site in heart.SITES:
        features = HeartDisease().load(real_folder, site).train.features
        for column, feature in enumerate(HeartDisease.features):
            outside = (features[:, column] < feature.low) | (features[:, column] > feature.high)
            assert outside.mean() <= 0.02, f"{feature.name} at {site}"


def test_row_in_file_counts_rows_that_are_left_out(tmp_path: Path) -> None:
    folder = _write(tmp_path, [INCOMPLETE, CELLS, CELLS.replace("61.25", "44")], ["va,3,1,test", "va,3,2,train"])
    data = HeartDisease().load(folder, "va")
    assert data.test.features[:, 0].tolist() == [61.25]
    assert data.train.features[:, 0].tolist() == [44]


def test_features_come_in_flambys_order_with_indicators_of_all_levels_but_the_first(tmp_path: Path) -> None:
    data = HeartDisease().load(_write(tmp_path, [CELLS], ["va,3,0,train"]), "va")
    assert data.train.features.tolist() == [[61.25, 1, 147.25, 281.25, 0, 133.25, 1, 1.125, 0, 1, 0, 0, 1]]
    assert data.train.targets.tolist() == [1]
    assert data.test.features.shape == (0, 13)


def test_a_site_reads_no_table_and_no_split_line_of_another(tmp_path: Path) -> None:
    _write(tmp_path, [CELLS], ["cleveland,0,damaged", "va,3,0,train"])  # and there is no other table
    assert len(HeartDisease().load(tmp_path, "va").train) == 1


@pytest.mark.parametrize(
    ("rows", "split", "said"),
    [
        ([CELLS, CELLS.replace("281.25", "281.25x")], [], ["processed.va.data", "chol is not a number in line 2"]),
        ([CELLS.replace("281.25", "nan")], [], ["chol is not a number in line 1"]),
        ([CELLS.replace("133.25", "inf")], [], ["thalach is not a number in line 1"]),
        ([CELLS.replace("133.25", "")], [], ["thalach is not a number in line 1"]),
        ([CELLS.replace(",3.0,", ",7.75,")], [], ["cp is not one of 1, 2, 3, 4 in line 1"]),
        ([CELLS, CELLS[:20]], [], ["line 2 has 4 columns instead of 14", "truncated"]),
        ([CELLS + ",61.25"], [], ["line 1 has 15 columns instead of 14"]),
        ([CELLS, CELLS], ["va,3,0,train"], [heart.SPLIT_FILE, "1 complete rows", "not assigned"]),
        ([CELLS], ["va,3,0,train", "va,3,1,test"], ["processed.va.data", "1 rows", "missing or incomplete"]),
        ([INCOMPLETE], ["va,3,0,train"], ["processed.va.data", "1 rows", "missing or incomplete"]),
        ([CELLS], ["va,3,0,train", "va,3,0,test"], [heart.SPLIT_FILE, "line 3 repeats a row"]),
        ([CELLS], ["va,3,0,validation"], [heart.SPLIT_FILE, "line 2 does not give a row and train or test"]),
        ([CELLS], ["va,3,-1,train"], [heart.SPLIT_FILE, "line 2 does not give a row"]),
        ([CELLS], ["va,3"], [heart.SPLIT_FILE, "line 2 has 2 columns instead of 4", "truncated"]),
        ([CELLS.replace("61.25", "61.25é")], [], ["processed.va.data", "not a text file"]),
    ],
)
def test_damaged_data_are_refused_in_one_line_that_says_where_and_quotes_no_cell(
    tmp_path: Path, rows: list[str], split: list[str], said: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        HeartDisease().load(_write(tmp_path, rows, split), "va")
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert "\n" not in message
    told = message.replace(str(tmp_path), "")
    assert not any(cell in told for cell in ["61.25", "147.25", "281.25", "133.25", "1.125", "7.75"])
    assert caught.value.__context__ is None, "a logged traceback would quote the cell through the original error"


def test_a_split_without_its_header_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, [CELLS], [])
    (tmp_path / heart.SPLIT_FILE).write_text("va,3,0,train\n")
    with pytest.raises(DataError, match="line 1 is not center,center_id,row_in_file,split"):
        HeartDisease().load(tmp_path, "va")


@pytest.mark.parametrize("name", ["processed.va.data", heart.SPLIT_FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (_write(tmp_path, [CELLS], ["va,3,0,train"]) / name).unlink()
    with pytest.raises(DataError, match=f"{name}: cannot be read"):
        HeartDisease().load(tmp_path, "va")


def test_a_missing_folder_and_an_unknown_site_are_refused(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"no such folder; name the one that holds processed\.va\.data"):
            HeartDisease().load(folder, "va")
    with pytest.raises(DataError, match="no site 'basel'; use cleveland, hungarian, switzerland, va"):
        HeartDisease().load(tmp_path, "basel")
