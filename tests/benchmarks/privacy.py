"""What does privacy cost without a trusted server? ``python -m tests.benchmarks.privacy --data shared/data --json``.

Heart (FLamby's split) and eICU (the task's own split), each with a logistic regression on features that are scaled by
their public bounds, one step a round, for several epsilons. A seed is a model's start, its batches and its noise; three
trainings are paired by it, and scored by AUROC on the pooled test examples, which none of them has seen:

- *distributed*: through flows.privacy's tables and shares, ``ml_tasks.private``'s clipped sums, the encoding, every
  site's discrete noise, the rings and their decoding: bit for bit what the secure sum gives with all sites there.
- *pooled*: Opacus on all sites' records in one place, with the noise that *distributed* has come to, and the same
  rounds, rate and public divisor.
- *local*: each site alone, with all of the noise by itself, and the mean over sites of its own model's AUROC.

``ci`` is the 90 % interval of the mean difference *distributed* - *pooled* (Student's t over the seeds).
"""

import argparse
import json
import math
import secrets
import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot
from numpy.typing import NDArray
from opacus import PrivacyEngine
from scipy.stats import t as student
from sklearn.metrics import accuracy_score, roc_auc_score

from flows.plan import Plan, make_plan
from flows.privacy import check_privacy, planned_epsilon, shares_of
from flows.tables import segments_of
from ml_tasks.averaging import PrivateStep, load_vector, to_vector
from ml_tasks.baselines import pool
from ml_tasks.eicu import Eicu
from ml_tasks.heart import HeartDisease
from ml_tasks.layout import Sizes
from ml_tasks.private import clipped_sum, count_units
from ml_tasks.tabular import Standardisation, apply, from_bounds
from ml_tasks.task import Examples, SiteData, Task
from ml_tasks.training import initial_vector
from protocols.contexts import Purpose
from protocols.encoding import add, decode, encode, vector_bytes
from protocols.keys import KEY_BYTES, system_entropy
from protocols.privacy.noise import add_noise
from protocols.privacy.sampling import poisson_sample

Vector = NDArray[np.float32]
Values = Mapping[str, NDArray[np.floating]]


@dataclass(frozen=True)
class Study:
    """A data set with what is trained on it."""

    folder: str
    task: Task
    path: str
    sites: tuple[str, ...]
    epsilons: tuple[float, ...]
    rounds: int
    rate: float
    learning_rate: float
    clip: float


STUDIES = {
    "heart": Study(
        "uci-heart",
        HeartDisease(),
        "ml_tasks.heart:HeartDisease",
        ("cleveland", "hungarian", "switzerland", "va"),
        (0.1, 1.0, 3.0, 8.0),
        40,
        0.2,
        1.0,
        1.0,
    ),
    "eicu": Study(
        "eicu-demo",
        Eicu(),
        "ml_tasks.eicu:Eicu",
        ("midwest", "south", "west", "northeast", "unknown"),
        (1.0, 3.0, 8.0),
        60,
        0.1,
        1.0,
        1.0,
    ),
}


def plan_of(study: Study, epsilon: float, delta: float, train: int) -> Plan:
    """The plan of a study; the expected batch is public, here what the sampling gives on average."""
    raw = {
        "name": "privacy",
        "task": study.path,
        "data": "data",
        "sites": study.sites,
        "rounds": study.rounds,
        "max_attempts": 1,
        "local": {"steps": 1, "learning_rate": study.learning_rate},
        "protection": {"max_examples": 2000},
        "privacy": {
            "unit": "record",
            "epsilon": epsilon,
            "delta": delta,
            "clip": study.clip,
            "sampling_rate": study.rate,
            "expected_batch": float(round(study.rate * train)),
            "statistics": "bounds",
        },
    }
    return make_plan(raw, source="benchmark")


def noised_sum(plan: Plan, purpose: Purpose, values: Sequence[Values], parameters: int, features: int) -> Values:
    """Encode, noise, add in the rings and decode: what the secure sum of these sites gives."""
    table = segments_of(plan, purpose, Sizes(weights=parameters, features=features))
    shares, total = shares_of(plan, purpose, table), np.zeros(vector_bytes(table), np.uint8)
    for one in values:
        vector = encode("site", one, table, system_entropy(KEY_BYTES), count_clamped=False)
        add_noise(vector, table, shares)
        add(total, vector, table)
    return decode(total, table)


def distributed(plan: Plan, task: Task, sites: Sequence[SiteData], start: Vector, scaling: Standardisation) -> Vector:
    """A step a round, each with every site's part of the noise."""
    rules, vector = plan.privacy, start
    step = PrivateStep(plan.local.learning_rate * rules.clip / rules.expected_batch)
    for _ in range(plan.rounds):
        values = []
        for site in sites:
            chosen = poisson_sample(count_units(site.train), rules.sampling_rate, system_entropy(KEY_BYTES))
            values.append({"update": clipped_sum(task, site.train, chosen, vector, scaling, rules.clip)})
        total = noised_sum(plan, "training", values, len(vector), len(task.features))
        vector = step.apply(vector, np.asarray(total["update"], np.float64))
    return vector


def realised_noise(plan: Plan, parameters: int, features: int, sites: int) -> float:
    """The noise multiplier of a step's sum, in clips, with so many sites there."""
    table = segments_of(plan, "training", Sizes(weights=parameters, features=features))
    return shares_of(plan, "training", table)["update"] * math.sqrt(sites) / table[0].scale


