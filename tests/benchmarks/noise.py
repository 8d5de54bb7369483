"""The discrete Gaussian, and what it adds to a site's ``mask``: ``python -m tests.benchmarks.noise --json``.

``ns_per_sample`` is the median of several calls for a million samples with the table at hand, ``table_ms`` is what the
first call for a sigma costs on top, and ``opendp_ns_per_sample`` is OpenDP's exact sampler in the same process.
``mask_s`` is what a site's ``mask`` takes for as many parameters, by its parts: privacy adds noise and rotation.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import opendp.prelude as opendp

from protocols.encoding import CLAMPED, Segment, encode
from protocols.gaussian import discrete_gaussian, make_table
from protocols.masks import Mask, apply_masks
from protocols.privacy.noise import add_noise
from protocols.rotation import rotate
from tests.benchmarks.masking import seconds

SIGMAS = (2.0, 20.0, 1000.0, 50000.0, 2.0**39)
SAMPLES = 1_000_000
OPENDP_SAMPLES = 20_000
REPEATS = 7


def measure(sigma: float, samples: int) -> dict[str, Any]:
    """Measure one sigma."""
    table = statistics.median(seconds(lambda: make_table.__wrapped__(sigma)) for _ in range(REPEATS))
    make_table(sigma)
    ours = statistics.median(seconds(lambda: discrete_gaussian(sigma, samples, bytes(32))) for _ in range(REPEATS))
    space = opendp.vector_domain(opendp.atom_domain(T=int)), opendp.l2_distance(T=float)
    mechanism = opendp.m.make_gaussian(*space, scale=sigma)
    theirs = seconds(lambda: mechanism([0] * OPENDP_SAMPLES))
    return {
        "sigma": sigma,
        "samples": samples,
        "ns_per_sample": ours / samples * 1e9,
        "table_ms": table * 1e3,
        "opendp_ns_per_sample": theirs / OPENDP_SAMPLES * 1e9,
    }


def mask_step(parameters: int) -> dict[str, float]:
    """What a site's ``mask`` takes for so many parameters and ten masks, in seconds of one core, by its parts."""
    table = (Segment("update", parameters, 32, 2.0**16, 1.0), Segment(CLAMPED, 1, 64, 1.0, float(parameters)))
    values = {"update": np.random.default_rng(1).uniform(-1, 1, parameters)}
    masks, shares = [Mask(bytes([number]) * 32, 1) for number in range(10)], {"update": 2.0**16, CLAMPED: 2.0}
    vector = encode("site", values, table, bytes(32))
    parts: dict[str, Callable[[], object]] = {
        "rotation": lambda: rotate(values["update"].copy(), bytes(32)),
        "encoding": lambda: encode("site", values, table, bytes(32)),
        "noise": lambda: add_noise(vector, table, shares),
        "masks": lambda: apply_masks(vector, table, masks),
    }
    return {name: statistics.median(seconds(run) for _ in range(REPEATS)) for name, run in parts.items()}


def main() -> None:
    """Print one JSON object, or a table."""
    parser = argparse.ArgumentParser(description="Measure the discrete Gaussian sampler.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    arguments = parser.parse_args()
    opendp.enable_features("contrib")
    results = [measure(sigma, arguments.samples) for sigma in SIGMAS]
    mask = mask_step(arguments.samples)
    if arguments.json:
        print(json.dumps({"results": results, "mask_s": mask}))
        return
    print("        sigma  ns/sample  table ms  OpenDP ns/sample")
    for one in results:
        print(
            f"{one['sigma']:>13g}  {one['ns_per_sample']:>9.1f}  {one['table_ms']:>8.2f}"
            f"  {one['opendp_ns_per_sample']:>16.0f}"
        )
    parts = ", ".join(f"{name} {taken:.3f}" for name, taken in mask.items())
    print(f"a site's mask of {arguments.samples} parameters, in seconds: {parts}")


if __name__ == "__main__":
    main()
