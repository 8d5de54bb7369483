"""Metrics of a binary classifier as additive counts, and what follows from their sum (SPEC 3.5).

A site's counts are added to the other sites' in the secure sum; only the sum is turned into metrics, so no site's
accuracy is ever seen. AUROC and AUPRC are not additive, but the histograms of the logits of each class are, and give
them to within bounds that follow from the histograms too (`error_bounds`). The bins are equal in the logit and not in
the score: of a rare outcome nearly all scores share the lowest bin of the score. Calibration is of sums of scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOSS_CAP = 16.0  # a wrong prediction at probability 1 - 1e-7: what lies beyond says little, and a sum needs a bound
REACH = 16.0  # the bins are of logits in [-REACH, REACH]: scores from 1e-7 to 1 - 1e-7; what lies beyond is in the last
BINS = 2048  # of the logit: 1/64 wide, so that what they leave open of an AUROC is .002 or less for logits that spread
MOST_POSITIVES = 2**24  # AUPRC takes some 40 bytes of memory for each positive
CALIBRATION_BINS = 64  # of the logit, half a unit wide, so that the share of positives in one means something


@dataclass(frozen=True, slots=True)
class Count:
    """An additive count: its numbers, how much one example adds to each at most, and whether that is a whole number.

    The secure sum derives its ring scale and range from these (SPEC 3.2, 3.5).
    """

    name: str
    length: int
    max_per_example: float
    integral: bool


def counts(loss_cap: float = LOSS_CAP) -> tuple[Count, ...]:
    """Every count, in the order of the secure sum; an example's loss is capped to [-loss_cap, loss_cap]."""
    return (
        Count("examples", 1, 1.0, integral=True),
        Count("loss", 1, loss_cap, integral=False),
        Count("capped", 1, 1.0, integral=True),
        Count("correct", 1, 1.0, integral=True),
        Count("positives", BINS, 1.0, integral=True),
        Count("negatives", BINS, 1.0, integral=True),
        Count("scores", CALIBRATION_BINS, 1.0, integral=False),
    )


def count(
    logits: NDArray[np.float32],
    targets: NDArray[np.float32],
    losses: NDArray[np.float32],
    loss_cap: float = LOSS_CAP,
) -> dict[str, NDArray[np.float64]]:
    """Count what the metrics of these examples need, one entry per `counts`.

    The counts of two sets of examples add up to those of their union. An example is predicted positive above
    probability 0.5.

    Args:
        logits: (n,); n may be 0.
        targets: (n,), each 0 or 1.
        losses: (n,).
        loss_cap: what a loss is capped to.

    Returns:
        examples, loss, capped (losses beyond the cap), correct of shape (1,); positives and negatives, histograms of
        the logits, of shape (BINS,); scores, their sums by wider bins, of shape (CALIBRATION_BINS,).

    Raises:
        ValueError: if the shapes differ, a target is neither 0 nor 1, or a logit or loss is NaN.
    """
    if not logits.shape == targets.shape == losses.shape == (len(logits),):
        raise ValueError(f"logits {logits.shape}, targets {targets.shape}, losses {losses.shape} are not three (n,)")
    if np.isnan(logits).any() or np.isnan(losses).any():
        raise ValueError("a logit or a loss is NaN: the model has diverged, or the features are not finite")
    positive = targets == 1
    if not (positive | (targets == 0)).all():
        raise ValueError("a target is neither 0 nor 1")
    bins, losses64 = _bins(logits), losses.astype(np.float64)
    wider = bins // (BINS // CALIBRATION_BINS)
    return {
        "examples": np.array([len(logits)], dtype=np.float64),
        "loss": np.array([np.clip(losses64, -loss_cap, loss_cap).sum()]),
        "capped": np.array([(np.abs(losses64) > loss_cap).sum()], dtype=np.float64),
        "correct": np.array([((logits > 0) == positive).sum()], dtype=np.float64),
        "positives": np.bincount(bins[positive], minlength=BINS).astype(np.float64),
        "negatives": np.bincount(bins[~positive], minlength=BINS).astype(np.float64),
        "scores": np.bincount(wider, scores_of(logits), minlength=CALIBRATION_BINS),
    }


def summarise(counts: Mapping[str, NDArray[np.float64]], loss_cap: float = LOSS_CAP) -> dict[str, float]:
    """Turn summed counts into metrics, and leave out those that are not defined.

    A site may have lied in its counts, and a sum that is confirmed cannot be made again: whatever the counts are, this
    neither fails nor takes much memory. Counts below zero are taken as zero.

    Args:
        counts: as `count` gives them.
        loss_cap: what the losses were capped to.

    Returns:
        examples; loss if there is one, and capped and loss_cap where it is of capped losses. Accuracy,
        calibration_error, observed_expected, auroc and auprc are of two classes: they are there if there is an example
        of each, auprc for at most `MOST_POSITIVES` positives. Never NaN.
    """
    examples = float(counts["examples"][0])
    positives, negatives, scores = (np.maximum(counts[name], 0.0) for name in ("positives", "negatives", "scores"))
    summary = {"examples": examples}
    if examples > 0:
        summary["loss"] = float(counts["loss"][0]) / examples
    if (capped := float(counts["capped"][0])) > 0:
        summary |= {"capped": capped, "loss_cap": loss_cap}
    if positives.sum() > 0 and negatives.sum() > 0:
        if examples > 0:
            summary["accuracy"] = float(counts["correct"][0]) / examples
        summary["calibration_error"] = calibration_error(positives, negatives, scores)
        if scores.sum() > 0:
            summary["observed_expected"] = observed_expected(positives, scores)
        summary["auroc"] = auroc(positives, negatives)
        if positives.sum() <= MOST_POSITIVES:
            summary["auprc"] = auprc(positives, negatives)
    return summary


