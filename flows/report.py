"""What a training leaves for people and programs: records of its rounds, as ``--json`` writes them (SPEC 6.5)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_tasks.noised_metrics import WIDEST

UNCLEAR = (
    f"no number, since the noise leaves more than ±{WIDEST}: a larger privacy.metrics_share or epsilon, or more test "
    "examples, would help"
)


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
            "epsilon": self.epsilon,
            "seconds": {"train": self.train_s, "secure": self.total_s - self.train_s, "total": self.total_s},
            "bytes_per_site": self.bytes_per_site,
            "faults": list(self.faults),
            "clamped": self.clamped,
            "failed": self.failed,
        }


def metric_text(record: RoundRecord, name: str, digits: int) -> str:
    """A metric as people read it, with its interval where the sum was noised; a dash where there is none."""
    if name not in record.metrics:
        return "-"
    if name not in record.intervals:
        return f"{record.metrics[name]:.{digits}f}"
    low, high = record.intervals[name]
    return f"{record.metrics[name]:.4g} ({low:.4g} to {high:.4g})"


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
