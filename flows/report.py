"""What a training leaves for people and programs: records of its rounds, as ``--json`` writes them (SPEC 6.5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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

    def to_json(self) -> dict[str, Any]:
        """The record in the form of the report; ``secure`` is what the round took beyond its slowest local work."""
        return {
            "round": self.round,
            "attempt": self.attempt,
            "survivors": list(self.survivors),
            "dropped": sorted(self.dropped),
            "reasons": dict(self.dropped),
            "metrics": dict(self.metrics),
            "epsilon": self.epsilon,
            "seconds": {"train": self.train_s, "secure": self.total_s - self.train_s, "total": self.total_s},
            "bytes_per_site": self.bytes_per_site,
            "faults": list(self.faults),
            "clamped": self.clamped,
            "failed": self.failed,
        }


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
