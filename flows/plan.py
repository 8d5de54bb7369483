"""The plan: everything that a training is, agreed to by every site before it starts (SPEC 6.1).

A plan is a TOML file, or the form of this model in the Prefect UI. Its digest, over canonical JSON with every default
resolved, is in every context: a site takes part in the plan that it agreed to or in nothing.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from protocols.contexts import SPEC_VERSION, SiteName, canonical, sha256, threshold_refusal


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
    update: UpdateRing = Field(
        default_factory=UpdateRing, title="Ring of the update", description="The ring of the model update."
    )


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
    local: LocalSteps = Field(default_factory=LocalSteps, title="Local training", description="Local training.")
    protection: Protection = Field(default_factory=Protection, description="Secure aggregation.")
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
            return raw | {"protection": protection | {"threshold": smallest}}
        return raw

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
        return self

    @property
    def digest(self) -> str:
        """The plan's digest (``plan_digest``), which is in every context."""
        return plan_digest(self.to_json())

    def to_json(self) -> str:
        """The plan as canonical JSON, defaults resolved."""
        return canonical(self.model_dump(mode="json"))


def plan_digest(canonical_plan: str) -> str:
    """SHA-256 over a plan's canonical JSON, defaults resolved."""
    return sha256(SPEC_VERSION, "plan", canonical_plan)


def read_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a plan from TOML; ``overrides`` are ``a.b=c`` with a TOML value, or a bare word for a string.

    Raises:
        PlanError: one line: the file, the field and what is wrong with it.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}): give the path of a plan") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: is not TOML: {error}") from None
    for override in overrides:
        _override(raw, override)
    return make_plan(raw, source=str(path))


def make_plan(raw: object, *, source: str) -> Plan:
    """Check a plan's fields.

    Raises:
        PlanError: one line that names the first wrong field.
    """
    try:
        return Plan.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "plan"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise PlanError(f"{source}: {field}: {first['msg'].removeprefix('Value error, ')}{more}") from None


def _override(raw: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    *parents, last = name.split(".")
    if not equals or not all([*parents, last]):
        raise PlanError(f"--set {override}: write it as field=value, as in --set seed=42")
    for parent in parents:
        raw = raw.setdefault(parent, {})
        if not isinstance(raw, dict):
            raise PlanError(f"--set {override}: {parent} is not a table")
    try:
        raw[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raw[last] = text
