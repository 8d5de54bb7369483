"""The sampler's benchmark gives what it promises; a sample costs next to nothing beside OpenDP's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def measured(samples: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.noise", "--json", "--samples", str(samples)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, timeout=200).stdout
    return json.loads(printed)


@pytest.mark.slow
def test_a_sample_takes_a_small_part_of_the_time_of_opendps() -> None:
    report = measured(100_000)
    assert [one["sigma"] for one in report["results"]] == [2, 20, 1000, 50000, 2**39]
    for one in report["results"]:
        assert one["samples"] == 10**5
        assert 0 < 20 * one["ns_per_sample"] < one["opendp_ns_per_sample"]
        assert one["table_ms"] > 0
    assert set(report["mask_s"]) == {"rotation", "encoding", "noise", "masks"}


@pytest.mark.alone
@pytest.mark.slow
def test_a_sample_takes_half_a_microsecond_a_table_a_fifth_of_a_second_and_privacy_little_of_a_mask() -> None:
    report = measured(1_000_000)
    assert {one["sigma"] for one in report["results"] if one["ns_per_sample"] > 500 or one["table_ms"] > 200} == set()
    assert report["mask_s"]["rotation"] <= 0.05
    assert report["mask_s"]["rotation"] + report["mask_s"]["noise"] <= 0.7
