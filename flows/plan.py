"""The plan: everything that a training is, agreed to by every site before it starts (SPEC 6.1).

A plan is a TOML file, or the form of this model in the Prefect UI. Its digest, over canonical JSON with every default
resolved, is in every context: a site takes part in the plan that it agreed to or in nothing.
"""

import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows.plan_words import wrong
from ml_tasks.noised_metrics import Counting, choose, noise_of
from protocols.contexts import SPEC_VERSION, SiteName, canonical, sha256, threshold_refusal
from protocols.files import NotToml, read_toml

SLACK = 1.001
MOST_PRIVATE_STEPS = 1000
LEAST_MOVE = 1e-3
"""A model that all rounds together cannot move by more than this, in length, learns nothing."""


class PlanError(Exception):
    """A plan that cannot be used; the text is one line that says what and how to mend it."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LocalSteps(_Part):
    """What a site does with the global model in a round: plain SGD."""

    steps: int = Field(default=10, ge=1, title="Steps a round", description="SGD steps a site takes in each round.")
    batch_size: int = Field(default=32, ge=1, description="Examples in a step; a site with fewer uses all.")
    learning_rate: float = Field(default=0.1, gt=0, description="Learning rate of SGD.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Momentum; it starts at zero in each round.")
    weight_decay: float = Field(default=0.0, ge=0, title="Weight decay", description="L2 penalty.")


class UpdateRing(_Part):
    """How a model update becomes integers: x * scale, rounded, in Z_2^bits."""

    bits: Literal[16, 32, 64] = Field(default=32, description="Bits a parameter takes on the wire.")
    scale: float = Field(default=2.0**20, gt=0, le=2.0**62, description="Grid steps per unit.")
    max_abs: float = Field(
        default=8.0,
        gt=0,
        le=2.0**62,
        title="Largest magnitude",
        description="Sites clamp each parameter's update to this magnitude.",
    )
    rotated: bool = Field(
        default=False,
        description="Spread the update's length evenly over its parameters before they are clamped and rounded: for a "
        "ring of 16 bits.",
    )


class Protection(_Part):
    """What protects the sites' contributions."""

    protocol: Literal["secagg", "plain"] = Field(
        default="secagg", description="secagg: pairwise masks, active adversary. plain: no protection, for debugging."
    )
    allow_insecure: bool = Field(default=False, description="Must be true for the plain protocol.")
    threshold: int = Field(
        default=0,
        ge=0,
        title="Threshold",
        description="Sites needed for a sum; 0 takes the smallest that the rules allow.",
    )
    colluding: int = Field(
        default=1, ge=1, title="Colluding sites", description="Sites assumed to collude with the coordinator."
    )
    max_examples: int = Field(
        default=10_000,
        ge=1,
        lt=2**31,
        title="Most examples at a site",
        description="Public bound on a site's number of examples.",
    )
    timing: Literal["free", "fixed"] = Field(
        default="free",
        description="fixed: a site answers local work when deadlines.train_s has passed, however long it took.",
    )
    update: UpdateRing = Field(
        default_factory=UpdateRing, title="Ring of the update", description="The ring of the model update."
    )


