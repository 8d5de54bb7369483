import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from ml_tasks.metrics import (
    BINS,
    CALIBRATION_BINS,
    LOSS_CAP,
    MOST_POSITIVES,
    REACH,
    auprc,
    auprc_bounds,
    auroc,
    auroc_error_bound,
    calibration_error,
    count,
    error_bounds,
    observed_expected,
    summarise,
)
from ml_tasks.metrics import (
    counts as declared_counts,
)

EXAMPLES = st.lists(st.tuples(st.floats(-60, 60, width=32), st.booleans(), st.floats(0, 100, width=32)), max_size=60)
# Close together, so that many share a bin and the bound matters; and quantised, so that there are ties.
CLOSE = st.lists(st.tuples(st.integers(-40, 40).map(lambda i: i / 2000), st.booleans()), min_size=2, max_size=60)
PREVALENCES = {  # mean and spread of a calibrated model's logits: the share of positives, which is checked
    "0.013 %": (-12.0, 2.5, 1_000_000, 0.000134),
    "0.16 %": (-9.4, 2.5, 200_000, 0.00157),
    "0.74 %": (-6.0, 1.5, 100_000, 0.00778),
    "6 %": (-3.0, 1.0, 20_000, 0.0706),
    "half": (0.0, 2.0, 5_000, 0.5),
}


def _count(examples: list[tuple[float, bool, float]]) -> dict[str, NDArray[np.float64]]:
    columns = np.array(examples, dtype=np.float32).reshape(-1, 3).T
    return count(columns[0], columns[1], columns[2])


@given(EXAMPLES, EXAMPLES)
def test_the_counts_of_two_sites_add_up_to_those_of_the_pooled_examples(
    left: list[tuple[float, bool, float]], right: list[tuple[float, bool, float]]
) -> None:
    first, second, pooled = _count(left), _count(right), _count(left + right)
    assert list(pooled) == [declared.name for declared in declared_counts()]
    for name, expected in pooled.items():
        np.testing.assert_allclose(first[name] + second[name], expected, rtol=1e-12)


@given(EXAMPLES)
def test_counts_keep_to_what_their_declaration_promises_the_secure_sum(
    examples: list[tuple[float, bool, float]],
) -> None:
    counts = _count(examples)
    for declared in declared_counts():
        values = counts[declared.name]
        assert values.shape == (declared.length,)
        assert np.abs(values).max() <= declared.max_per_example * len(examples) * (1 + 1e-12)
        assert not declared.integral or (values == np.round(values)).all()


@given(CLOSE)
def test_the_binned_auroc_is_within_its_bound_of_the_exact_one(examples: list[tuple[float, bool]]) -> None:
    logits, targets = np.array(examples, dtype=np.float32).T
    assume(0 < targets.sum() < len(targets))
    counts = count(logits, targets, np.zeros_like(logits))
    error = abs(auroc(counts["positives"], counts["negatives"]) - roc_auc_score(targets, logits))
    assert error <= auroc_error_bound(counts["positives"], counts["negatives"]) + 1e-12


@pytest.mark.parametrize("prevalence", PREVALENCES)
def test_the_metrics_of_rare_outcomes_are_scikit_learns_to_within_five_thousandths(prevalence: str) -> None:
    mean, spread, examples, share = PREVALENCES[prevalence]
    generator = np.random.default_rng(0)
    logits = (mean + spread * generator.normal(size=examples)).astype(np.float32)
    scores = expit(logits.astype(np.float64))
    targets = (generator.random(examples) < scores).astype(np.float32)
    assert targets.mean() == pytest.approx(share, rel=0.05)
    counts = count(logits, targets, np.zeros_like(logits))
    found, bounds = summarise(counts), error_bounds(counts)
    exact = {"auroc": roc_auc_score(targets, logits), "auprc": average_precision_score(targets, logits)}
    for name, value in exact.items():
        assert found[name] == pytest.approx(value, abs=0.001), "five times better than it must be"
        assert bounds[name][0] <= value <= bounds[name][1] <= bounds[name][0] + 0.01
    assert found["observed_expected"] == pytest.approx(targets.sum() / scores.sum(), abs=1e-9)
    assert found["calibration_error"] < 0.05 * share + 0.02


