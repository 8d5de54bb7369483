"""Who is still in the round: the one place that decides it (SPEC 6).

Every step's answers pass through ``collect``: an answer that is missing, late, refused or does not check drops its
site from this round, with the reason kept for the operator. The site is asked again in the next round. Too few, and
the round cannot go on.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from protocols.errors import BadInput, BadMessage, BelowThreshold, ProtocolError


class Unfinished(ProtocolError):
    """A survivor set may be confirmed, but too few sites answer: the round can be finished later, never restarted."""


Answer = TypeVar("Answer")
Checked = TypeVar("Checked")


@dataclass(frozen=True, slots=True)
class Absent:
    """A site that did not answer a step, and why: a deadline, a refusal, an earlier step missed.

    Attributes:
        reason: one line for the operator.
        bad_input: whether the site's data or training are at fault (NaN, a missing table): to go on without it would
            report a success on a subset that nobody chose, so that the training stops.
        pending: whether the site may still say yes: its data steward has not decided.
        given_up: whether it was waited for no longer, though its deadline had not passed.
    """

    reason: str
    bad_input: bool = False
    pending: bool = False
    given_up: bool = False


@dataclass(frozen=True, slots=True)
class Collected(Generic[Checked]):
    """The checked answers by site, and why each other site is absent."""

    present: Mapping[str, Checked]
    absent: Mapping[str, str]

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that are present, by name."""
        return tuple(sorted(self.present))


def collect(
    step: str, answers: Mapping[str, Answer | Absent], check: Callable[[str, Answer], Checked], *, threshold: int
) -> Collected[Checked]:
    """Check every answer and drop the sites without a good one.

    Args:
        step: which step was asked, for the error.
        answers: an answer or its absence, by site.
        check: verifies one site's answer; a ``BadMessage`` drops that site.
        threshold: how many must be left.

    Raises:
        BadInput: if a site's data or training are at fault; names the site.
        BelowThreshold: naming each absent site and its reason.
    """
    present: dict[str, Checked] = {}
    absent: dict[str, str] = {}
    for site, answer in answers.items():
        if isinstance(answer, Absent):
            if answer.bad_input:
                raise BadInput(site, step, answer.reason)
            absent[site] = answer.reason
            continue
        try:
            present[site] = check(site, answer)
        except BadMessage as bad:
            absent[site] = str(bad)
    if len(present) < threshold:
        missing = "; ".join(by_reason(sorted(absent.items())))
        raise BelowThreshold("coordinator", step, f"{len(present)} sites, {threshold} are needed ({missing})")
    return Collected(present, absent)


def by_reason(given: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each reason, behind the sites that give it; from (site, reason)."""
    sites: dict[str, list[str]] = {}
    for site, reason in given:
        sites.setdefault(reason, []).append(site)
    return [f"{', '.join(names)}: {reason}" for reason, names in sites.items()]
