"""The eICU plan through ``fedseal run``: its test AUROC, a region without deaths, tables that are broken."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import pytest

from deploy import EXAMPLE
from tests.deploy.command import fedseal, refused

EICU = EXAMPLE.with_name("eicu.toml")
TABLES = ("patient", "hospital", "apacheApsVar", "apachePredVar")


@pytest.fixture
def tables(shared_data: Path, tmp_path: Path) -> Path:
    """A copy of the demo's tables, to be damaged."""
    folder = tmp_path / "eicu"
    folder.mkdir()
    for name in TABLES:
        shutil.copyfile(shared_data / "eicu-demo" / f"{name}.csv.gz", folder / f"{name}.csv.gz")
    return folder


@pytest.mark.slow
def test_the_eicu_plan_reports_its_test_auroc(home: Path, shared_data: Path, tmp_path: Path) -> None:
    code, _, err = fedseal("run", EICU, "--data", shared_data / "eicu-demo", "--json", tmp_path / "report.json")
    assert code == 0, err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["final"]["metrics"]["auroc"] >= 0.815
    assert {"auprc", "calibration_error", "observed_expected"} <= set(report["final"]["metrics"])
    assert report["monitored"] == "validation"
    assert {"midwest alone", "pooled"} <= set(report["baselines"])


@pytest.mark.slow
def test_a_region_without_deaths_takes_part_all_the_same(home: Path, tables: Path, tmp_path: Path) -> None:
    with gzip.open(tables / "hospital.csv.gz", "rt", newline="") as file:
        northeast = {row["hospitalid"] for row in csv.DictReader(file) if row["region"] == "Northeast"}
    with gzip.open(tables / "patient.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["hospitalid"] in northeast and row["hospitaldischargestatus"] == "Expired":
            row["hospitaldischargestatus"] = "Alive"
    with gzip.open(tables / "patient.csv.gz", "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    json_path = tmp_path / "report.json"
    code, _, err = fedseal("run", EICU, "--data", tables, "--set", "rounds=1", "--no-baselines", "--json", json_path)
    assert code == 0, err
    report = json.loads(json_path.read_text())
    assert "northeast" in report["rounds"][0]["survivors"]
    assert report["final"]["metrics"]["auroc"] > 0.6


def test_a_gzip_that_ends_early_or_a_missing_table_is_one_line(home: Path, tables: Path) -> None:
    table = tables / "apacheApsVar.csv.gz"
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    assert "apacheApsVar.csv.gz" in refused(home, EICU, "--data", tables)
    table.unlink()
    assert "apacheApsVar.csv" in refused(home, EICU, "--data", tables)
