"""What a training leaves for people and programs: records of its rounds, as ``--json`` writes them (SPEC 6.5)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_tasks.noised_metrics import WIDEST

UNCLEAR = (
    f"no number, since the noise leaves more than ±{WIDEST}: a larger privacy.metrics_share or epsilon, or more test "
    "examples, would help"
)


OPEN = 0.002
"""Where a histogram's bins leave more than this on either side of a metric, it is shown with what it is within."""
NAMED = 0.01
"""A tensor of which more than this share was clamped is named."""
SHOWN_TENSORS = 5
DROWNED = 1e-3
"""More than this, as rounding's standard deviation in a weight, is seen in the metrics."""


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One finished sum.

    Attributes:
        purpose: statistics, training or evaluation.
        round, attempt: which one it was.
        survivors: the sites in the sum.
        dropped: why each other site is not.
        metrics: of the incoming model, from the sum.
        train_s: the slowest site's local work; total_s: the whole of it, in seconds.
        bytes_per_site: the most that any site has sent.
        faults: whom ``unmask`` blamed and set aside.
        failed: sites in the sum whose local work gave nothing; 0 where the sum is noised.
        clamped: values that the sites clamped to their range, in all; 0 where they are noised.
        epsilon: of the training so far, at the plan's delta; None without privacy.
        intervals: where the sum was noised, of each metric: in 9 of 10 sums it would be there without the noise.
        unclear: the metrics of which the noise has left too little to give a number.
        bounds: of each metric that is made of a histogram: what it is within, whatever the bins hide.
        clamped_shares: by tensor, the share of its entries that was clamped, where any was.
        outside: by feature, how many values are outside of its declared bounds, where any is.
        grid_noise: what rounding has added to an entry of the model, as a standard deviation.
    """

    purpose: str
    round: int
    attempt: int
    survivors: tuple[str, ...]
    dropped: Mapping[str, str]
    metrics: Mapping[str, float]
    train_s: float
    total_s: float
    bytes_per_site: int
    faults: tuple[str, ...] = ()
    clamped: int = 0
    epsilon: float | None = None
    failed: int = 0
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    unclear: tuple[str, ...] = ()
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    clamped_shares: Mapping[str, float] = field(default_factory=dict)
    outside: Mapping[str, int] = field(default_factory=dict)
    grid_noise: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The record in the form of the report; ``secure`` is what the round took beyond its slowest local work."""
        return {
            "round": self.round,
            "attempt": self.attempt,
            "survivors": list(self.survivors),
            "dropped": sorted(self.dropped),
            "reasons": dict(self.dropped),
            "metrics": dict(self.metrics),
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "unclear": dict.fromkeys(self.unclear, UNCLEAR),
            "bounds": {name: list(within) for name, within in self.bounds.items()},
            "epsilon": self.epsilon,
            "seconds": {"train": self.train_s, "secure": self.total_s - self.train_s, "total": self.total_s},
            "bytes_per_site": self.bytes_per_site,
            "faults": list(self.faults),
            "clamped": self.clamped,
            "clamped_shares": dict(self.clamped_shares),
            "outside": dict(self.outside),
            "grid_noise": self.grid_noise,
            "failed": self.failed,
            "notes": notes(self),
        }


def metric_text(record: RoundRecord, name: str, digits: int) -> str:
    """A metric as people read it; a dash where there is none.

    With its interval where the sum was noised, with what it is within where the bins of its histogram leave more than
    ``OPEN``, and with the cap beside a loss that was capped.
    """
    if name not in record.metrics:
        return "-"
    if name in record.intervals:
        low, high = record.intervals[name]
        return f"{record.metrics[name]:.4g} ({low:.4g} to {high:.4g})"
    text = f"{record.metrics[name]:.{digits}f}"
    if name == "loss" and "capped" in record.metrics:
        capped, examples, cap = (record.metrics[one] for one in ("capped", "examples", "loss_cap"))
        return f"{text} ({capped:,.0f} of {examples:,.0f} capped at {cap:g})"
    low, high = record.bounds.get(name, (0.0, 0.0))
    return f"{text} ({low:.3f} to {high:.3f})" if high - low > 2 * OPEN else text


def shares_text(shares: Mapping[str, float]) -> str:
    """Shares by name, the largest first; a few of them."""
    order = sorted(shares, key=lambda name: -shares[name])
    more = f" and {len(order) - SHOWN_TENSORS} more" if len(order) > SHOWN_TENSORS else ""
    return ", ".join(f"{shares[name]:.0%} of {name}" for name in order[:SHOWN_TENSORS]) + more


def notes(record: RoundRecord) -> list[str]:
    """Say what is odd about a sum's numbers, and what to do; of a noised sum nothing of this is known."""
    found = []
    if clamped := {name: share for name, share in record.clamped_shares.items() if share > NAMED}:
        found.append(
            f"clamped to their range: {shares_text(clamped)}: lower local.learning_rate, or raise "
            "protection.update.max_abs"
        )
    if record.outside:
        counted = ", ".join(f"{number:,} of {name}" for name, number in record.outside.items())
        found.append(f"values outside of their declared bounds: {counted}")
    if record.grid_noise > DROWNED:
        found.append(
            f"rounding adds {record.grid_noise:.2g} to each weight: lower protection.max_examples to what sites have"
        )
    if record.purpose == "evaluation" and not record.intervals and not record.unclear:
        if record.metrics.get("examples", 0.0) <= 0:
            found.append("no site has a test example: there are no final metrics")
        elif "auroc" not in record.metrics:
            found.append("the test examples are of one class: metrics of two classes do not apply")
    return found


@dataclass(frozen=True, slots=True)
class Report:
    """A finished training.

    Attributes:
        training: its name.
        plan_digest: the plan's.
        monitored: the examples that the rounds' metrics are measured on.
        statistics, rounds, final: the sums.
        best_round: the round that measured the best monitored metric, of its incoming model.
        stopped: whether it stopped early.
        privacy: unit, epsilon and delta; None without privacy.
        model, receipt: the files, relative to the run's folder.
    """

    training: str
    plan_digest: str
    monitored: str
    statistics: RoundRecord | None
    rounds: tuple[RoundRecord, ...]
    final: RoundRecord
    best_round: int | None
    stopped: bool
    privacy: Mapping[str, str | float] | None = None
    model: str = "model.safetensors"
    receipt: str = "receipt.json"

    @property
    def records(self) -> tuple[RoundRecord, ...]:
        """Every sum, in order."""
        return (*((self.statistics,) if self.statistics else ()), *self.rounds, self.final)

    def to_json(self) -> dict[str, Any]:
        """The report as ``--json`` writes it; paths are relative to the run's folder."""
        return {
            "training": self.training,
            "plan_digest": self.plan_digest,
            "monitored": self.monitored,
            "statistics": self.statistics and self.statistics.to_json(),
            "rounds": [record.to_json() for record in self.rounds],
            "final": self.final.to_json(),
            "best_round": self.best_round,
            "stopped_early": self.stopped,
            "privacy": dict(self.privacy) if self.privacy else None,
            "model": self.model,
            "receipt": self.receipt,
        }
