"""What the sum of each purpose carries: the segment tables, and the seeds that a plan gives (SPEC 3.5).

Coordinator and sites make the same table from the same plan; a site refuses any other. This is where the ML layer's
additive counts and vectors become the security layer's segments.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flows.model import GlobalModel
from flows.plan import Plan
from ml_tasks.metrics import COUNTS
from ml_tasks.tabular import MOMENTS, from_bounds
from protocols.contexts import SPEC_VERSION, Purpose, sha256
from protocols.encoding import CLAMPED, Segment
from protocols.privacy.clipping import clip as clip_vectors

if TYPE_CHECKING:  # it imports torch, which whoever checks a receipt need not wait for
    from ml_tasks.task import Feature

FINE = 2.0**20
"""Grid steps per unit for losses and weights."""
MOMENT_SCALE = 2.0**24
FAILED = "sites.failed"
"""The segment that counts the sites whose local work gave nothing; not under differential privacy (SPEC 3.5)."""


def segments_of(plan: Plan, purpose: Purpose, *, parameters: int, features: int) -> tuple[Segment, ...]:
    """The segment table of a sum.

    Args:
        plan: gives the ranges.
        purpose: statistics carry moments; training carries weight, update and the incoming model's metrics; evaluation
            carries metrics alone; all of them, without privacy, the count of sites whose work failed.
        parameters: length of the model vector.
        features: number of features to standardise.
    """
    most, unit = float(plan.protection.max_examples), plan.privacy.unit
    counts = (
        noised_counts(plan)
        if unit != "none"
        else [
            Segment(
                f"count.{count.name}",
                count.length,
                32 if count.integral else 64,
                1.0 if count.integral else FINE,
                count.max_per_example * most,
            )
            for count in COUNTS
        ]
    )
    ring = plan.protection.update
    match purpose:
        case "statistics":
            table = [Segment("moments", MOMENTS * features, 64, MOMENT_SCALE, most)]
        case "training":
            update = Segment("update", parameters, ring.bits, ring.scale, ring.max_abs)
            match unit:
                case "none":
                    table = [Segment("weight", 1, 32, FINE, 1.0), update, *counts]
                case "record":
                    table = [update]
                case "site":
                    within = [Segment("within", 1, 64, FINE, 0.5)] if plan.privacy.adaptive else []
                    table = [Segment("weight", 1, 64, FINE, 1.0), update, *within]
        case "evaluation":
            table = counts
    if unit == "none":
        table = [*table, Segment(FAILED, 1, 32, 1.0, 1.0)]
    return (*table, Segment(CLAMPED, 1, 64, 1.0, float(sum(segment.length for segment in table))))


def noised_counts(plan: Plan) -> list[Segment]:
    """The segments of an evaluation that is noised: the cells of a small histogram, the losses and the scores.

    For sites, whose noise is many examples wide, a grid of whole examples is fine enough.
    """
    most = float(plan.protection.max_examples)
    scale = 1.0 if plan.privacy.unit == "site" else FINE
    counting = plan.counting
    lengths = {"positives": counting.bins, "negatives": counting.bins, "loss": 1, "scores": 1}
    reach = {"loss": counting.loss_cap / 2, "scores": 0.5}
    return [
        Segment(f"count.{name}", length, 64, scale, reach.get(name, 1.0) * most) for name, length in lengths.items()
    ]


def tables_of(plan: Plan, *, parameters: int, features: int) -> dict[Purpose, tuple[Segment, ...]]:
    """The table of every sum that a training makes; statistics only where features are standardised by them."""
    first: tuple[Purpose, ...] = ("statistics",) if plan.sums_statistics(features) else ()
    purposes: tuple[Purpose, ...] = (*first, "training", "evaluation")
    return {purpose: segments_of(plan, purpose, parameters=parameters, features=features) for purpose in purposes}


def first_model(plan: Plan, features: Sequence["Feature"], vector: NDArray[np.float32]) -> GlobalModel:
    """The model that a training begins with, standardised by the bounds where the plan says so."""
    bounds = bool(features) and not plan.sums_statistics(len(features))
    clip = np.array([plan.privacy.clip], np.float32) if plan.privacy.adaptive else None
    return GlobalModel(vector, from_bounds(features) if bounds else None, clip)


def training_values(plan: Plan, examples: int, update: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
    """Weigh an update by the site's share of ``max_examples``, which is at most 1 (SPEC 3.5)."""
    weight = min(examples / plan.protection.max_examples, 1.0)
    return {"weight": np.array([weight]), "update": update * np.float32(weight)}


