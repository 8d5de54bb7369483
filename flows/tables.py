"""What the sum of each purpose carries: the segment tables, and the seeds that a plan gives (SPEC 3.5).

Coordinator and sites make the same table from the same plan; a site refuses any other. This is where the ML layer's
additive counts and vectors become the security layer's segments.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flows.model import GlobalModel
from flows.plan import Plan
from ml_tasks.layout import Layout, Sizes
from ml_tasks.metrics import counts
from ml_tasks.tabular import MOMENTS, from_bounds, moments, outside
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
OUTSIDE = "values.outside"
"""The segment that counts each feature's values outside of its declared bounds; likewise."""
TENSORS_CLAMPED = "tensors.clamped"
"""The segment that counts each tensor's clamped entries; likewise, and not where the update is rotated."""
CUT = {"update": True, "buffers": False}
"""The segments that an update is cut into, and whether they hold weights, or running statistics."""
MOST_STATISTIC = 1e9
"""Running statistics are clamped to this, in a ring that has room for it: beyond, no site takes a model (SPEC 5.4)."""


def segments_of(plan: Plan, purpose: Purpose, sizes: Sizes) -> tuple[Segment, ...]:
    """The segment table of a sum.

    Args:
        plan: gives the ranges.
        purpose: statistics carry moments; training carries weight, update and the incoming model's metrics; evaluation
            carries metrics alone. Without privacy they also carry counts of what goes wrong: sites whose work failed,
            values outside their bounds, clamped entries. With it these are left out: noise would be paid for each, and
            unnoised they would tell of one record.
        sizes: the task's.
    """
    most, unit = float(plan.protection.max_examples), plan.privacy.unit
    measured = (
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
            for count in counts(sizes.loss_cap)
        ]
    )
    match purpose:
        case "statistics":
            table = [Segment("moments", MOMENTS * sizes.features, 64, MOMENT_SCALE, most)]
            if unit == "none":
                table.append(Segment(OUTSIDE, sizes.features, 32, 1.0, most))
        case "training":
            match unit:
                case "none":
                    table = [Segment("weight", 1, 32, FINE, 1.0), *_updates(plan, sizes), *measured]
                case "record":
                    table = [_update(plan, sizes.parameters)]
                case "site":
                    within = [Segment("within", 1, 64, FINE, 0.5)] if plan.privacy.adaptive else []
                    table = [Segment("weight", 1, 64, FINE, 1.0), _update(plan, sizes.parameters), *within]
        case "evaluation":
            table = measured
    if unit == "none":
        table = [*table, Segment(FAILED, 1, 32, 1.0, 1.0)]
    return (*table, Segment(CLAMPED, 1, 64, 1.0, float(sum(segment.length for segment in table))))


def _update(plan: Plan, length: int) -> Segment:
    ring = plan.protection.update
    return Segment("update", length, ring.bits, ring.scale, ring.max_abs)


def _updates(plan: Plan, sizes: Sizes) -> list[Segment]:
    """The update of the weights, that of running statistics where there are any, and what of each tensor is clamped."""
    table = [_update(plan, sizes.weights)] if sizes.weights else []
    if sizes.statistics:
        table.append(Segment("buffers", sizes.statistics, 64, FINE, MOST_STATISTIC))
    if not plan.protection.update.rotated:
        table.append(Segment(TENSORS_CLAMPED, sizes.tensors, 64, 1.0, float(sizes.parameters)))
    return table


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


def tables_of(plan: Plan, sizes: Sizes) -> dict[Purpose, tuple[Segment, ...]]:
    """The table of every sum that a training makes; statistics only where features are standardised by them."""
    first: tuple[Purpose, ...] = ("statistics",) if plan.sums_statistics(sizes.features) else ()
    purposes: tuple[Purpose, ...] = (*first, "training", "evaluation")
    return {purpose: segments_of(plan, purpose, sizes) for purpose in purposes}


def first_model(plan: Plan, features: Sequence["Feature"], vector: NDArray[np.float32]) -> GlobalModel:
    """The model that a training begins with, standardised by the bounds where the plan says so."""
    bounds = bool(features) and not plan.sums_statistics(len(features))
    clip = np.array([plan.privacy.clip], np.float32) if plan.privacy.adaptive else None
    return GlobalModel(vector, from_bounds(features) if bounds else None, clip)


def statistics_values(
    plan: Plan, features_array: NDArray[np.float32], features: Sequence["Feature"]
) -> dict[str, NDArray[np.floating]]:
    """What a site adds to the statistics, from (n, d) features: moments, and how many values the bounds clamp."""
    values: dict[str, NDArray[np.floating]] = {"moments": moments(features_array, features)}
    return values if plan.privacy.unit != "none" else values | {OUTSIDE: outside(features_array, features)}


