"""Metrics under noise: what one example moves, what is printed whatever the noise does, and whether intervals hold."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from ml_tasks.metrics import count, summarise
from ml_tasks.noised_metrics import (
    BINS,
    CALIBRATION_BINS,
    CAPS,
    GRID,
    MOST_EXPECTED,
    WIDEST,
    Counting,
    Estimate,
    Noise,
    choose,
    count_noised,
    estimate,
    expected_widths,
    noise_of,
    parts,
    project,
)

COUNTINGS = st.builds(Counting, st.sampled_from(BINS), st.sampled_from(CAPS))
ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)
EXAMPLES = st.lists(st.tuples(ANY, st.sampled_from([0.0, 1.0]) | ANY, ANY), max_size=30)
NOISED = st.floats(-1e13, 1e13) | st.floats(-300, 300) | st.just(0.0)


def counted(examples: list[tuple[float, float, float]], counting: Counting) -> dict[str, NDArray[np.float64]]:
    """The counts of (logit, target, loss)."""
    columns = np.array(examples, np.float32).reshape(-1, 3).T
    return count_noised(columns[0], columns[1], columns[2], counting)


def drawn(examples: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Logits, targets and losses of a model with an accuracy of about .8."""
    random = np.random.default_rng(seed)
    targets = (random.random(examples) < 0.5).astype(np.float32)
    logits = random.normal(2 * targets - 1, 1.2).astype(np.float32)
    return logits, targets, np.logaddexp(0.0, np.where(targets == 1, -logits, logits)).astype(np.float32)


def in_range(found: dict[str, Estimate], cap: float) -> bool:
    """Whether every number is within its metric's range, and each interval around its value."""
    most = dict.fromkeys(("accuracy", "auroc", "auprc", "calibration_error"), 1.0)
    most |= {"loss": cap, "observed_expected": MOST_EXPECTED, "examples": math.inf}
    return all(0 <= one.low <= one.value <= one.high <= most[name] for name, one in found.items())


@given(EXAMPLES, COUNTINGS, st.randoms(use_true_random=False))
def test_examples_counted_together_are_those_counted_one_by_one_in_any_order_bit_for_bit(
    examples: list[tuple[float, float, float]], counting: Counting, random: object
) -> None:
    together = counted(examples, counting)
    shuffled = list(examples)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    total = {name: np.zeros_like(values) for name, values in together.items()}
    for one in shuffled:
        for name, values in counted([one], counting).items():
            total[name] += values
    assert all((total[name] == values).all() for name, values in together.items())


@given(st.tuples(ANY, st.sampled_from([0.0, 1.0]) | ANY, ANY), COUNTINGS)
def test_an_example_moves_one_cell_by_one_and_the_rest_by_no_more_than_their_noise_is_for(
    one: tuple[float, float, float], counting: Counting
) -> None:
    counts = counted([one], counting)
    bounds = {name: bound for name, bound, _ in parts(counting)}
    cells = np.concatenate([counts["positives"], counts["negatives"]])
    broken = math.isnan(one[0]) or math.isnan(one[2]) or one[1] not in (0.0, 1.0)
    assert sorted(cells)[-2:] == [0.0, 0.0 if broken else bounds["cells"]]
    for name in ("loss", "scores"):
        assert abs(counts[name][0]) <= bounds[name] and (counts[name][0] * GRID).is_integer()
        assert not broken or counts[name][0] == 0
    assert sum(part for _, _, part in parts(counting)) == pytest.approx(1)


@given(st.lists(NOISED, min_size=8, max_size=8))
def test_a_projected_histogram_is_not_negative_and_keeps_its_total(noised: list[float]) -> None:
    """Cutting negative cells off at zero would add examples."""
    cells = np.array(noised).reshape(2, 4)
    projected = project(cells)
    assert (projected >= 0).all()
    assert projected.sum() == pytest.approx(max(cells.sum(), 0), abs=1e-3, rel=1e-12)
    assert (project(np.abs(cells)) == pytest.approx(np.abs(cells), abs=1e-2, rel=1e-12)) or np.abs(cells).max() > 1e6


def test_empty_cells_under_noise_add_no_examples() -> None:
    random, true = np.random.default_rng(1), np.zeros((2, 64))
    true[0, 60], true[1, 3] = 400.0, 500.0
    totals = [project(true + random.normal(0, 10, true.shape)).sum() for _ in range(100)]
    assert np.mean(totals) == pytest.approx(900, abs=4 * 10 * math.sqrt(128) / 10)


