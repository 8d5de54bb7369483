"""The messages beside the protocol's own: joining a training, local work, the plain sum (SPEC 5.3)."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from protocols.contexts import SPEC_VERSION, AttemptContext, Digest, TrainingName, sha256

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True, config=_STRICT)
class AskJoin:
    """Asks a site to agree to a plan (its canonical JSON). Kind ``ask/join``, in the join context."""

    training: TrainingName
    plan: str


@dataclass(frozen=True, slots=True, config=_STRICT)
class Joined:
    """A site has agreed to the plan with this digest. Kind ``joined``.

    Attributes:
        plan: the digest.
        monitored: the examples that its rounds' metrics are measured on: ``train`` or ``validation``.
    """

    plan: Digest
    monitored: Literal["train", "validation"]


@dataclass(frozen=True, slots=True, config=_STRICT)
class AskWork:
    """Asks for local work on an attempt's incoming model. Kind ``ask/moments``, ``ask/train`` or ``ask/evaluate``."""

    context: AttemptContext


@dataclass(frozen=True, slots=True, config=_STRICT)
class Done:
    """The work is done and its result kept at the site; how long it took. Kind ``done``."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, config=_STRICT)
class AskFinish:
    """The training has ended: erase its secrets. Kind ``ask/finish``, in the join context."""

    training: TrainingName


def join_context(training: str, plan: str) -> str:
    """The labelled context of joining and leaving: training and plan digest."""
    return sha256(SPEC_VERSION, "join context", training, plan)