class Privacy(_Part):
    """Differential privacy (SPEC 12), with the sites' noise added up.

    For each record or patient: a round is one step of DP-SGD, in which each site samples its records and adds up their
    clipped gradients; or, with local noise, several steps that each site noises in full by itself. For each site: its
    update and weight are clipped jointly.
    """

    unit: Literal["none", "record", "site"] = Field(
        default="none",
        description="Whom it protects: nobody, each record (each patient, where the task knows), or each site.",
    )
    noise: Literal["distributed", "local"] = Field(
        default="distributed",
        description="distributed: the sites' parts of the noise add up, one step a round. local: each site adds all of "
        "it in each of its steps, which takes more noise in all and fewer rounds.",
    )
    epsilon: float = Field(
        default=0.0, ge=0, le=100, description="For the whole training, statistics and final metrics included."
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="Less than one over the number of records.")
    clip: float = Field(
        default=1.0, gt=0, le=1e6, description="Longest gradient of a record or patient; longest update of a site."
    )
    adaptive: bool = Field(
        default=False,
        title="Adaptive clip",
        description="Whether the sites' clip follows a quantile of their updates' lengths; it begins with clip.",
    )
    quantile: float = Field(
        default=0.5, gt=0, lt=1, description="Part of the sites whose updates an adaptive clip leaves whole."
    )
    least_weight: float = Field(
        default=0.0,
        ge=0,
        title="Least weight",
        description="For sites: public lower bound on their summed weights, each examples / protection.max_examples.",
    )
    sampling_rate: float = Field(
        default=0.1, gt=0, le=1, title="Sampling rate", description="Probability of a record to be in a step."
    )
    expected_batch: float = Field(
        default=0.0,
        ge=0,
        title="Expected batch",
        description="Public constant that a step's summed gradients are divided by.",
    )
    statistics: Literal["noised", "bounds"] = Field(
        default="noised",
        description="Where the features' means and scales come from: the data, noised and charged, or the task's "
        "public bounds, which cost nothing and serve better where epsilon or the data are small.",
    )
    statistics_share: float = Field(
        default=0.1, gt=0, lt=1, title="Share of the statistics", description="Part of epsilon for means and scales."
    )
    metrics_share: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        title="Share of the metrics",
        description="Part of epsilon for the final evaluation; noise adds in squares, and the steps hardly feel it.",
    )
    test_examples: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        title="Test examples",
        description="Public guess of how many test examples all sites have: bins and loss_cap follow from it. 0: a "
        "quarter of the training examples that expected_batch / sampling_rate, or least_weight * "
        "protection.max_examples, come to.",
    )
    bins: Literal[0, 2, 4, 8, 16, 32, 64, 128, 256, 512] = Field(
        default=0, description="Bins of the score in the noised metrics; 0: what the noise bears."
    )
    loss_cap: float = Field(
        default=0.0,
        ge=0,
        le=16,
        title="Cap of the loss",
        description="An example's loss counts at most this in the noised metrics; 0: what the noise bears.",
    )
    training_noise: float = Field(default=0.0, ge=0, description="Noise multiplier of a step; 0: what epsilon takes.")
    statistics_noise: float = Field(default=0.0, ge=0, description="Noise multiplier of the statistics; 0: likewise.")
    metrics_noise: float = Field(default=0.0, ge=0, description="Noise multiplier of the metrics; 0: likewise.")


class Stopping(_Part):
    """When to stop before the last round, and which model to keep: by the monitored examples, never the test's."""

    patience: int = Field(
        default=0, ge=0, title="Patience (rounds)", description="Rounds without improvement before stopping; 0: never."
    )
    metric: Literal["loss", "accuracy", "auroc", "auprc"] = Field(
        default="loss", description="The metric that must improve."
    )
    keep: Literal["last", "best"] = Field(
        default="last", title="Model to keep", description="Which model the training ends with."
    )


class Deadlines(_Part):
    """How long the coordinator waits, in seconds."""

    join_s: float = Field(
        default=300.0,
        gt=0,
        le=1e7,
        title="Time to join (seconds)",
        description="For the sites to join before the first round.",
    )
    train_s: float = Field(
        default=600.0,
        gt=0,
        le=1e7,
        title="Time for local work (seconds)",
        description="For a site's local training or evaluation.",
    )
    step_s: float = Field(
        default=60.0, gt=0, le=1e7, title="Time for a protocol step (seconds)", description="For a protocol step."
    )
    finish_s: float = Field(
        default=300.0,
        gt=0,
        le=1e7,
        title="Time to finish a confirmed round (seconds)",
        description="For finishing a round whose survivor set is confirmed.",
    )