def central(
    plan: Plan, task: Task, examples: Examples, start: Vector, scaling: Standardisation, noise: float, batch: float
) -> Vector:
    """Opacus in one place: Poisson batches at the plan's rate, and the given noise multiplier and divisor."""
    rules = plan.privacy
    model = task.model()
    load_vector(model, start)
    features, targets = torch.tensor(apply(examples.features, scaling)), torch.tensor(examples.targets)
    optimizer = torch.optim.SGD(model.parameters(), plan.local.learning_rate)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(features, targets), batch_size=max(1, round(rules.sampling_rate * len(examples)))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus', of its random generator: this is a benchmark
        private, optimizer, _ = PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=noise,
            max_grad_norm=rules.clip,
            poisson_sampling=False,
        )
        optimizer.expected_batch_size = batch
        for _ in range(plan.rounds):
            chosen = torch.tensor(poisson_sample(len(examples), rules.sampling_rate, secrets.token_bytes(KEY_BYTES)))
            optimizer.zero_grad()
            if chosen.any():
                logits = private(features[chosen].requires_grad_()).reshape(-1)
                torch.autograd.backward(task.loss(logits, targets[chosen]).mean())
                optimizer.step()
    return to_vector(model)


def score(task: Task, vector: Vector, scaling: Standardisation, test: Examples) -> tuple[float, float]:
    """AUROC and accuracy at one half."""
    model = task.model()
    load_vector(model, vector)
    with torch.no_grad():
        logits = model(torch.tensor(apply(test.features, scaling))).reshape(-1).numpy()
    return float(roc_auc_score(test.targets, logits)), float(accuracy_score(test.targets, logits > 0))


def records(data: SiteData) -> SiteData:
    """Each record a unit of its own, as Opacus has it, and not each patient."""
    return replace(data, train=replace(data.train, groups=None))


def compare(study: Study, data: Path, epsilon: float, delta: float, seeds: int) -> dict[str, Any]:
    """Train in the three ways for every seed."""
    task = study.task
    sites = [records(task.load(data / study.folder, site)) for site in study.sites]
    train, test = pool([one.train for one in sites]), pool([one.test for one in sites])
    plan, features = plan_of(study, epsilon, delta, len(train)), len(task.features)
    parameters = initial_vector(task, 0).size
    check_privacy(plan, parameters=parameters, features=features)
    every = realised_noise(plan, parameters, features, len(sites))
    alone = realised_noise(plan, parameters, features, plan.protection.threshold - plan.protection.colluding)
    found: dict[str, list[tuple[float, float]]] = {"distributed": [], "pooled": [], "local": []}
    for seed in range(seeds):
        start, scaling = initial_vector(task, seed), from_bounds(task.features)
        found["distributed"].append(score(task, distributed(plan, task, sites, start, scaling), scaling, test))
        batch = plan.privacy.expected_batch
        found["pooled"].append(score(task, central(plan, task, train, start, scaling, every, batch), scaling, test))
        scores = [
            score(
                task,
                central(plan, task, one.train, start, scaling, alone, plan.privacy.sampling_rate * len(one.train)),
                scaling,
                test,
            )
            for one in sites
        ]
        found["local"].append((statistics.mean(one[0] for one in scores), statistics.mean(one[1] for one in scores)))
    differences = [one[0] - other[0] for one, other in zip(found["distributed"], found["pooled"], strict=True)]
    half = float(student.ppf(0.95, seeds - 1)) * statistics.stdev(differences) / math.sqrt(seeds)
    middle = statistics.mean(differences)
    return {
        "epsilon": epsilon,
        "delta": delta,
        "planned": planned_epsilon(plan, parameters=parameters, features=features),
        "noise": every,
        **{name: statistics.mean(one[0] for one in scores) for name, scores in found.items()},
        "accuracy": {name: statistics.mean(one[1] for one in scores) for name, scores in found.items()},
        "ci": [middle - half, middle + half],
        "seeds": seeds,
    }


def plot(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw epsilon against AUROC."""
    names = sorted({str(row["data"]) for row in rows})
    figure, panels = pyplot.subplots(1, len(names), figsize=(5 * len(names), 4), layout="constrained", squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        chosen = sorted((row for row in rows if row["data"] == name), key=lambda row: float(row["epsilon"]))
        for way, style in (("pooled", "s--"), ("distributed", "o-"), ("local", "^:")):
            axes.plot([row["epsilon"] for row in chosen], [row[way] for row in chosen], style, label=way)
        axes.set(xscale="log", xlabel="epsilon, adding or removing one record", ylabel="AUROC, pooled test", title=name)
        axes.set_xticks([row["epsilon"] for row in chosen], [f"{row['epsilon']:g}" for row in chosen])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Compare on every data set that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with uci-heart and eicu-demo")
    parser.add_argument("--only", choices=sorted(STUDIES))
    parser.add_argument("--epsilon", type=float, help="only this one")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--plot", type=Path, default=Path("privacy.png"))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name, study in STUDIES.items():
        if asked.only in (None, name):
            for epsilon in study.epsilons if asked.epsilon is None else (asked.epsilon,):
                rows.append({"data": name, **compare(study, asked.data, epsilon, asked.delta, asked.seeds)})
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    plot(asked.plot, rows)
    print(json.dumps(rows) if asked.json else "\n".join(map(str, rows)))


if __name__ == "__main__":
    main()
