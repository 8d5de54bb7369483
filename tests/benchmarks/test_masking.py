"""The benchmark gives what it promises, and the wire costs no more than the ring's bytes and a signed message."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMITS = {32: 4.01, 16: 2.01}


def test_a_parameter_costs_hardly_more_than_its_ring_on_the_wire() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.masking", "--json", "--parameters", "100000"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, timeout=60).stdout
    report = json.loads(printed)
    assert report["neighbours"] == 9
    assert [(one["parameters"], one["bits"]) for one in report["results"]] == [(10**5, 32), (10**5, 16)]
    for one in report["results"]:
        assert one["streams"] == 10
        assert one["bits"] / 8 < one["bytes_per_param"] <= LIMITS[one["bits"]]
        assert 0 < one["ratio_to_aes"] < 2
        assert one["bits"] / 8 < one["peak_bytes_per_param"] < 100
        for name in ("params_per_second", "encode_params_per_second", "seconds"):
            assert one[name] > 0


@pytest.mark.alone
@pytest.mark.slow
def test_masking_takes_at_most_twice_as_long_as_aes_alone() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.masking", "--json"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True, timeout=300).stdout
    ratios = {(one["parameters"], one["bits"]): one["ratio_to_aes"] for one in json.loads(printed)["results"]}
    assert len(ratios) == 6
    assert {case: ratio for case, ratio in ratios.items() if ratio < 0.5} == {}