class Plan(_Part):
    """A training: task, data, sites, rounds, protection."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$", description="Short name; the training's starts with it.")]
    task: Annotated[str, Field(pattern=r"^[\w.]+:\w+$", description="Import path of the ML task, module:Class.")]
    code: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        default="",
        title="Code",
        description="Digest of the task's code (fedseal code TASK); empty: what the coordinator has installed.",
    )
    data: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$", description="Name of the data set, mapped by each site.")]
    sites: tuple[SiteName, ...] = Field(min_length=3, description="The sites to invite, by name.")
    min_sites: int = Field(
        default=0,
        ge=0,
        title="Fewest sites",
        description="Sites that must have joined before the first round; 0: all of them.",
    )
    rounds: int = Field(ge=1, le=100_000, title="Rounds", description="Rounds of training.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Makes training reproducible; protects nothing.")
    strategy: Literal["fedavg"] = Field(default="fedavg", description="How updates become the next model.")
    max_attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        title="Attempts at a round",
        description="Attempts at a round before the training fails.",
    )
    max_failed: int = Field(
        default=0,
        ge=0,
        title="Most failed sites",
        description="Sites whose local work may fail in a round; with more the training stops after the sum.",
    )
    max_clamped: float = Field(
        default=0.1,
        ge=0,
        le=1,
        title="Most clamped entries",
        description="Share of a tensor's entries that a sum may clamp; with more the training stops. 1: never.",
    )
    local: LocalSteps = Field(default_factory=LocalSteps, title="Local training", description="Local training.")
    protection: Protection = Field(default_factory=Protection, description="Secure aggregation.")
    privacy: Privacy = Field(default_factory=Privacy, description="Differential privacy.")
    stopping: Stopping = Field(
        default_factory=Stopping, title="Stopping", description="Early stopping and the model to keep."
    )
    deadlines: Deadlines = Field(default_factory=Deadlines, description="Waiting times.")

    @model_validator(mode="before")
    @classmethod
    def _resolve_defaults(cls, raw: Any) -> Any:
        """Put the numbers that follow from the roster where none are given, so that the digest covers them."""
        if not isinstance(raw, dict) or not isinstance(protection := raw.get("protection", {}), dict):
            return raw
        if raw.get("min_sites", 0) == 0 and isinstance(raw.get("sites"), Sequence):
            raw = raw | {"min_sites": len(raw["sites"])}
        colluding, sites = protection.get("colluding", 1), raw.get("sites", ())
        if protection.get("threshold", 0) == 0 and isinstance(colluding, int) and isinstance(sites, Sequence):
            smallest = max((len(sites) + colluding) // 2 + 1, colluding + 2)
            raw = raw | {"protection": protection | {"threshold": smallest}}
        return raw

    @model_validator(mode="after")
    def _resolve_noise(self) -> Self:
        """Put the least noise with which epsilon holds where none is given, so that the digest covers it."""
        rules = self.privacy
        if rules.unit == "none" or rules.epsilon == 0:
            return self
        noise = least_noise(self.rounds * self.private_steps, self.max_attempts, rules)
        object.__setattr__(self, "privacy", rules.model_copy(update=noise))
        object.__setattr__(self, "privacy", self.privacy.model_copy(update=self._metrics()))
        return self

    def _metrics(self) -> dict[str, float]:
        """The public guess of the test examples, and the bins and the cap that the noise bears with so many."""
        rules = self.privacy
        examples = rules.test_examples or max(1, round(min(self.declared_examples / 4, 2.0**31 - 1)))
        each = rules.metrics_noise * self.most_evaluated * math.sqrt(len(self.sites) / max(1, self.honest_noise))
        chosen = choose(examples, lambda counting: noise_of(counting, each))
        return {
            "test_examples": examples,
            "bins": rules.bins or chosen.bins,
            "loss_cap": rules.loss_cap or chosen.loss_cap,
        }

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if len(set(self.sites)) != len(self.sites):
            raise ValueError("a site is named twice")
        if reason := threshold_refusal(len(self.sites), self.protection.threshold, self.protection.colluding):
            raise ValueError(reason)
        if not self.protection.threshold <= self.min_sites <= len(self.sites):
            raise ValueError(
                f"min_sites ({self.min_sites}) must be from the threshold ({self.protection.threshold}) to the number "
                f"of sites ({len(self.sites)})"
            )
        if self.protection.protocol == "plain" and not self.protection.allow_insecure:
            raise ValueError("the plain protocol protects nothing: set protection.allow_insecure = true to use it")
        if self.privacy.adaptive and self.privacy.unit != "site":
            raise ValueError('only the clip of sites adapts: set privacy.unit = "site" or leave adaptive out')
        if self.privacy.unit != "none":
            self._check_privacy()
        return self

    def _check_privacy(self) -> None:
        rules = self.privacy
        if self.protection.protocol == "plain":
            raise ValueError("privacy needs secure aggregation: a single site's noise would not be enough")
        constant = "least_weight" if rules.unit == "site" else "expected_batch"
        if rules.epsilon == 0 or getattr(rules, constant) == 0:
            raise ValueError(f"privacy needs epsilon and {constant}")
        if rules.unit == "site":
            if rules.sampling_rate != 1 or rules.statistics != "bounds" or rules.noise != "distributed":
                raise ValueError(
                    "with privacy for sites, who take part in every round, set sampling_rate = 1, "
                    'statistics = "bounds" and leave noise out'
                )
        elif rules.noise == "distributed" and self.local.steps != 1:
            raise ValueError(
                "with distributed noise a round is one step: set local.steps = 1 and take more rounds, or "
                'noise = "local"'
            )
        if self.private_steps > MOST_PRIVATE_STEPS:
            raise ValueError(
                f"a site's ledger takes at most {MOST_PRIVATE_STEPS} noised steps a round: lower local.steps"
            )
        if self.stopping.patience or self.stopping.keep != "last":
            raise ValueError("with privacy no round is measured: leave stopping out")
        self._check_privacy_numbers()

    def _check_privacy_numbers(self) -> None:
        """Refuse numbers with which privacy is none, or nothing can be learned."""
        rules, sites, most = self.privacy, len(self.sites), self.protection.max_examples
        if rules.delta * self.declared_examples > 1:
            raise ValueError(
                f"privacy.delta ({rules.delta:g}) allows to publish whole records: it must be less than one over the "
                f"{self.declared_examples:,.0f} examples that this plan declares, so at most "
                f"{1 / self.declared_examples:.2g}"
            )
        if rules.unit == "site":
            if rules.least_weight > sites:
                raise ValueError(
                    f"privacy.least_weight ({rules.least_weight:g}) is more than the {sites} that the weights of all "
                    "sites add up to at most: lower it"
                )
        elif rules.expected_batch > (sampled := rules.sampling_rate * most * sites):
            raise ValueError(
                f"privacy.expected_batch ({rules.expected_batch:g}) is more than the {sampled:g} that {sites} sites of "
                f"at most {most:,} examples sample at a rate of {rules.sampling_rate:g}: lower it, or raise "
                "protection.max_examples or privacy.sampling_rate"
            )
        elif rules.expected_batch < 1:
            raise ValueError(
                f"privacy.expected_batch ({rules.expected_batch:g}): most steps would sample no record at all: raise "
                "privacy.sampling_rate, and with it expected_batch"
            )
        if not rules.adaptive and (move := self.rounds * self.private_steps * self.longest_step) < LEAST_MOVE:
            raise ValueError(
                f"privacy.clip ({rules.clip:g}) is too small: all rounds move the model by at most {move:.2g}: "
                "take about the length that gradients have, such as 1"
            )

    @property
    def declared_examples(self) -> float:
        """With privacy, the training examples that the plan's public constants come to, of all sites."""
        if self.privacy.unit == "site":
            return self.privacy.least_weight * self.protection.max_examples
        return self.privacy.expected_batch / self.privacy.sampling_rate

    @property
    def longest_step(self) -> float:
        """With privacy, how far a step moves the model at most."""
        return self.privacy.clip * (1.0 if self.privacy.unit == "site" else self.local.learning_rate)

    @property
    def private_steps(self) -> int:
        """The noised steps that a round is made of."""
        return self.local.steps if (self.privacy.unit, self.privacy.noise) == ("record", "local") else 1

    @property
    def honest_noise(self) -> int:
        """The sites whose shares make up the noise that is counted on."""
        return self.protection.threshold - self.protection.colluding

    @property
    def most_evaluated(self) -> int:
        """The examples that one unit adds to the noised metrics at most."""
        return self.protection.max_examples if self.privacy.unit == "site" else 1

    @property
    def counting(self) -> Counting:
        """How the examples of noised metrics are counted."""
        return Counting(self.privacy.bins, self.privacy.loss_cap)

    def sums_statistics(self, features: int) -> bool:
        """Whether a task with so many features begins with a sum of their moments."""
        return features > 0 and (self.privacy.unit == "none" or self.privacy.statistics == "noised")

    @property
    def digest(self) -> str:
        """The plan's digest (``plan_digest``), which is in every context."""
        return plan_digest(self.to_json())

    def to_json(self) -> str:
        """The plan as canonical JSON, defaults resolved."""
        return canonical(self.model_dump(mode="json"))