@settings(max_examples=60)
@given(
    st.lists(NOISED, min_size=10, max_size=10), st.sampled_from((2, 4, 32)), st.sampled_from(CAPS), st.floats(1e-6, 1e6)
)
@example([0.0, 0.0, 0.0, 18.0, 0.0, 0.0, 45376.0, -45371.0, 0.0, 0.0], 4, 2.0, 1.0)
def test_whatever_the_noised_counts_are_no_number_is_outside_its_range(
    noised: list[float], bins: int, cap: float, sigma: float
) -> None:
    positives, negatives = (np.resize(half, bins) for half in (noised[:4], noised[4:8]))
    ends = {"loss": np.array(noised[8:9]), "scores": np.array(noised[9:])}
    counts = {"positives": positives, "negatives": negatives, **ends}
    assert in_range(estimate(counts, Noise(sigma, sigma, sigma), Counting(bins, cap)), cap)


@pytest.mark.parametrize("examples", [0, 3])
@pytest.mark.parametrize("sigma", [1.0, 50.0])
def test_next_to_no_examples_give_no_number_but_how_few_they_are(examples: int, sigma: float) -> None:
    counting, random = Counting(4, 2.0), np.random.default_rng(examples)
    noise = noise_of(counting, sigma)
    printed = 0
    for seed in range(20):
        found = estimate(noised(count_noised(*drawn(examples, seed), counting), noise, random), noise, counting)
        assert in_range(found, 2.0)
        printed += found["accuracy"].clear
    assert printed <= 3


def noised(
    counts: dict[str, NDArray[np.float64]], noise: Noise, random: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Counts with noise."""
    sigmas = {"positives": noise.cells, "negatives": noise.cells, "loss": noise.loss, "scores": noise.scores}
    return {name: values + random.normal(0, sigmas[name], values.shape) for name, values in counts.items()}


def exact_metrics(
    logits: NDArray[np.float32], targets: NDArray[np.float32], losses: NDArray[np.float32], cap: float
) -> dict[str, float]:
    """What scikit-learn says, and the calibration error of narrow bins."""
    scores = expit(logits.astype(np.float64))
    return {
        "examples": float(len(targets)),
        "accuracy": accuracy_score(targets, logits > 0),
        "loss": float(np.minimum(losses, cap).mean()),
        "auroc": roc_auc_score(targets, scores),
        "auprc": average_precision_score(targets, scores),
        "calibration_error": calibration_by_score(logits, targets),
        "observed_expected": float(targets.sum() / scores.sum()),
    }


@pytest.mark.parametrize(("examples", "each"), [(254, 3.35), (2540, 9.0)])
def test_the_intervals_hold_what_the_examples_give_without_noise(examples: int, each: float) -> None:
    """Nine in ten, over 200 noises: chance goes below 81 % once in 10,000."""
    counting = choose(examples, lambda counting: noise_of(counting, each))
    noise, random = noise_of(counting, each), np.random.default_rng(7)
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    for seed in range(200):
        if seed % 40 == 0:
            logits, targets, losses = drawn(examples, seed)
            true = exact_metrics(logits, targets, losses, counting.loss_cap)
        found = estimate(noised(count_noised(logits, targets, losses, counting), noise, random), noise, counting)
        for name, exact in true.items():
            held.setdefault(name, []).append(found[name].low <= exact <= found[name].high)
            widths.setdefault(name, []).append(found[name].half_width)
    assert {name: np.mean(one) for name, one in held.items() if np.mean(one) < 0.81} == {}
    expected = expected_widths(examples, noise, counting)
    for name in ("examples", "accuracy", "loss", "auroc", "observed_expected"):
        if expected[name] < WIDEST or name == "examples":
            assert np.median(widths[name]) == pytest.approx(expected[name], rel=0.4)
        assert np.mean(held[name]) < 0.99 or name == "auroc" or expected[name] > WIDEST  # nor far too wide


def calibration_by_score(logits: NDArray[np.float32], targets: NDArray[np.float32]) -> float:
    """The expected calibration error over the equal bins of the score that noised metrics have."""
    scores = expit(logits.astype(np.float64))
    coarse = np.minimum((scores * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return float(np.abs(np.bincount(coarse, scores - targets)).sum() / len(targets))


def test_next_to_no_noise_leaves_the_exact_numbers() -> None:
    logits, targets, losses = drawn(4000, 3)
    counting, noise = Counting(512, 16.0), Noise(1e-6, 1e-6, 1e-6)
    exact = summarise(count(logits, targets, losses))
    exact["calibration_error"] = calibration_by_score(logits, targets)
    for name, one in estimate(count_noised(logits, targets, losses, counting), noise, counting).items():
        assert one.value == pytest.approx(exact[name], abs=2e-3) and one.half_width < 5e-3


def test_the_noise_bears_more_bins_and_a_higher_cap_where_there_are_more_examples() -> None:
    chosen = [choose(10**power, lambda counting: noise_of(counting, 5.0)) for power in range(1, 7)]
    assert chosen == sorted(chosen, key=lambda one: (one.bins, one.loss_cap))
    assert chosen[0] == Counting(2, 2.0) and chosen[-1].bins > 64 and chosen[-1].loss_cap == 16.0