def error_bounds(counts: Mapping[str, NDArray[np.float64]]) -> dict[str, tuple[float, float]]:
    """What AUROC and AUPRC of the unbinned logits are within; of those that `summarise` gives."""
    positives, negatives = np.maximum(counts["positives"], 0.0), np.maximum(counts["negatives"], 0.0)
    if not (positives.sum() > 0 and negatives.sum() > 0):
        return {}
    value, error = auroc(positives, negatives), auroc_error_bound(positives, negatives)
    bounds = {"auroc": (max(value - error, 0.0), min(value + error, 1.0))}
    return bounds if positives.sum() > MOST_POSITIVES else bounds | {"auprc": auprc_bounds(positives, negatives)}


def auroc(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """Give the probability that a positive scores above a negative, where sharing a bin counts one half.

    With p_b positives and n_b negatives in bin b, P and N in all: sum_b p_b (sum_{a<b} n_a + n_b / 2) / (P N). This
    differs from the AUROC of the unbinned logits (Hanley and McNeil 1982) by at most `auroc_error_bound`.

    Args:
        positives: (BINS,) histogram of the logits of the positive examples.
        negatives: (BINS,) the same of the negative ones.

    Raises:
        ValueError: if a class is absent.
    """
    pairs = _pairs(positives, negatives)
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)


def auroc_error_bound(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """Bound the error of `auroc` that comes from the bins: sum_b p_b n_b / (2 P N).

    Only pairs within one bin are uncertain; each counts one half and should have counted between 0 and 1.

    Raises:
        ValueError: if a class is absent.
    """
    return float((positives * negatives).sum() / (2 * _pairs(positives, negatives)))


def auprc(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """Give the average precision: the mean over the positives of the precision at their score.

    Within a bin the classes are taken to be evenly mixed: above the j-th of its p positives lie j / (p + 1) of its n
    negatives (the interpolation of Davis and Goadrich 2006). The average precision of the unbinned scores, which is
    what scikit-learn computes, is within `auprc_bounds`, and so is this.

    Raises:
        ValueError: if a class is absent.
    """
    bins = _positives_in_order(positives, negatives)
    return float(_precision(bins.above + bins.rank, bins.false + bins.within * bins.rank / (bins.share + 1)).mean())


def auprc_bounds(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> tuple[float, float]:
    """Bound the average precision of the unbinned scores from below and above.

    With A positives and B negatives in higher bins, the j-th of the p positives of a bin with n negatives has a
    precision of at least (A + j) / (A + j + B + n), where all n score higher, and of at most (A + p) / (A + p + B),
    where all p tie and score higher than the n.

    Raises:
        ValueError: if a class is absent.
    """
    bins = _positives_in_order(positives, negatives)
    lowest = _precision(bins.above + bins.rank, bins.false + bins.within)
    highest = _precision(bins.above + bins.share, bins.false)
    return float(lowest.mean()), float(highest.mean())


def calibration_error(
    positives: NDArray[np.float64], negatives: NDArray[np.float64], scores: NDArray[np.float64]
) -> float:
    """Give the expected calibration error over `CALIBRATION_BINS` equal bins of the logit (Guo et al. 2017).

    That is the mean over the examples of |mean score - share of positives| in their bin; 0 is perfect. Equal bins of
    the score would put all of a rare outcome into one.

    Args:
        positives, negatives: (BINS,) histograms.
        scores: (CALIBRATION_BINS,) sums of the scores.

    Raises:
        ValueError: if there are no examples.
    """
    total = float(positives.sum() + negatives.sum())
    if not total > 0:
        raise ValueError("calibration needs an example")
    return float(np.abs(scores - positives.reshape(CALIBRATION_BINS, -1).sum(axis=1)).sum() / total)


def observed_expected(positives: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Give the number of positives over the sum of the scores: calibration in the large.

    Above 1 the model predicts too few, below too many.

    Raises:
        ValueError: if the scores do not add up to more than 0.
    """
    if not (expected := float(scores.sum())) > 0:
        raise ValueError("calibration needs an example")
    return float(positives.sum()) / expected


@dataclass(frozen=True, slots=True, eq=False)
class _Positives:
    """Each positive, from the highest bin down, all (P,): its rank among the `share` positives of its bin, from 1, the
    `within` negatives of its bin, and the positives `above` and negatives `false` of higher bins.
    """

    rank: NDArray[np.int64]
    share: NDArray[np.int64]
    within: NDArray[np.int64]
    above: NDArray[np.int64]
    false: NDArray[np.int64]


def _positives_in_order(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> _Positives:
    p, n = (np.maximum(np.rint(histogram[::-1]), 0).astype(np.int64) for histogram in (positives, negatives))
    if not (p.any() and n.any()):
        raise ValueError("AUPRC needs an example of each class")
    above, false = np.cumsum(p) - p, np.cumsum(n) - n
    share, within, above, false = (np.repeat(column, p) for column in (p, n, above, false))
    return _Positives(np.arange(1, len(share) + 1) - above, share, within, above, false)


def _precision(true: NDArray[np.int64], false: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(true / (true + false), dtype=np.float64)


def _pairs(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    pairs = float(positives.sum() * negatives.sum())
    if not pairs > 0:
        raise ValueError("AUROC needs an example of each class")
    return pairs


def scores_of(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sigmoid, without an exp that could overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def _bins(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    within = np.clip(logits.astype(np.float64), -REACH, REACH) + REACH
    return np.minimum((within * (BINS / (2 * REACH))).astype(np.int64), BINS - 1)