def least_noise(steps: int, attempts: int, rules: Privacy) -> dict[str, float]:
    """The noise multipliers that a plan's privacy names, or the least with which its epsilon holds (SPEC 6.10).

    Statistics and metrics get theirs from their shares of epsilon, each as if it were alone; the steps get what is
    left when all of it is composed. All of them a thousandth more, for what the model's size adds.

    Raises:
        ValueError: if no noise is enough.
    """
    from protocols.privacy.accounting import Event, calibrate

    def alone(share: float, given: float) -> float:
        return given or SLACK * calibrate(share * rules.epsilon, rules.delta, lambda noise: [Event(noise, 1, attempts)])

    statistics = alone(rules.statistics_share, rules.statistics_noise)
    metrics = alone(rules.metrics_share, rules.metrics_noise)

    def whole(noise: float) -> list[Event]:
        once = [Event(metrics / SLACK, 1.0, attempts)]
        if rules.statistics == "noised":
            once.append(Event(statistics / SLACK, 1.0, attempts))
        return [*once, Event(noise, rules.sampling_rate, steps * attempts)]

    training = rules.training_noise or SLACK * calibrate(rules.epsilon, rules.delta, whole)
    return {"training_noise": training, "statistics_noise": statistics, "metrics_noise": metrics}


def plan_digest(canonical_plan: str) -> str:
    """SHA-256 over a plan's canonical JSON, defaults resolved."""
    return sha256(SPEC_VERSION, "plan", canonical_plan)


