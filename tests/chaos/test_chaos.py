"""A training through half of what can happen; ``tests.chaos.run`` runs many through all of it."""

import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.run import chaos, founded
from tests.processes.harness import Consortium

pytestmark = pytest.mark.slow

ROUNDS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything lies."""
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def home(folder: Path) -> Iterator[Consortium]:
    """A consortium whose sites record what they mask."""
    with founded(folder) as running:
        yield running


@pytest.fixture(scope="module")
def seed() -> int:
    """Decide who, when, and what happens together; FEDSEAL_CHAOS_SEED repeats it."""
    return int(os.environ.get("FEDSEAL_CHAOS_SEED", secrets.randbelow(10**6)))


def test_a_training_to_which_half_of_everything_happens_ends_with_the_model_of_a_replay(
    home: Consortium, folder: Path, seed: int
) -> None:
    print(f"FEDSEAL_CHAOS_SEED={seed}")
    faults = random.Random(seed).sample(FAULTS, len(FAULTS) // 2)
    told = chaos(home, folder / "records", seed, faults, ROUNDS)
    print(*told, sep="\n")
