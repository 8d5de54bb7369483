"""Metrics under differential privacy: few counts, what they can be, and an interval for each metric (SPEC 12.11).

An example adds one to a single cell of a small histogram, by true class and score, its capped loss and its score.
Every metric follows from these, so that noise is paid for three numbers of an example and no more. What is made of the
noised sums is post-processing and costs no privacy: they are projected onto what counts can be, and the noise, whose
size is public, gives an interval for each metric. The intervals are of the noise alone: they are for what these very
examples would have given without it, and say nothing of other examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_tasks.metrics import auroc, auroc_error_bound, scores_of

BINS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Powers of two, so that a bin ends at one half and halves can be halved."""
CALIBRATION_BINS = 16
"""Equal bins of the score that the calibration error is taken over, at most."""
CAPS = (16.0, 8.0, 4.0, 2.0)
GRID = 2.0**20
"""A loss is cut to so many steps per unit before losses are added: their sum is exact, in whatever order."""
LOSS_PART, SCORES_PART = 0.1, 0.1
"""Of the evaluation's privacy: what the losses and the scores take; the cells take the rest."""
QUANTILE = 1.6448536269514722
"""Of the normal law: it is exceeded with probability 5 %, on either side."""
WIDER = 1.959963984540054
"""The same for 2.5 %, where two statements must hold at once."""
WIDEST = 0.15
"""A metric whose interval has a larger half width than this says nothing, and is not printed."""
CLEAR = 0.05
"""The half width that a mean loss should have before its cap is raised."""
MOST_EXPECTED = 100.0
"""Observed over expected is given up to here."""
NODES = (np.arange(16) + 0.5) / 16  # of the integrals over the ranks within a bin

Cells = NDArray[np.float64]  # (2, bins): positives, negatives


@dataclass(frozen=True, slots=True)
class Counting:
    """How examples are counted under privacy.

    Attributes:
        bins: of the score, over [0, 1]; one of ``BINS``.
        loss_cap: losses are capped to [0, loss_cap].
    """

    bins: int
    loss_cap: float


@dataclass(frozen=True, slots=True)
class Noise:
    """The standard deviation of the noise in a sum: of each cell, in examples, of the losses and of the scores."""

    cells: float
    loss: float
    scores: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric and its 90 % interval, both within the metric's range."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2

    @property
    def printed(self) -> Estimate:
        """The same with digits that the noise leaves, the interval rounded outwards."""
        digits = max(0, min(4, math.ceil(-math.log10(max(self.half_width / 2, 1e-9)))))
        low = math.floor(self.low * 10**digits) / 10**digits
        high = math.ceil(self.high * 10**digits) / 10**digits
        return Estimate(min(max(round(self.value, digits + 1), low), high), low, high)

    @property
    def clear(self) -> bool:
        """Whether the interval is narrow enough to say something."""
        return self.half_width <= WIDEST


def noise_of(counting: Counting, each: float) -> Noise:
    """The noise where the whole evaluation has ``each`` standard deviations for what one example can add."""
    bounds = {name: bound * each / math.sqrt(part) for name, bound, part in parts(counting)}
    return Noise(bounds["cells"], bounds["loss"], bounds["scores"])


def parts(counting: Counting) -> tuple[tuple[str, float, float], ...]:
    """What is noised by itself: its name, how far one example moves it, and its part of the evaluation's privacy."""
    return (
        ("cells", 1.0, 1 - LOSS_PART - SCORES_PART),
        ("loss", counting.loss_cap / 2, LOSS_PART),
        ("scores", 0.5, SCORES_PART),
    )


def count_noised(
    logits: NDArray[np.float32], targets: NDArray[np.float32], losses: NDArray[np.float32], counting: Counting
) -> dict[str, NDArray[np.float64]]:
    """Count examples for a sum that will be noised, each example by itself (SPEC 12.11).

    An example moves one of the cells by one, the loss by at most half its cap and the scores by at most one half,
    whatever the others are. One whose logit or loss is NaN, or whose target is neither 0 nor 1, adds nothing: an error
    would tell of it.

    Args:
        logits: (n,); n may be 0. Above 0 an example is predicted positive.
        targets: (n,), each 0 or 1.
        losses: (n,).
        counting: bins and cap.

    Returns:
        positives and negatives of shape (bins,), whole numbers; loss and scores of shape (1,), in whole steps of ``1 /
        GRID``: the sums of the capped losses, each less half the cap, and of the scores, each less one half.
    """
    sound = ~(np.isnan(logits) | np.isnan(losses)) & ((targets == 0) | (targets == 1))
    logits, positive, losses = logits[sound], targets[sound] == 1, losses[sound].astype(np.float64)
    half = counting.bins // 2
    scores = scores_of(logits)
    bins = np.minimum((scores * counting.bins).astype(np.int64), counting.bins - 1)
    bins = np.where(logits > 0, np.maximum(bins, half), np.minimum(bins, half - 1))
    capped = np.clip(losses, 0.0, counting.loss_cap) - counting.loss_cap / 2
    return {
        "positives": np.bincount(bins[positive], minlength=counting.bins).astype(np.float64),
        "negatives": np.bincount(bins[~positive], minlength=counting.bins).astype(np.float64),
        "loss": _summed(capped),
        "scores": _summed(scores - 0.5),
    }