def read_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a plan from TOML; ``overrides`` are ``a.b=c`` with a TOML value, or a bare word for a string.

    Raises:
        PlanError: one line: the file, or the override that it came from, the field and what is wrong with it.
    """
    return make_plan(read_fields(path, overrides), source=str(path), overrides=overrides)


def read_fields(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a plan's fields from TOML as they are written, unchecked; see ``read_plan``.

    Raises:
        PlanError: the file cannot be read, or an override is none.
    """
    try:
        raw = read_toml(path)
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}): give the path of a plan") from None
    except NotToml as error:
        raise PlanError(f"{path}: is not TOML: {error}") from None
    for override in overrides:
        _override(raw, override)
    return raw


def make_plan(raw: object, *, source: str, overrides: Sequence[str] = ()) -> Plan:
    """Check a plan's fields.

    Args:
        raw: the fields.
        source: where they come from.
        overrides: what was put in their place, each ``a.b=c``: a wrong field is blamed on its own.

    Raises:
        PlanError: one line that names the first wrong field.
    """
    try:
        return Plan.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = tuple(str(part) for part in first["loc"])
        for override in overrides:
            names = tuple(override.partition("=")[0].split("."))
            if place and place[: len(names)] == names[: len(place)]:
                source = f"--set {override}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise PlanError(f"{source}: {'.'.join(place) or 'plan'}: {wrong(first, Plan)}{more}") from None


def _override(raw: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *parents, last = name.split(".")
    if not equals or not all([*parents, last]):
        raise PlanError(f"--set {override}: write it as field=value, as in --set seed=42")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise PlanError(f"--set {override}: {parent} is not a table: it has no fields to set")
    try:
        raw[last] = tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # a TOMLDecodeError, or a number of more digits than Python reads
        raw[last] = text
