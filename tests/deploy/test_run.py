"""``fedseal run``: what it leaves when it succeeds; one line, exit code 2 and nothing else when the input is bad."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from deploy import EXAMPLE
from deploy.cli import STARTING
from deploy.price import price
from flows.plan import read_plan
from ml_tasks.averaging import load_vector, to_vector
from ml_tasks.breast_cancer import BreastCancer
from ml_tasks.metrics import summarise
from ml_tasks.tabular import Standardisation
from ml_tasks.training import describe, evaluate
from tests.deploy.command import fedseal, refused
from tests.flows.tasks import SITES

HEART = EXAMPLE.with_name("heart.toml")
TINY = f"""
name = "tiny"
task = "tests.flows.tasks:TASK"
data = "tiny"
sites = {json.dumps(SITES)}
rounds = 1
max_attempts = 1
"""


def tiny(folder: Path, task: str) -> Path:
    path = folder / "tiny.toml"
    path.write_text(TINY.replace("TASK", task))
    return path


def test_the_embedded_example_runs_and_leaves_model_report_and_plot(home: Path, tmp_path: Path) -> None:
    code, out, _ = fedseal("run", "--set", "rounds=2", "--json", tmp_path / "report.json")
    assert code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (folder,) = (home / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint",
        "consortium.toml",
        "coordinator",
        "metrics.png",
        "model.safetensors",
        "plan.json",
        "receipt.json",
        "report.json",
        "sites",
    }
    assert (folder / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "report.json").read_text()) == report
    assert report["privacy"] is None
    assert [(one["round"], one["attempt"]) for one in report["rounds"]] == [(1, 1), (2, 1)]
    for one in (report["statistics"], *report["rounds"], report["final"]):
        assert one["survivors"] == ["east", "north", "south", "west"]
        assert one["dropped"] == []
        assert one["epsilon"] is None
        assert one["bytes_per_site"] > 0
        assert one["seconds"]["total"] >= one["seconds"]["train"] >= 0
        assert one["clamped"] == 0
    assert report["rounds"][1]["metrics"]["loss"] < report["rounds"][0]["metrics"]["loss"]
    assert set(report["baselines"]) == {"north alone", "east alone", "south alone", "west alone", "pooled"}
    for word in ("federated", "pooled", "north alone", "secure aggregation", "no differential privacy"):
        assert word in out
    assert "four hospitals are simulated" in out
    check_model(folder / report["model"], report["final"]["metrics"])
    options = ("--consortium", folder / "consortium.toml", "--model", folder / report["model"])
    code, out, _ = fedseal("verify", folder / report["receipt"], *options)
    assert code == 0
    assert "evaluation[3.1]: summed east, north, south, west" in out
    check_made_again(folder, report)


def check_made_again(folder: Path, report: dict[str, object]) -> None:
    """Report, baselines and plot of the finished training are made once more."""
    (folder / "metrics.png").unlink()
    (folder / "report.json").unlink()
    code, out, err = fedseal("report", folder, "--json", "-")
    assert code == 0 and "federated" in err and "pooled" in err, err
    assert json.loads(out) == json.loads((folder / "report.json").read_text()) == report
    assert (folder / "metrics.png").read_bytes().startswith(b"\x89PNG")


def check_model(path: Path, metrics: dict[str, float]) -> None:
    """The model on disk, loaded as an ML engineer would, gives the reported final metrics."""
    tensors = load_file(path)
    task = BreastCancer()
    scaling = Standardisation(tensors.pop("standardisation.mean"), tensors.pop("standardisation.scale"))
    model = task.model()
    assert set(tensors) == set(model.state_dict())
    vector = np.concatenate([tensors[name].reshape(-1) for name in model.state_dict()])
    load_vector(model, vector)
    assert np.array_equal(to_vector(model), vector)
    counts = [
        evaluate(task, task.load(None, site).test, vector, scaling) for site in ("north", "east", "south", "west")
    ]
    again = summarise({name: sum(one[name] for one in counts) for name in counts[0]})
    for name in ("examples", "accuracy", "auroc"):
        assert again[name] == metrics[name]
    assert again["loss"] == pytest.approx(metrics["loss"], abs=1e-5)


@pytest.mark.slow
def test_the_heart_plan_trains_on_four_real_hospitals(home: Path, shared_data: Path, tmp_path: Path) -> None:
    options = ("--set", "seed=42", "--json", tmp_path / "report.json", "--no-baselines")
    code, out, _ = fedseal("run", HEART, "--data", shared_data / "uci-heart", *options)
    assert code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["final"]["metrics"]["examples"] == 254
    assert report["final"]["metrics"]["accuracy"] >= 0.785
    assert "training 10.1" in out


def test_the_console_script_and_its_exit_code_work_from_another_folder(home: Path, tmp_path: Path) -> None:
    command = [Path(sys.executable).parent / "fedseal", "run", "nowhere.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    said = "fedseal: nowhere.toml: cannot be read (No such file or directory): give the path of a plan\n"
    assert done.stderr == f"{STARTING}\n{said}"
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "roundz=3"), "--set roundz=3: roundz: there is no such field: did you mean rounds?"),
        (("--set", "protection.threshold=2"), "2 x threshold (2) must exceed sites (4) + colluding (1)"),
        (("--set", "protection.protocol=plain"), "set protection.allow_insecure = true"),
        (("--set", "task=no_such.module:Task"), "is not installed"),
        (("--set", "task=json:JSONDecoder"), "not a subclass of ml_tasks.task.Task"),
        (("--set", "protection.update.bits=16"), "does not stay below 2^15"),
        (("--set", "protection.max_examples=1000000000"), "does not stay below 2^31: lower protection.max_examples"),
        (("--json", "/no/such/folder/report.json"), "cannot be written there"),
        (("--data", "/no/such/folder"), "there is no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(home: Path, words: tuple[str, ...], said: str) -> None:
    assert said in refused(home, *words)


def test_a_task_that_needs_data_says_how_to_name_them(home: Path, tmp_path: Path) -> None:
    assert "--data DIR" in refused(home, HEART)
    assert "processed.cleveland.data" in refused(home, HEART, "--data", tmp_path)


def test_a_malformed_table_names_the_site_and_the_line_and_shows_no_cell(
    home: Path, shared_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "heart"
    folder.mkdir()
    for path in (shared_data / "uci-heart").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    table = folder / "processed.va.data"
    lines = table.read_text().splitlines()
    lines[6] = lines[6].replace(lines[6].split(",")[3], "SECRETVALUE", 1)
    table.write_text("\n".join(lines) + "\n")
    json_path = tmp_path / "report.json"
    line = refused(home, HEART, "--data", folder, "--json", json_path)
    assert "va: " in line
    assert "line 7" in line
    assert "SECRETVALUE" not in line
    assert not json_path.exists()


def test_an_update_with_nan_names_the_site_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    words = (tiny(tmp_path, "Diverging"), "--json", tmp_path / "report.json")
    assert "cat: " in refused(home, *words, after_sums=True)
    assert not (tmp_path / "report.json").exists()


def test_a_task_that_fails_on_the_data_is_said_before_anything_runs(home: Path, tmp_path: Path) -> None:
    code, out, err = fedseal("run", tiny(tmp_path, "Crashing"))
    assert code == 2
    assert out == ""
    assert "RuntimeError" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_plan_tells_what_a_training_costs_as_a_training_does(home: Path, tmp_path: Path) -> None:
    code, out, _ = fedseal("plan", EXAMPLE)
    assert code == 0
    for word in ("no sum can overflow", "Smallest survivor set: 3 sites", "No differential privacy", "update"):
        assert word in out
    assert fedseal("run", "--set", "rounds=1", "--no-baselines", "--json", tmp_path / "report.json")[0] == 0
    report = json.loads((tmp_path / "report.json").read_text())
    plan = read_plan(EXAMPLE)
    prices = {one.purpose: one for one in price(plan, describe(BreastCancer()).sizes)}
    for purpose, record in (
        ("statistics", report["statistics"]),
        ("training", report["rounds"][0]),
        ("evaluation", report["final"]),
    ):
        told = prices[purpose].vector_bytes + prices[purpose].message_bytes
        assert record["bytes_per_site"] == pytest.approx(told, rel=0.01)


PRIVATE = (
    "local.steps=1",
    "privacy.unit=record",
    "privacy.epsilon=3.0",
    "privacy.expected_batch=20.0",
    "privacy.statistics=bounds",
)


def private(*overrides: str) -> tuple[int, str, str]:
    """What ``fedseal plan`` says of the example with privacy."""
    words = [word for override in (*PRIVATE, *overrides) for word in ("--set", override)]
    return fedseal("plan", EXAMPLE, *words)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), "at delta 1e-05 for adding or removing one record"),
        (("privacy.noise=local", "local.steps=4"), "each of its 4 steps a round, all by itself"),
        (
            ("privacy.unit=site", "privacy.sampling_rate=1.0", "privacy.least_weight=0.5", "privacy.adaptive=true"),
            "follows the 0.5-quantile",
        ),
    ],
)
def test_plan_tells_what_privacy_a_training_has(overrides: tuple[str, ...], said: str) -> None:
    code, out, err = private(*overrides, "protection.update.bits=64")
    assert (code, err) == (0, "")
    assert said in out and "has room for" in out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("privacy.training_noise=0.1",), "raise the noise"),
        (("privacy.sampling_rate=1.5",), "less than or equal to 1"),
        (("protection.update.bits=16", "protection.update.scale=900.0"), "of noise"),
        (("privacy.epsilon=0.0",), "needs epsilon"),
        (("protection.threshold=2",), "2 x threshold (2) must exceed"),
        (("task=tests.flows.tasks:Mixing",), "its module 1 (BatchNorm1d) mixes records"),
    ],
)
def test_a_plan_without_the_privacy_that_it_names_is_refused_with_exit_code_2(
    overrides: tuple[str, ...], said: str
) -> None:
    code, out, err = private(*overrides)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("protection.update.bits=16", "does not stay below 2^15"),
        ("protection.threshold=2", "2 x threshold (2) must exceed"),
        ("task=no_such.module:Task", "is not installed"),
    ],
)
def test_plan_refuses_with_exit_code_2_and_the_reason(override: str, said: str) -> None:
    code, out, err = fedseal("plan", EXAMPLE, "--set", override)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