def test_the_bounds_are_given_for_the_metrics_that_there_are() -> None:
    assert error_bounds(_count([(1.0, True, 0.1)])) == {}
    counts = _count([(0.001, False, 0.1), (0.002, True, 0.1)])
    assert error_bounds(counts) == {"auroc": (0.0, 1.0), "auprc": (0.5, 1.0)}


def test_the_bound_is_reached_when_all_pairs_share_a_bin() -> None:
    counts = count(np.array([1e-4, 2e-4], np.float32), np.array([0, 1], np.float32), np.zeros(2, np.float32))
    assert auroc(counts["positives"], counts["negatives"]) == 0.5  # exact: 1
    assert auroc_error_bound(counts["positives"], counts["negatives"]) == 0.5


def test_with_every_score_in_a_bin_of_its_own_the_auroc_is_exact() -> None:
    generator = np.random.default_rng(1)
    logits = generator.permutation(np.linspace(-1, 1, 40)).astype(np.float32)
    targets = generator.integers(0, 2, 40).astype(np.float32)
    counts = count(logits, targets, np.zeros(40, np.float32))
    assert auroc_error_bound(counts["positives"], counts["negatives"]) == 0
    assert auroc(counts["positives"], counts["negatives"]) == pytest.approx(roc_auc_score(targets, logits), abs=1e-12)


SPREAD = st.lists(st.tuples(st.floats(-6, 6, width=32), st.booleans()), min_size=2, max_size=200)


@given(st.one_of(CLOSE, SPREAD))
def test_the_average_precision_is_within_the_bounds_and_so_is_its_estimate(examples: list[tuple[float, bool]]) -> None:
    logits, targets = np.array(examples, dtype=np.float32).T
    assume(0 < targets.sum() < len(targets))
    counts = count(logits, targets, np.zeros_like(logits))
    lowest, highest = auprc_bounds(counts["positives"], counts["negatives"])
    assert lowest - 1e-12 <= average_precision_score(targets, logits) <= highest + 1e-12
    assert lowest - 1e-12 <= auprc(counts["positives"], counts["negatives"]) <= highest + 1e-12


def test_the_bounds_of_the_average_precision_are_reached_within_one_bin() -> None:
    targets = np.array([1, 1, 0, 0], np.float32)
    for logits, bound in (([1e-4, 2e-4, 3e-4, 4e-4], 0), ([3e-4, 3e-4, 1e-4, 2e-4], 1)):
        scores = np.array(logits, np.float32)
        counts = count(scores, targets, np.zeros(4, np.float32))
        exact = average_precision_score(targets, scores)
        assert exact == pytest.approx(auprc_bounds(counts["positives"], counts["negatives"])[bound])


def test_with_every_score_in_a_bin_of_its_own_the_average_precision_is_exact() -> None:
    generator = np.random.default_rng(2)
    logits = generator.permutation(np.linspace(-1, 1, 40)).astype(np.float32)
    targets = generator.integers(0, 2, 40).astype(np.float32)
    counts = count(logits, targets, np.zeros(40, np.float32))
    exact = average_precision_score(targets, logits)
    assert auprc_bounds(counts["positives"], counts["negatives"]) == pytest.approx((exact, exact), abs=1e-12)
    assert auprc(counts["positives"], counts["negatives"]) == pytest.approx(exact, abs=1e-12)


@given(SPREAD)
@example([(0.0, False), (-(2.0**-52), True)])
def test_calibration_is_that_of_the_scores(examples: list[tuple[float, bool]]) -> None:
    logits, targets = np.array(examples, dtype=np.float32).T
    scores = expit(logits.astype(np.float64))
    coarse = np.floor((logits.astype(np.float64) + REACH) * (CALIBRATION_BINS / (2 * REACH)))
    gaps = [abs((scores - targets)[coarse == bin_].sum()) for bin_ in range(CALIBRATION_BINS)]
    counts = count(logits, targets, np.zeros_like(logits))
    found = calibration_error(counts["positives"], counts["negatives"], counts["scores"])
    assert found == pytest.approx(sum(gaps) / len(targets), abs=1e-9)
    assert observed_expected(counts["positives"], counts["scores"]) == pytest.approx(targets.sum() / scores.sum())


def test_a_model_that_says_one_half_where_a_quarter_is_positive_is_off_by_a_quarter() -> None:
    counts = count(np.zeros(8, np.float32), np.array([1, 1, 0, 0, 0, 0, 0, 0], np.float32), np.zeros(8, np.float32))
    summary = summarise(counts)
    assert summary["calibration_error"] == pytest.approx(0.25)
    assert summary["observed_expected"] == pytest.approx(0.5)