def _summed(values: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.array([np.trunc(values * GRID).astype(np.int64).sum() / GRID])


def project(cells: Cells) -> Cells:
    """Give the histogram that noised cells stand for: none is negative, and totals are kept (SPEC 12.11).

    From all examples to classes, to halves of the score, to halves of these: each time the two parts that are nearest
    to the noised ones in least squares among those that are not negative and add up to their whole. Cutting negative
    cells off at zero would add examples instead, the more the more cells are empty.

    Args:
        cells: (2, bins), any finite numbers.
    """
    levels = [cells.reshape(-1)]
    while len(levels[-1]) > 1:
        levels.append(levels[-1].reshape(-1, 2).sum(axis=1))
    wholes = np.maximum(levels.pop(), 0.0)
    for noised in reversed(levels):
        left, right = noised.reshape(-1, 2).T
        first = np.clip((wholes + left - right) / 2, 0.0, wholes)
        wholes = np.stack([first, wholes - first], axis=1).reshape(-1)
    return wholes.reshape(cells.shape)


def estimate(counts: Mapping[str, NDArray[np.float64]], noise: Noise, counting: Counting) -> dict[str, Estimate]:
    """Turn the noised sum of ``count_noised`` into metrics, each with its 90 % interval (SPEC 12.11).

    Whatever the counts are, every number is within its metric's range, and no number is NaN.

    Args:
        counts: positives, negatives, loss, scores.
        noise: what was added to them.
        counting: how they were counted.

    Returns:
        examples, accuracy, loss, auroc, auprc, calibration_error, observed_expected.
    """
    return {name: one.printed for name, one in _measured(counts, noise, counting).items()}


def _measured(counts: Mapping[str, NDArray[np.float64]], noise: Noise, counting: Counting) -> dict[str, Estimate]:
    noised = np.stack([counts["positives"], counts["negatives"]]).astype(np.float64)
    cells = project(noised)
    return {
        "examples": _examples(noised, noise.cells),
        "accuracy": _accuracy(noised, cells, noise.cells),
        "loss": _loss(noised, float(counts["loss"][0]), noise, counting.loss_cap),
        "auroc": _auroc(noised, cells, noise.cells),
        "auprc": _auprc(noised, cells, noise.cells),
        "calibration_error": _calibration_error(noised, cells, noise.cells),
        "observed_expected": _observed_expected(noised, float(counts["scores"][0]), noise),
    }


def choose(examples: int, noise_of: Callable[[Counting], Noise]) -> Counting:
    """Choose bins and cap for so many examples under a noise (SPEC 12.11).

    More bins resolve scores better and gather more noise. These are the bins for which the half widths of accuracy,
    which counts twice, and of AUROC are least together: the bins' part in AUROC's is a bound that is seldom reached.
    The cap is the largest that leaves the loss clear, or the smallest.

    Args:
        examples: how many there will be, about: a public guess.
        noise_of: the noise under a way of counting.
    """

    def spread(bins: int) -> float:
        counting = Counting(bins, CAPS[-1])
        cells, sigma = _typical(examples, counting), noise_of(counting).cells
        return 2 * _accuracy(cells, cells, sigma).half_width + _auroc(cells, cells, sigma).half_width

    def clear(bins: int, cap: float) -> bool:
        counting = Counting(bins, cap)
        cells, loss = _typical(examples, counting), examples * (0.5 - cap / 2)
        return _loss(cells, loss, noise_of(counting), cap).half_width <= CLEAR

    bins = min(BINS, key=spread)
    return Counting(bins, next((cap for cap in CAPS if clear(bins, cap)), CAPS[-1]))


def expected_widths(examples: int, noise: Noise, counting: Counting) -> dict[str, float]:
    """The half width of each metric's interval that is to be expected, before anything is measured (SPEC 12.11).

    That of a calibrated model whose scores are even over [0, 1], half of them positives: accuracy .75, AUROC .83.
    """
    positives, negatives = _typical(examples, counting)
    typical = {
        "positives": positives,
        "negatives": negatives,
        "loss": np.array([examples * (0.5 - counting.loss_cap / 2)]),
        "scores": np.zeros(1),
    }
    return {name: one.half_width for name, one in _measured(typical, noise, counting).items()}


def _typical(examples: int, counting: Counting) -> Cells:
    positives = examples * np.diff((np.arange(counting.bins + 1) / counting.bins) ** 2) / 2
    return np.stack([positives, positives[::-1]])


def _examples(noised: Cells, sigma: float) -> Estimate:
    total, reach = float(noised.sum()), QUANTILE * sigma * math.sqrt(noised.size)
    value = max(total, 0.0)
    return Estimate(value, max(total - reach, 0.0), value + reach)


def _accuracy(noised: Cells, cells: Cells, sigma: float) -> Estimate:
    half = noised.shape[1] // 2
    correct = float(noised[0, half:].sum() + noised[1, :half].sum())
    each = sigma**2 * noised.shape[1]
    interval = _ratio(correct, float(noised.sum()), each, each, 2 * each)
    return _estimate(_share(cells[0, half:].sum() + cells[1, :half].sum(), cells.sum()), *interval, most=1.0)


def _loss(noised: Cells, loss: float, noise: Noise, cap: float) -> Estimate:
    examples, variance = float(noised.sum()), noise.cells**2 * noised.size
    whole = loss + cap / 2 * examples
    interval = _ratio(whole, examples, noise.loss**2 + cap**2 / 4 * variance, cap / 2 * variance, variance, cap)
    return _estimate(_share(min(max(whole, 0.0), cap * max(examples, 0.0)), examples), *interval, most=cap)


def _auroc(noised: Cells, cells: Cells, sigma: float) -> Estimate:
    """Pairs within a bin are at best all in order: the interval's high end. The low end counts them as half in order.

    So it takes for granted that within a bin scores are no worse than chance, and leaves room for what chance does. The
    value is in between. The pairs in order less theta times all pairs, as a bilinear form of the noised cells, is 0 on
    average at the true theta, and its variance is at most what is reckoned here, on average.
    """
    bins, squares = noised.shape[1], sigma**2
    positives, negatives = noised
    totals = float(positives.sum()), float(negatives.sum())
    if not _both_classes(noised, sigma):
        return Estimate(0.5, 0.0, 1.0)

    def interval(tied: float) -> tuple[float, float]:
        below = np.cumsum(negatives) - (1 - tied) * negatives
        above = np.cumsum(positives[::-1])[::-1] - (1 - tied) * positives
        return _ratio(
            float(positives @ below),
            totals[0] * totals[1],
            squares * float(below @ below + above @ above),
            squares * float(totals[1] * below.sum() + totals[0] * above.sum()),
            squares * bins * (totals[0] ** 2 + totals[1] ** 2),
        )

    chance = float(np.linalg.norm(_chance(cells))) / float(cells[0].sum() * cells[1].sum())
    value = auroc(cells[0], cells[1]) + auroc_error_bound(cells[0], cells[1]) / 2
    return _estimate(value, interval(0.5)[0] - QUANTILE * chance, interval(1.0)[1], most=1.0)


def _both_classes(noised: Cells, sigma: float) -> bool:
    """Whether there are clearly examples of each class."""
    return bool((noised.sum(axis=1) > QUANTILE * sigma * math.sqrt(noised.shape[1])).all())


def _chance(cells: Cells) -> NDArray[np.float64]:
    """The standard deviation of the pairs in order within each bin, where they are by chance (Mann, Whitney 1947)."""
    return np.asarray(np.sqrt(cells[0] * cells[1] * (cells.sum(axis=0) + 1) / 12))


def _auprc(noised: Cells, cells: Cells, sigma: float) -> Estimate:
    """As ``_auroc``: positives first within each bin, or evenly mixed, each with the noise by the slopes there."""
    bins = noised.shape[1]
    if not _both_classes(noised, sigma):
        return Estimate(0.5, 0.0, 1.0)
    step = max(sigma, float(cells.max()) * 2.0**-20)  # not lost in a cell's rounding
    steps = step * np.eye(2 * bins).reshape(-1, 2, bins)
    up, down = cells + steps, np.maximum(cells - steps, 0.0)
    distance = (up - down).sum(axis=(1, 2))

    def reach(mixed: bool) -> float:
        slopes = (_average_precision(up, mixed) - _average_precision(down, mixed)) / distance
        return QUANTILE * sigma * float(np.linalg.norm(slopes))

    mixed, highest = float(_average_precision(cells, True)), float(_average_precision(cells, False))
    above = np.cumsum(cells[:, ::-1], axis=1)[:, ::-1] - cells / 2
    moved = np.divide(above[0], above.sum(axis=0) ** 2, out=np.zeros(bins), where=above[0] > 0)
    chance = QUANTILE * float(np.linalg.norm(_chance(cells) * moved)) / float(cells[0].sum())
    return _estimate((mixed + highest) / 2, mixed - reach(True) - chance, highest + reach(False), most=1.0)


def _average_precision(cells: NDArray[np.float64], mixed: bool) -> NDArray[np.float64]:
    """The mean over the positives of the precision at their score: shape (..., 2, bins) to (...).

    Args:
        cells: not negative, with positives.
        mixed: within a bin, positives and negatives are evenly mixed; otherwise all positives are first.
    """
    positives, negatives = cells[..., 0, ::-1], cells[..., 1, ::-1]
    above, false = np.cumsum(positives, -1) - positives, np.cumsum(negatives, -1) - negatives
    precision = np.zeros(positives.shape)
    for node in NODES:
        true = above + (node * positives if mixed else positives)
        wrong = false + (node * negatives if mixed else 0.0)
        precision += np.divide(true, true + wrong, out=np.zeros(true.shape), where=true > 0) / len(NODES)
    weights = np.asarray(positives / np.maximum(positives.sum(-1, keepdims=True), np.finfo(np.float64).tiny))
    return np.asarray((weights * precision).sum(-1))


def _calibration_error(noised: Cells, cells: Cells, sigma: float) -> Estimate:
    """Noise can only add to a sum of magnitudes, on average: the interval is what it can have added or taken away.

    Both that sum and the number of examples must hold, and a score may be anywhere in its bin.
    """
    bins = noised.shape[1]
    middles = (np.arange(bins) + 0.5) / bins
    groups = min(bins, CALIBRATION_BINS)

    def magnitude(cells: Cells) -> float:
        excess = cells[1] * middles - cells[0] * (1 - middles)
        return float(np.abs(excess.reshape(groups, -1).sum(axis=1)).sum())

    spread = sigma * np.sqrt((middles**2 + (1 - middles) ** 2).reshape(groups, -1).sum(axis=1))
    reach = math.sqrt(2 / math.pi) * float(spread.sum()) + WIDER * math.sqrt(1 - 2 / math.pi) * float(
        np.linalg.norm(spread)
    )
    total, off = float(noised.sum()), WIDER * sigma * math.sqrt(noised.size)
    if total <= off:
        return Estimate(0.5, 0.0, 1.0)
    low = max(magnitude(noised) - reach, 0.0) / (total + off) - 1 / (2 * bins)
    high = (magnitude(noised) + reach) / (total - off) + 1 / (2 * bins)
    return _estimate(_share(magnitude(cells), cells.sum()), low, high, most=1.0)


def _observed_expected(noised: Cells, scores: float, noise: Noise) -> Estimate:
    """Positives over the sum of the scores, which is the scores' own count and half the examples."""
    bins, examples, observed = noised.shape[1], float(noised.sum()), float(noised[0].sum())
    each = noise.cells**2 * bins
    expected = scores + examples / 2
    interval = _ratio(observed, expected, each, each / 2, noise.scores**2 + each / 2, MOST_EXPECTED)
    value = _share(max(observed, 0.0), expected, otherwise=1.0)
    return _estimate(value, *interval, most=MOST_EXPECTED)


def _ratio(
    above: float, below: float, variance: float, covariance: float, variance_below: float, most: float = 1.0
) -> tuple[float, float]:
    """The 90 % interval of a ratio of two noised sums, of which the lower one is not negative (Fieller 1954).

    These are the theta with |above - theta below| at most ``QUANTILE`` of its standard deviations: exact, however large
    the noise is. Where ``below`` is not clearly above 0 they are no interval, and 0 to ``most`` is given.
    """
    square = QUANTILE**2
    lead = below**2 - square * variance_below
    if below <= 0 or lead <= 0:
        return 0.0, most
    middle = (above * below - square * covariance) / lead
    reach = math.sqrt(max(middle**2 - (above**2 - square * variance) / lead, 0.0))
    return middle - reach, middle + reach


def _share(part: float, whole: float, otherwise: float = 0.5) -> float:
    return float(part) / float(whole) if whole > 0 else otherwise


def _estimate(value: float, low: float, high: float, *, most: float) -> Estimate:
    """Keep an interval to 0 … most, and put the value into it.

    What lies beyond the range is folded back: an interval is not made narrow by noise that has carried it outside.
    """
    low, high = min(low, high), max(low, high)  # cells of noise alone may turn them round
    half = (high - low) / 2
    if high > most:
        low = min(low, most - half)
    if low < 0:
        high = max(high, half)
    low, high = min(max(low, 0.0), most), min(max(high, 0.0), most)
    return Estimate(min(max(value, low), high), low, high)