def clip_of(plan: Plan, model: GlobalModel) -> float:
    """The sites' clip: the model's where it adapts, else the plan's."""
    return plan.privacy.clip if model.clip is None else float(model.clip[0])


def clipped_values(
    plan: Plan, site: str, examples: int, update: NDArray[np.float32], clip: float
) -> dict[str, NDArray[np.floating]]:
    """A site's weight and its update in units of the clip, clipped jointly to length 1 (SPEC 6.10).

    With an adaptive clip also ``within``: 1/2 if the update is no longer than the clip, else -1/2.
    """
    weighed = training_values(plan, examples, update.astype(np.float64) / clip)
    joint = clip_vectors(site, np.concatenate([weighed["weight"], weighed["update"]]), 1.0)
    values: dict[str, NDArray[np.floating]] = {"weight": joint[:1], "update": joint[1:]}
    if plan.privacy.adaptive:
        values["within"] = np.array([0.5 if np.linalg.norm(update.astype(np.float64)) <= clip else -0.5])
    return values


def rotation_seed(plan: Plan, attempt_context: str) -> bytes | None:
    """The 32-byte public seed that an attempt's update is rotated with; ``None`` where the plan rotates nothing."""
    rotated = plan.protection.update.rotated
    return bytes.fromhex(sha256(SPEC_VERSION, "rotation", attempt_context)) if rotated else None


def turned(
    values: Mapping[str, NDArray[Any]], seed: bytes | None, turn: Callable[[NDArray[np.float64], bytes], None]
) -> dict[str, NDArray[Any]]:
    """Rotate the update among the values of a sum, if there is one, or turn it back (SPEC 12.3)."""
    if seed is None or "update" not in values:
        return dict(values)
    update = values["update"].astype(np.float64)
    turn(update, seed)
    return {**values, "update": update}


def count_values(counts: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.floating]]:
    """Name the ML layer's counts as segments."""
    return {f"count.{name}": values for name, values in counts.items()}


def noised_count_values(
    plan: Plan, site: str, counts: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.floating]]:
    """Name the counts of an evaluation that is noised as segments.

    A record is in one cell. A site's cells together are clipped to the length that its noise is for.
    """
    if plan.privacy.unit == "site":
        cells = np.concatenate([counts["positives"], counts["negatives"]])
        positives, negatives = np.split(clip_vectors(site, cells, float(plan.most_evaluated)), 2)
        counts = {**counts, "positives": positives, "negatives": negatives}
    return count_values(counts)


def counts_of(values: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Pick the ML layer's counts out of a decoded sum."""
    return {count.name: values[f"count.{count.name}"] for count in COUNTS}


def noised_counts_of(values: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Pick the counts of a noised evaluation out of a decoded sum."""
    return {name: values[f"count.{name}"] for name in ("positives", "negatives", "loss", "scores")}


def training_seed(plan: Plan, site: str, round_: int) -> int:
    """The seed of a site's batches in a round, below 2^63; the same in every attempt (SPEC 3.3).

    The roster is in it: with one site fewer no other site gives the same update, and two sums differ by more than it.
    """
    return int(sha256(SPEC_VERSION, "batches", *_of_roster(plan), site, str(round_))[:16], 16) >> 1


def subset_seed(plan: Plan, site: str) -> bytes:
    """The 32 bytes that choose a site's examples, without DP, where it has more than ``max_examples``."""
    return bytes.fromhex(sha256(SPEC_VERSION, "subset", str(plan.seed), site))


def failures(values: Mapping[str, NDArray[np.float64]], sites: int) -> int:
    """How many sites' local work failed, out of a decoded sum over so many; 0 where it is not counted."""
    counted = values.get(FAILED)
    return 0 if counted is None else min(max(round(float(counted[0])), 0), sites)


def rounding_key(plan: Plan, site: str, round_: int) -> bytes:
    """The 32-byte key of a site's rounding without DP: from the seed, since rounding hides nothing (SPEC 3.3)."""
    return bytes.fromhex(sha256(SPEC_VERSION, "rounding", *_of_roster(plan), site, str(round_)))


def _of_roster(plan: Plan) -> tuple[str, str]:
    return str(plan.seed), ",".join(sorted(plan.sites))