def weighed(plan: Plan, examples: int, update: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
    """Weigh an update by the site's share of ``max_examples``, which is at most 1 (SPEC 3.5)."""
    weight = min(examples / plan.protection.max_examples, 1.0)
    return {"weight": np.array([weight]), "update": update * np.float32(weight)}


def training_values(
    plan: Plan, examples: int, update: NDArray[np.float32], layout: Layout
) -> dict[str, NDArray[np.floating]]:
    """A site's weight and weighed update, cut into weights and running statistics, and what will be clamped of it.

    How much is clamped is known to the sum alone: beside it, it would tell of the site's data (SPEC 1).

    Args:
        plan: gives the ranges.
        examples: how many the site has.
        update: (d,) its vector after training minus the incoming one.
        layout: the task's.
    """
    values = weighed(plan, examples, update)
    cut = layout.split(values.pop("update"))
    tensors = [(part.learnt, tensor) for part, tensor in zip(layout.parts, cut, strict=True)]
    for name, learnt in CUT.items():
        if entries := [tensor for is_learnt, tensor in tensors if is_learnt == learnt]:
            values[name] = np.concatenate(entries)
    if not plan.protection.update.rotated:
        bounds = {True: plan.protection.update.max_abs, False: MOST_STATISTIC}
        beyond = [(np.abs(tensor.astype(np.float64)) > bounds[learnt]).sum() for learnt, tensor in tensors]
        values[TENSORS_CLAMPED] = np.array(beyond, np.float64)
    return values


def summed_update(values: Mapping[str, NDArray[np.float64]], layout: Layout) -> NDArray[np.float64]:
    """Put the sums of weights and running statistics together again: (d,), as ``training_values`` has cut them."""
    whole = np.empty(layout.sizes.parameters)
    for name, learnt in CUT.items():
        places = [place for part, place in zip(layout.parts, layout.split(whole), strict=True) if part.learnt == learnt]
        for place, tensor in zip(places, _cut(values.get(name), places), strict=True):
            place[:] = tensor
    return whole


def _cut(vector: NDArray[np.float64] | None, like: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Cut a vector into pieces as long as these."""
    return [] if vector is None else np.split(vector, np.cumsum([len(one) for one in like])[:-1])


def clamped_shares(values: Mapping[str, NDArray[np.floating]], layout: Layout, sites: int) -> dict[str, float]:
    """The share of each tensor's entries that a sum over so many sites' work has clamped; without those of none.

    A rotated update has no tensors: there it is the share of all entries.
    """
    if TENSORS_CLAMPED in values:
        entries = {part.name: part.size for part in layout.parts}
        counted = dict(zip(entries, values[TENSORS_CLAMPED], strict=True))
    else:
        entries, counted = {"update": layout.sizes.weights}, {"update": values[CLAMPED][0]}
    whole = {name: sites * size for name, size in entries.items() if size}
    return {name: float(counted[name]) / most for name, most in whole.items() if most and counted[name] > 0}


def grid_noise(plan: Plan, sites: int, weight: float) -> float:
    """What rounding adds to a weight of the next model, as a standard deviation: sqrt(sites / 6) / (scale * weight).

    Rounding a fraction f up with probability f has the variance f (1 - f) grid steps squared, on average 1/6.

    Args:
        plan: gives the scale.
        sites: how many have rounded.
        weight: the sum of their weights, above 0.
    """
    return math.sqrt(sites / 6) / (plan.protection.update.scale * weight)


def clip_of(plan: Plan, model: GlobalModel) -> float:
    """The sites' clip: the model's where it adapts, else the plan's."""
    return plan.privacy.clip if model.clip is None else float(model.clip[0])


def clipped_values(
    plan: Plan, site: str, examples: int, update: NDArray[np.float32], clip: float
) -> dict[str, NDArray[np.floating]]:
    """A site's weight and its update in units of the clip, clipped jointly to length 1 (SPEC 6.10).

    With an adaptive clip also ``within``: 1/2 if the update is no longer than the clip, else -1/2.
    """
    parts = weighed(plan, examples, update.astype(np.float64) / clip)
    joint = clip_vectors(site, np.concatenate([parts["weight"], parts["update"]]), 1.0)
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


def count_values(counted: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.floating]]:
    """Name the ML layer's counts as segments."""
    return {f"count.{name}": values for name, values in counted.items()}


def noised_count_values(
    plan: Plan, site: str, counted: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.floating]]:
    """Name the counts of an evaluation that is noised as segments.

    A record is in one cell. A site's cells together are clipped to the length that its noise is for.
    """
    if plan.privacy.unit == "site":
        cells = np.concatenate([counted["positives"], counted["negatives"]])
        positives, negatives = np.split(clip_vectors(site, cells, float(plan.most_evaluated)), 2)
        counted = {**counted, "positives": positives, "negatives": negatives}
    return count_values(counted)


def counts_of(values: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Pick the ML layer's counts out of a decoded sum."""
    return {count.name: values[f"count.{count.name}"] for count in counts()}


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
