"""Does the promised epsilon hold? A membership audit of the arithmetic: ``python -m tests.benchmarks.audit --json``.

The worst case of the unit ``site``: the canary's vector is its clip bound in one coordinate, everyone else's is zero,
the fewest sites make the sum, and the colluding one's noise is known. Each trial goes through clip, scale, rounding,
shares of discrete Gaussian noise, addition in the ring and decoding, with the functions that a site runs; the elements
of one long vector are the trials.

The observer guesses "it was in" above a threshold, which is chosen on one half of the trials. The other half gives the
lower bound of epsilon: intervals of Clopper and Pearson for both error rates, 95 % together (Jagielski, Ullman, Oprea
2020). A sound mechanism keeps it below the claim; a tight one, not far below.
"""

import argparse
import json
import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from protocols.encoding import CLAMPED, Segment, add, decode, encode, vector_bytes
from protocols.keys import Entropy, system_entropy
from protocols.privacy.accounting import Event, calibrate, epsilon
from protocols.privacy.clipping import Noised, clip, noise_multiplier, sensitivity
from protocols.privacy.noise import add_noise, carried, check_noised_headroom, divergence, share, tail_probability

CLAIM, DELTA, CONFIDENCE = 1.0, 1e-5, 0.95
SITES, THRESHOLD, COLLUDING = 4, 3, 1
CLIP, SCALE = 1.0, 1000.0
TRIALS = 8_000_000
BATCH = 1_000_000
TABLE = (Segment("canary", BATCH, 32, SCALE, CLIP), Segment(CLAMPED, 1, 64, 1.0, BATCH))


def audit(trials: int, *, noise: float = 1.0, entropy: Entropy = system_entropy) -> dict[str, Any]:
    """Bound epsilon from below by ``trials`` sums with the canary and as many without.

    Args:
        trials: of each kind, in millions; half of them choose the threshold.
        noise: times the planned noise.
        entropy: the source of all randomness.
    """
    started = time.perf_counter()
    planned = calibrate(CLAIM, DELTA, lambda multiplier: [Event(multiplier)]) * sensitivity(CLIP, SCALE, 1)
    each = share(planned, threshold=THRESHOLD, colluding=COLLUDING)
    heard = carried(each, THRESHOLD, threshold=THRESHOLD, colluding=COLLUDING)
    event = Event(noise_multiplier(CLIP, [Noised(1, SCALE, heard)]), divergence=divergence(each, SITES, 1))
    check_noised_headroom(TABLE[0], each, SITES, tail_probability(DELTA, SITES))

    halves = {
        present: [np.sort(_sums(trials // 2, present, each * noise, entropy)) for _ in range(2)]
        for present in (False, True)
    }
    (choosing_out, out), (choosing_in, inside) = halves[False], halves[True]
    candidates = np.quantile(choosing_out, np.linspace(0.5, 1 - 200 / len(choosing_out), 500))
    threshold = max(candidates, key=lambda value: lower_bound(choosing_in, choosing_out, value))
    return {
        "claim": epsilon([event], DELTA),
        "noise": noise,
        "trials": trials,
        "lower_bound": lower_bound(inside, out, threshold),
        "seconds": time.perf_counter() - started,
    }


def lower_bound(inside: NDArray[np.float64], out: NDArray[np.float64], threshold: float) -> float:
    """Bound epsilon from below: P(above | in) <= e^epsilon P(above | out) + delta, at 95 % confidence.

    Args:
        inside: sums with the canary, sorted.
        out: sums without it, sorted.
        threshold: fixed before these were looked at.
    """
    right, wrong = (len(sums) - int(np.searchsorted(sums, threshold, "right")) for sums in (inside, out))
    error = (1 - CONFIDENCE) / 2
    least = beta.ppf(error, right, len(inside) - right + 1) if right else 0.0
    most = beta.ppf(1 - error, wrong + 1, len(out) - wrong)
    return math.log((least - DELTA) / most) if least > DELTA else 0.0


def _sums(count: int, present: bool, each: float, entropy: Entropy) -> NDArray[np.float64]:
    """Make ``count`` sums over the honest sites of the smallest survivor set."""
    return np.concatenate([_batch(present, each, entropy) for _ in range(count // BATCH)])


def _batch(present: bool, each: float, entropy: Entropy) -> NDArray[np.float64]:
    total = np.zeros(vector_bytes(TABLE), np.uint8)
    for number in range(THRESHOLD - COLLUDING):
        wanted = 3 * CLIP if present and number == 0 else 0.0
        values = clip("canary", np.full((BATCH, 1), wanted), CLIP)
        vector = encode("canary", {"canary": values[:, 0]}, TABLE, entropy(32))
        add_noise(vector, TABLE, {"canary": each, CLAMPED: each}, entropy)
        add(total, vector, TABLE)
    return decode(total, TABLE)["canary"]


def main() -> None:
    """Print one JSON object, or a table: the plan's noise, and half of it."""
    parser = argparse.ArgumentParser(description="Audit the privacy arithmetic.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trials", type=int, default=TRIALS)
    arguments = parser.parse_args()
    results = [audit(arguments.trials, noise=noise) for noise in (1.0, 0.5)]
    if arguments.json:
        print(json.dumps({"delta": DELTA, "confidence": CONFIDENCE, "results": results}))
        return
    print("noise     claim  lower bound   seconds")
    for one in results:
        print(f"{one['noise']:>5}  {one['claim']:>8.4f}  {one['lower_bound']:>11.4f}  {one['seconds']:>8.1f}")


if __name__ == "__main__":
    main()
