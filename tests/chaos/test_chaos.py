"""Two trainings through everything that can happen; ``tests.chaos.run`` runs many."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.run import chaos, founded
from tests.processes.harness import Consortium

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything lies."""
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def home(folder: Path) -> Iterator[Consortium]:
    """A consortium whose sites record what they mask."""
    with founded(folder) as running:
        yield running


@pytest.mark.parametrize("time", ["first", "second"])
def test_a_training_to_which_everything_happens_ends_with_the_model_of_a_replay(
    home: Consortium, folder: Path, time: str
) -> None:
    """FEDSEAL_CHAOS_SEED repeats a seed."""
    seed = int(os.environ.get("FEDSEAL_CHAOS_SEED", secrets.randbelow(10**6)))
    print(f"FEDSEAL_CHAOS_SEED={seed}")
    told = chaos(home, folder / "records", seed)
    print(*told, sep="\n")
