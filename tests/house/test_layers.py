"""The layers of the house: what may import what, and that the check would notice."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LAYERS = ("protocols", "ml_tasks", "flows", "deploy")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the import contracts on the layers in a folder."""
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([command, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def test_the_layer_rules_hold() -> None:
    result = lint_imports(REPOSITORY)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("layer", "offence"),
    [
        ("protocols", "import prefect"),
        ("protocols", "import torch.nn"),
        ("protocols", "from ml_tasks import task"),
        ("ml_tasks", "from cryptography.hazmat.primitives import hashes"),
        ("ml_tasks", "import prefect"),
        ("ml_tasks", "import protocols"),
        ("flows", "import deploy"),
    ],
)
def test_an_import_across_the_layers_is_caught(tmp_path: Path, layer: str, offence: str) -> None:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    for name in LAYERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "ml_tasks" / "task.py").touch()
    assert lint_imports(tmp_path).returncode == 0

    (tmp_path / layer / "offender.py").write_text(offence + "\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{layer}.offender" in result.stdout


@pytest.mark.slow
def test_the_programs_of_site_and_coordinator_start_and_train_without_scipy_and_torch_s_compiler() -> None:
    """Each takes a second or two to load, in every party's process, and a training without privacy uses neither."""
    program = """
import sys
sys.modules["scipy"] = sys.modules["torch._dynamo"] = None
import deploy.coordinate, deploy.participate
from ml_tasks.training import LocalTraining, initial_vector, train
from tests.flows.tasks import Tiny
task = Tiny()
assert train(task, task.load(None, "ann").train, initial_vector(task, 1), None, LocalTraining(3, 4, 0.1), 1).any()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_program_of_a_participation_loads_no_torch() -> None:
    """Tasks run in processes of their own (SPEC 8.1): what loads PyTorch is their warm parent, beside it."""
    program = """
import sys
sys.modules["torch"] = sys.modules["scipy"] = sys.modules["sklearn"] = None
import deploy.participate, deploy.worker, flows.engine, flows.participation, flows.site, flows.sandbox.sandboxed
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")