@given(EXAMPLES.filter(len))
def test_the_summary_of_the_counts_is_the_metric_of_the_examples(examples: list[tuple[float, bool, float]]) -> None:
    logits, targets, losses = (np.array(column) for column in zip(*examples, strict=True))
    summary = summarise(_count(examples))
    assert summary["examples"] == len(examples)
    if "accuracy" in summary:
        assert summary["accuracy"] == pytest.approx(accuracy_score(targets, logits > 0))
    assert summary["loss"] == pytest.approx(np.minimum(losses, LOSS_CAP).mean())
    beyond = int((losses > LOSS_CAP).sum())
    assert (summary.get("capped"), summary.get("loss_cap")) == ((beyond, LOSS_CAP) if beyond else (None, None))
    of_two_classes = {"accuracy", "auroc", "auprc", "calibration_error", "observed_expected"}
    assert set(summary) & of_two_classes == (of_two_classes if 0 < targets.sum() < len(targets) else set())
    assert np.isfinite(list(summary.values())).all()


def test_what_does_not_apply_is_left_out_of_the_summary() -> None:
    assert summarise(_count([])) == {"examples": 0}
    assert set(summarise(_count([(1.0, True, 0.1)]))) == {"examples", "loss"}
    for metric in (auroc, auprc, auprc_bounds):
        with pytest.raises(ValueError, match="each class"):
            metric(np.ones(BINS), np.zeros(BINS))
    with pytest.raises(ValueError, match="needs an example"):
        calibration_error(np.zeros(BINS), np.zeros(BINS), np.zeros(CALIBRATION_BINS))
    with pytest.raises(ValueError, match="needs an example"):
        observed_expected(np.zeros(BINS), np.zeros(CALIBRATION_BINS))


def test_losses_beyond_the_tasks_own_cap_are_counted_and_those_within_it_are_whole() -> None:
    targets = np.array([0, 1, 1], np.float32)
    losses = np.array([20.0, 22_500.0, -30_000.0], np.float32)
    counts = count(np.zeros(3, np.float32), targets, losses, loss_cap=25_000.0)
    assert (counts["loss"][0], counts["capped"][0]) == (20.0 + 22_500.0 - 25_000.0, 1)
    assert summarise(counts, 25_000.0)["loss_cap"] == 25_000.0


def test_logits_beyond_the_reach_fall_in_the_outermost_bins() -> None:
    infinite = np.array([-np.inf, np.inf], dtype=np.float32)
    counts = count(infinite, np.array([0, 1], np.float32), np.array([np.inf, 0], np.float32))
    assert counts["negatives"][0] == counts["positives"][BINS - 1] == 1
    assert counts["loss"][0] == LOSS_CAP


@pytest.mark.parametrize(
    ("logit", "target", "loss", "why"),
    [(np.nan, 0, 0, "NaN"), (0, 0, np.nan, "NaN"), (0, 0.5, 0, "neither 0 nor 1"), (0, np.nan, 0, "neither 0 nor 1")],
)
def test_counts_that_would_be_wrong_are_refused(logit: float, target: float, loss: float, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        _count([(logit, target, loss)])  # type: ignore[list-item]


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="are not three"):
        count(np.zeros(3, np.float32), np.zeros(3, np.float32), np.zeros(1, np.float32))


@given(
    examples=st.integers(-10, 10),
    positives=st.integers(-(2**33), 2**33),
    negatives=st.integers(-(2**33), 2**33),
    bins=st.tuples(st.integers(0, BINS - 1), st.integers(0, BINS - 1)),
)
def test_counts_in_which_a_site_has_lied_neither_fail_nor_take_much_memory(
    examples: int, positives: int, negatives: int, bins: tuple[int, int]
) -> None:
    counts = {name: np.zeros(1) for name in ("loss", "correct", "capped")} | {"examples": np.array([float(examples)])}
    counts |= {"positives": np.zeros(BINS), "negatives": np.zeros(BINS), "scores": np.zeros(CALIBRATION_BINS)}
    counts["positives"][bins[0]] = positives
    counts["negatives"][bins[1]] = negatives
    summary = summarise(counts)
    assert all(np.isfinite(value) for value in summary.values())
    if positives > MOST_POSITIVES:
        assert "auprc" not in summary
