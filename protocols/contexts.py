"""Contexts: what a round is about, hashed, so that parties that see different things share no key (SPEC 2.3).

The *attempt context* is what the coordinator proposes and a site agrees to; the *round context* adds the signed
adverts. Everything from ``share`` on is bound to the round context: a coordinator that shows sites different models,
rosters or parameters gets a sum of noise.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import ConfigDict, FailFast, Field
from pydantic.dataclasses import dataclass

from protocols.encoding import CLAMPED, Segment, check_headroom
from protocols.errors import Refused
from protocols.keys import framed

SPEC_VERSION: Final = "fedseal/1"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, or a 32-byte public key, as 64 lower-case hex digits."""

SiteName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,32}$")]
TrainingName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
Purpose = Literal["statistics", "training", "evaluation"]

Item = TypeVar("Item")
ListOf = Annotated[tuple[Item, ...], FailFast()]
"""A list from outside, refused at its first wrong item: the errors of all would take a thousand times its own size."""


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, ASCII, no NaN (SPEC 2.2)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256(*parts: bytes | str) -> str:
    """SHA-256 over length-framed parts, in hex."""
    return hashlib.sha256(framed(*parts)).hexdigest()


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", strict=True))
class AttemptContext:
    """One try at one sum, as the coordinator proposes it (SPEC 2.3).

    Attributes:
        purpose: what is summed; each purpose has contexts of its own.
        training: the training's name.
        round: 0 for the statistics, 1 … for training, one more for the final evaluation.
        attempt: 1 …; a new attempt has fresh keys.
        plan: digest of the agreed plan.
        sites: identity key by invited site.
        threshold: sites needed for a sum.
        colluding: sites assumed to collude with the coordinator, at least 1.
        model: digest of the incoming model and strategy state.
        segments: the vector's table.
        noise: each site's sigma by segment, in grid steps; empty without differential privacy (SPEC 12.5).
    """

    purpose: Purpose
    training: TrainingName
    round: Annotated[int, Field(ge=0, lt=2**31)]
    attempt: Annotated[int, Field(ge=1, lt=2**31)]
    plan: Digest
    sites: Mapping[SiteName, Digest]
    threshold: Annotated[int, Field(ge=1)]
    colluding: Annotated[int, Field(ge=1)]
    model: Digest
    segments: ListOf[Segment]
    noise: Mapping[str, Annotated[float, Field(ge=2, allow_inf_nan=False)]]

    @property
    def digest(self) -> str:
        """The attempt context: SHA-256 over the label and the canonical JSON of every field."""
        return sha256(SPEC_VERSION, "attempt context", canonical(asdict(self)))


def threshold_refusal(sites: int, threshold: int, colluding: int) -> str | None:
    """Say why a threshold is not safe, or ``None`` where it is (SPEC 8, rule 4).

    2 * threshold > sites + colluding keeps two survivor sets from both being unmasked, since they would share an honest
    site; threshold - colluding >= 2 keeps a sum from being one honest site's input.
    """
    if colluding < 1:
        return "colluding must be at least 1"
    if threshold > sites:
        return f"threshold {threshold} exceeds the {sites} sites"
    if 2 * threshold <= sites + colluding:
        return f"2 x threshold ({threshold}) must exceed sites ({sites}) + colluding ({colluding})"
    if threshold - colluding < 2:
        return f"threshold ({threshold}) - colluding ({colluding}) must be at least 2"
    return None


def check_context(context: AttemptContext, site: str, consortium: Mapping[str, str]) -> None:
    """Refuse what a site must not take part in, whatever the coordinator says (SPEC 8, rule 4).

    Args:
        context: as proposed.
        site: the site's own name.
        consortium: the pinned identity keys by site.

    Raises:
        Refused: an unsafe threshold, a roster without this site, an unknown identity key, a malformed table.
        RingTooSmall: a segment without headroom.
    """
    if reason := threshold_refusal(len(context.sites), context.threshold, context.colluding):
        raise Refused(site, "advertise", reason)
    if site not in context.sites:
        raise Refused(site, "advertise", "the roster does not hold this site")
    for name, key in context.sites.items():
        if consortium.get(name) != key:
            raise Refused(site, "advertise", f"the identity key of {name} is not the one in the consortium")
    if len(set(context.sites.values())) != len(context.sites):
        raise Refused(site, "advertise", "two sites of the roster have one identity key")
    if (context.purpose == "statistics") != (context.round == 0):
        raise Refused(site, "advertise", "round 0 is for the statistics, and they for round 0")
    names = [segment.name for segment in context.segments]
    if len(set(names)) != len(names) or names[-1:] != [CLAMPED]:
        raise Refused(site, "advertise", "the segment table repeats a name or does not end with the clamped count")
    if (context.segments[-1].length, context.segments[-1].scale) != (1, 1.0):
        raise Refused(site, "advertise", "the clamped count is one integer of scale 1")
    if context.noise and set(context.noise) != set(names):
        raise Refused(site, "advertise", "some segments are noised and others are not")
    check_headroom(context.segments, len(context.sites))


def round_context(attempt: str, adverts: Iterable[bytes]) -> str:
    """Bind the round to its signed adverts (SPEC 2.3).

    Args:
        attempt: the attempt context.
        adverts: the exact signed bytes and signature of each advert; their order does not matter.
    """
    return sha256(SPEC_VERSION, "round context", attempt, *sorted(adverts))
