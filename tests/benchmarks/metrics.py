"""Do the intervals of noised metrics hold? ``python -m tests.benchmarks.metrics --data shared/data/uci-heart --json``.

The shipped plan heart-private, trained at each seed as the secure sum would train it (``tests.benchmarks.privacy``),
and evaluated through the plan's own counts, encoding, noise, rings and decoding. For each metric that is printed: how
often its interval holds what scikit-learn gives for the same model and test examples, and its half width. ``--draws``
has the evaluation noised more often for each model, for a finer figure.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from flows.plan import Plan, read_plan
from flows.privacy import metrics_noise
from flows.tables import noised_count_values, noised_counts_of
from ml_tasks import training
from ml_tasks.averaging import load_vector
from ml_tasks.baselines import pool
from ml_tasks.heart import HeartDisease
from ml_tasks.noised_metrics import Estimate, estimate
from ml_tasks.tabular import Standardisation, apply, from_bounds
from ml_tasks.task import Examples, SiteData
from ml_tasks.training import initial_vector
from tests.benchmarks.privacy import Values, distributed, noised_sum

PLAN = Path(__file__).parents[2] / "deploy" / "plans" / "heart-private.toml"
TASK = HeartDisease()
UNIT_RANGE = ("accuracy", "auroc", "auprc", "calibration_error")


@dataclass
class Tally:
    """What has become of one metric: how often it was printed, and its interval held; its half widths and errors."""

    printed: int = 0
    held: int = 0
    widths: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


def sites_of(plan: Plan, data: Path) -> list[SiteData]:
    """The sites' examples."""
    return [TASK.load(data, site) for site in plan.sites]


def counted(
    plan: Plan, sites: Sequence[SiteData], vector: NDArray[np.float32], scaling: Standardisation
) -> list[Values]:
    """Each site's counts of its test examples."""
    return [
        noised_count_values(plan, "site", training.evaluate(TASK, site.test, vector, scaling, plan.counting))
        for site in sites
    ]


def noised(plan: Plan, counts: Sequence[Values], parameters: int) -> dict[str, Estimate]:
    """One noised evaluation of these counts."""
    total = noised_sum(plan, "evaluation", counts, parameters, len(TASK.features))
    values = {name: np.asarray(array, np.float64) for name, array in total.items()}
    return estimate(noised_counts_of(values), metrics_noise(plan, len(counts)), plan.counting)


def true_metrics(plan: Plan, test: Examples, vector: NDArray[np.float32], scaling: Standardisation) -> dict[str, float]:
    """What scikit-learn says, of a loss capped as the plan has it."""
    model = TASK.model()
    load_vector(model, vector)
    with torch.no_grad():
        logits = model(torch.tensor(apply(test.features, scaling))).reshape(-1).numpy().astype(np.float64)
    scores, positive = expit(logits), test.targets == 1
    losses = -np.log(np.where(positive, scores, 1 - scores))
    return {
        "examples": float(len(test)),
        "accuracy": float(accuracy_score(positive, logits > 0)),
        "loss": float(np.minimum(losses, plan.privacy.loss_cap).mean()),
        "auroc": float(roc_auc_score(positive, scores)),
        "auprc": float(average_precision_score(positive, scores)),
        "observed_expected": float(positive.sum() / scores.sum()),
    }


def check_range(found: Mapping[str, Estimate], cap: float) -> None:
    """No number is outside its metric's range."""
    for name, one in found.items():
        most = {"loss": cap}.get(name, 1.0 if name in UNIT_RANGE else float("inf"))
        assert 0 <= one.low <= one.value <= one.high <= most, (name, one)


def note(tallies: dict[str, Tally], found: Mapping[str, Estimate], true: Mapping[str, float]) -> None:
    """Count what was printed, and what held."""
    for name, exact in true.items():
        tally, one = tallies.setdefault(name, Tally()), found[name]
        if one.clear or name == "examples":
            tally.printed += 1
            tally.held += one.low <= exact <= one.high
            tally.widths.append(one.half_width)
            tally.errors.append(abs(one.value - exact))


def measure(data: Path, epsilon: float, seeds: int, draws: int) -> dict[str, Any]:
    """Train and evaluate at each seed."""
    plan = read_plan(PLAN, (f"privacy.epsilon={epsilon}",))
    sites, scaling = sites_of(plan, data), from_bounds(TASK.features)
    test = pool([site.test for site in sites])
    tallies: dict[str, Tally] = {}
    accuracies = []
    for seed in range(seeds):
        vector = distributed(plan, TASK, sites, initial_vector(TASK, seed), scaling)
        true = true_metrics(plan, test, vector, scaling)
        accuracies.append(true["accuracy"])
        counts = counted(plan, sites, vector, scaling)
        for _ in range(draws):
            found = noised(plan, counts, len(vector))
            check_range(found, plan.privacy.loss_cap)
            note(tallies, found, true)
    return {
        "epsilon": epsilon,
        "bins": plan.privacy.bins,
        "loss_cap": plan.privacy.loss_cap,
        "accuracy_of_the_models": [statistics.mean(accuracies), statistics.stdev(accuracies)],
        "evaluations": seeds * draws,
        **{
            name: {
                "printed": one.printed,
                "held": one.held / max(1, one.printed),
                "half_width": [statistics.mean(one.widths or [0]), max(one.widths, default=0)],
                "error": statistics.mean(one.errors or [0]),
            }
            for name, one in tallies.items()
        },
    }


def main() -> None:
    """Measure at each epsilon."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of uci-heart")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.3, 1.0, 3.0, 8.0])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(asked.data, epsilon, asked.seeds, asked.draws) for epsilon in asked.epsilon]
    print(json.dumps(rows) if asked.json else "\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
