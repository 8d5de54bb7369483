"""What the sum of each purpose carries: the segment tables, and the seeds that a plan gives (SPEC 3.5).

Coordinator and sites make the same table from the same plan; a site refuses any other. This is where the ML layer's
additive counts and vectors become the security layer's segments.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flows.plan import Plan
from ml_tasks.metrics import COUNTS
from ml_tasks.tabular import MOMENTS
from protocols.contexts import SPEC_VERSION, Purpose, sha256
from protocols.encoding import CLAMPED, Segment

FINE = 2.0**20
"""Grid steps per unit for losses and weights."""
MOMENT_SCALE = 2.0**24


def segments_of(plan: Plan, purpose: Purpose, *, parameters: int, features: int) -> tuple[Segment, ...]:
    """The segment table of a sum.

    Args:
        plan: gives the ranges.
        purpose: statistics carry moments; training carries weight, update and the incoming model's metrics; evaluation
            carries metrics alone.
        parameters: length of the model vector.
        features: number of features to standardise.
    """
    most = float(plan.protection.max_examples)
    counts = [
        Segment(
            f"count.{count.name}",
            count.length,
            32 if count.integral else 64,
            1.0 if count.integral else FINE,
            count.max_per_example * most,
        )
        for count in COUNTS
    ]
    ring = plan.protection.update
    match purpose:
        case "statistics":
            table = [Segment("moments", MOMENTS * features, 64, MOMENT_SCALE, most)]
        case "training":
            update = Segment("update", parameters, ring.bits, ring.scale, ring.max_abs)
            table = [Segment("weight", 1, 32, FINE, 1.0), update, *counts]
        case "evaluation":
            table = counts
    return (*table, Segment(CLAMPED, 1, 64, 1.0, float(sum(segment.length for segment in table))))


def tables_of(plan: Plan, *, parameters: int, features: int) -> dict[Purpose, tuple[Segment, ...]]:
    """The table of every sum that a training makes; statistics only where there are features to standardise."""
    purposes: tuple[Purpose, ...] = ("statistics", "training", "evaluation") if features else ("training", "evaluation")
    return {purpose: segments_of(plan, purpose, parameters=parameters, features=features) for purpose in purposes}


def training_values(plan: Plan, examples: int, update: NDArray[np.float32]) -> dict[str, NDArray[np.floating]]:
    """Weigh an update by the site's share of ``max_examples``, which is at most 1 (SPEC 3.5)."""
    weight = min(examples / plan.protection.max_examples, 1.0)
    return {"weight": np.array([weight]), "update": update * np.float32(weight)}


def count_values(counts: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.floating]]:
    """Name the ML layer's counts as segments."""
    return {f"count.{name}": values for name, values in counts.items()}


def counts_of(values: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Pick the ML layer's counts out of a decoded sum."""
    return {count.name: values[f"count.{count.name}"] for count in COUNTS}


def training_seed(plan: Plan, site: str, round_: int) -> int:
    """The seed of a site's batches in a round, below 2^63; the same in every attempt."""
    return int(sha256(SPEC_VERSION, "batches", str(plan.seed), site, str(round_))[:16], 16) >> 1


def rounding_key(plan: Plan, site: str, round_: int) -> bytes:
    """The 32-byte key of a site's rounding without DP: from the seed, since rounding hides nothing (SPEC 3.3)."""
    return bytes.fromhex(sha256(SPEC_VERSION, "rounding", str(plan.seed), site, str(round_)))
