"""Metrics of a binary classifier as additive counts, and what follows from their sum (SPEC 3.5).

A site's counts are added to the other sites' in the secure sum; only the sum is turned into metrics, so no site's
accuracy is ever seen. AUROC, AUPRC and calibration are not additive, but the histograms of the scores of each class
are, and give them to within bounds that follow from the histograms too: `auroc_error_bound`, `auprc_bounds`, and half a
bin for `calibration_error`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOSS_CAP = 16.0  # a wrong prediction at probability 1 - 1e-7: what lies beyond says little, and a sum needs a bound
BINS = 512  # of the score, over [0, 1]
MOST_POSITIVES = 2**24  # AUPRC takes some 40 bytes of memory for each positive
CALIBRATION_BINS = 16  # wide enough that the share of positives in one means something
MIDDLES = (np.arange(BINS) + 0.5) / BINS  # (BINS,) the scores that the bins stand for


@dataclass(frozen=True, slots=True)
class Count:
    """An additive count: its numbers, how much one example adds to each at most, and whether that is a whole number.

    The secure sum derives its ring scale and range from these (SPEC 3.2, 3.5).
    """

    name: str
    length: int
    max_per_example: float
    integral: bool


COUNTS = (
    Count("examples", 1, 1.0, integral=True),
    Count("loss", 1, LOSS_CAP, integral=False),
    Count("correct", 1, 1.0, integral=True),
    Count("positives", BINS, 1.0, integral=True),
    Count("negatives", BINS, 1.0, integral=True),
)


def count(
    logits: NDArray[np.float32], targets: NDArray[np.float32], losses: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """Count what the metrics of these examples need, one entry per `COUNTS`.

    The counts of two sets of examples add up to those of their union. An example is predicted positive above
    probability 0.5.

    Args:
        logits: (n,); n may be 0.
        targets: (n,), each 0 or 1.
        losses: (n,); each is capped at `LOSS_CAP`.

    Returns:
        examples, loss, correct of shape (1,); positives and negatives, histograms of the scores, of shape (BINS,).

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
    bins = _bins(logits)
    return {
        "examples": np.array([len(logits)], dtype=np.float64),
        "loss": np.array([np.clip(losses.astype(np.float64), -LOSS_CAP, LOSS_CAP).sum()]),
        "correct": np.array([((logits > 0) == positive).sum()], dtype=np.float64),
        "positives": np.bincount(bins[positive], minlength=BINS).astype(np.float64),
        "negatives": np.bincount(bins[~positive], minlength=BINS).astype(np.float64),
    }


def summarise(counts: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Turn summed counts into metrics, and leave out those that are not defined.

    A site may have lied in its counts, and a sum that is confirmed cannot be made again: whatever the counts are, this
    neither fails nor takes much memory. Counts below zero are taken as zero.

    Returns:
        examples; loss if there is one. Accuracy, calibration_error, observed_expected, auroc and auprc are of two
        classes: they are there if there is an example of each, auprc for at most `MOST_POSITIVES` positives. Never
        NaN.
    """
    examples = float(counts["examples"][0])
    positives, negatives = np.maximum(counts["positives"], 0.0), np.maximum(counts["negatives"], 0.0)
    summary = {"examples": examples}
    if examples > 0:
        summary["loss"] = float(counts["loss"][0]) / examples
    if positives.sum() > 0 and negatives.sum() > 0:
        if examples > 0:
            summary["accuracy"] = float(counts["correct"][0]) / examples
        summary["calibration_error"] = calibration_error(positives, negatives)
        summary["observed_expected"] = observed_expected(positives, negatives)
        summary["auroc"] = auroc(positives, negatives)
        if positives.sum() <= MOST_POSITIVES:
            summary["auprc"] = auprc(positives, negatives)
    return summary


def auroc(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """Give the probability that a positive scores above a negative, where sharing a bin counts one half.

    With p_b positives and n_b negatives in bin b, P and N in all: sum_b p_b (sum_{a<b} n_a + n_b / 2) / (P N). This
    differs from the AUROC of the unbinned scores (Hanley and McNeil 1982) by at most `auroc_error_bound`.

    Args:
        positives: (BINS,) histogram of the scores of the positive examples.
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


def calibration_error(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """Give the expected calibration error over `CALIBRATION_BINS` equal bins (Guo et al. 2017).

    That is the mean over the examples of |mean score - share of positives| in their bin; 0 is perfect. A score counts
    as the middle of its narrow bin, so that this differs from the unbinned scores' by at most 1 / (2 BINS).

    Raises:
        ValueError: if there are no examples.
    """
    total = _total(positives, negatives)
    excess = (positives + negatives) * MIDDLES - positives  # expected minus observed, in each narrow bin
    return float(np.abs(excess.reshape(CALIBRATION_BINS, -1).sum(axis=1)).sum() / total)


def observed_expected(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """Give the number of positives over the sum of the scores: calibration in the large.

    Above 1 the model predicts too few, below too many. The sum is off by at most examples / (2 BINS).

    Raises:
        ValueError: if there are no examples.
    """
    _total(positives, negatives)
    return float(positives.sum() / ((positives + negatives) * MIDDLES).sum())


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


def _total(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    total = float(positives.sum() + negatives.sum())
    if not total > 0:
        raise ValueError("calibration needs an example")
    return total


def _pairs(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    pairs = float(positives.sum() * negatives.sum())
    if not pairs > 0:
        raise ValueError("AUROC needs an example of each class")
    return pairs


def scores_of(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sigmoid, without an exp that could overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64))))


def _bins(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    return np.minimum((scores_of(logits) * BINS).astype(np.int64), BINS - 1)
