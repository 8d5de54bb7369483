"""The soak benchmark tells what grows from what does not, in numbers and in a real training."""

from pathlib import Path

import numpy as np
import pytest

from deploy.up import site_names
from tests.benchmarks.soak import WARM, Sample, grows, slope, soak, table, verdict
from tests.processes.harness import consortium

HOARDER = "tests.processes.tasks:Hoarder"
IN_PROCESS = dict.fromkeys(site_names(3), 'sandbox = "none"')
"""The task shows that growth is seen in a participation's process; in the sandbox it grows in its own."""


def series(memory: np.ndarray, files: np.ndarray | int = 30, threads: np.ndarray | int = 12) -> list[Sample]:
    """Samples of a process, after rounds that are not judged."""
    columns = np.broadcast_arrays(memory, files, threads)
    judged = [
        Sample(int(own), int(own), int(own), int(held), int(threads))
        for own, held, threads in zip(*columns, strict=True)
    ]
    return [Sample(1, 1, 1, 1, 1)] * WARM + judged


ROUNDS = np.arange(45)
NOISE = np.random.default_rng(7).normal(0, 5e5, 45)


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (series(2e8 + NOISE), "flat"),
        (series(2e8 + NOISE + 5e4 * ROUNDS), "flat"),
        (series(2e8 + NOISE + 2e7 * (ROUNDS > 20)), "flat"),
        (series(2e8 - NOISE - 1e6 * ROUNDS), "flat"),
        (series(2e8 + NOISE, 30 + ROUNDS % 5), "flat"),
        (series(2e8 + NOISE + 4e5 * ROUNDS), "growing: memory"),
        (series(2e8 + NOISE, 30 + ROUNDS % 5 + ROUNDS // 5), "growing: files"),
        (series(2e8 + NOISE, 30, 12 + ROUNDS // 10), "growing: threads"),
    ],
)
def test_growth_is_told_from_noise_from_a_step_and_from_shrinking(samples: list[Sample], says: str) -> None:
    assert verdict(samples) == says


def test_too_few_rounds_do_not_grow() -> None:
    assert not grows([1.0, 2.0], 0.0)


@pytest.mark.slow
def test_a_task_that_hoards_is_called_growing_and_the_others_are_not(tmp_path: Path) -> None:
    with consortium(tmp_path, 3, tables=IN_PROCESS, tasks=[HOARDER]) as running:
        found = soak(running, WARM + 6, HOARDER)
    print(table(found))
    ours = {role: said for role, said in found["verdicts"].items() if role != "server"}  # Prefect's connections vary
    for role, said in ours.items():
        hoards = role.startswith("participation")
        assert not hoards or ("memory" in said and "files" in said), (role, said)
        # In so few rounds the others are still warming up, but they open no file for every step.
        files = [one["files"] for one in found["samples"][role][WARM:]]
        assert (slope(files) > 2) == hoards, (role, files)
