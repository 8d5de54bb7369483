"""The messages beside the protocol's own: joining a training, local work, the plain sum (SPEC 5.3)."""

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from protocols.contexts import SPEC_VERSION, AttemptContext, Digest, TrainingName, sha256

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True, config=_STRICT)
class AskJoin:
    """Asks a site to agree to a plan (its canonical JSON). Kind ``ask/join``, in the join context.

    Attributes:
        training: its name.
        plan: the plan's text.
        template: the signed template that it follows from, where the consortium has authors (SPEC 6.13).
    """

    training: TrainingName
    plan: str
    template: str = ""


@dataclass(frozen=True, slots=True, config=_STRICT)
class Joined:
    """A site has agreed to the plan with this digest. Kind ``joined``."""

    plan: Digest


@dataclass(frozen=True, slots=True, config=_STRICT)
class AskWork:
    """Asks for local work on an attempt's incoming model. Kind ``ask/moments``, ``ask/train`` or ``ask/evaluate``."""

    context: AttemptContext


@dataclass(frozen=True, slots=True, config=_STRICT)
class Done:
    """The work has ended, well or not: which, and how long it took, stays at the site (SPEC 1). Kind ``done``."""


@dataclass(frozen=True, slots=True, config=_STRICT)
class AskFinish:
    """The training has ended: erase its secrets. Kind ``ask/finish``, in the join context."""

    training: TrainingName


def join_context(training: str, plan: str) -> str:
    """The labelled context of joining and leaving: training and plan digest."""
    return sha256(SPEC_VERSION, "join context", training, plan)
