"""Which sites a sum waits for: one that holds up sum after sum is asked less and less (SPEC 6.3).

A site that a sum has waited for in vain is asked again in the next one, then in the second after that, in the fourth,
and so on. It is then waited for, beyond the others, for a fifth of the time since it failed last and no longer: so a
dead site costs one wait, and after that a fifth of the training's time at most, while one that is only slow gets its
time in the end. A sum that cannot be made without it waits for it as for any other.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

SHARE = 0.2
"""Of the time since a site has failed last: what it is waited for beyond the others."""
LEAST_S = 0.5
"""Seconds that it is waited for at least."""
CHEAP_S = 2.0
"""Seconds beyond the others that an absence may take and costs nobody anything: it is no reason to ask less."""
LONGEST_INTERVAL = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """What is held against a site.

    Attributes:
        count: sums in a row that have waited for it in vain.
        again: the round in which it is asked again.
        at: when it failed last, by the clock.
        reason: why it was absent then.
    """

    count: int
    again: int
    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class Absence:
    """A question that was waited for in vain: of which step, until when, for how long; given up before its time?"""

    step: str
    at: float
    seconds: float
    given_up: bool


@dataclass(slots=True)
class Attempt:
    """An attempt at a sum: who is waited for, who is hurried, who was absent, and when each has answered by step."""

    round: int
    waited_for: frozenset[str]
    hurried: frozenset[str]
    absent: dict[str, Absence] = field(default_factory=dict)
    answered: dict[str, dict[str, float]] = field(default_factory=dict)

    def cost_s(self, site: str) -> float:
        """Seconds that the others have waited for a site that was absent."""
        if (absence := self.absent.get(site)) is None:
            return 0.0
        others = [at for other, at in self.answered[absence.step].items() if other not in self.absent]
        return min(absence.seconds, absence.at - max(others)) if others else absence.seconds


class Standings:
    """The strikes of a training's sites; safe to use from several threads.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._strikes: dict[str, Strike] = {}
        self._attempt: Attempt | None = None
        self._lock = threading.Lock()

    def begin(self, round_: int, sites: Collection[str], *, threshold: int, again: bool) -> None:
        """Begin an attempt at a sum.

        Args:
            round_: its number.
            sites: those that have joined.
            threshold: how many the sum needs.
            again: whether an attempt at it has failed: then everybody is asked, and waited for.
        """
        with self._lock:
            good = frozenset(site for site in sites if site not in self._strikes)
            if again or len(good) < threshold:
                self._attempt = Attempt(round_, frozenset(sites), frozenset())
                return
            struck = [site for site in sites if site not in good]
            self._attempt = Attempt(
                round_, good, frozenset(site for site in struck if self._strikes[site].again <= round_)
            )

    def rests(self, site: str) -> str:
        """Why a site is not asked in this attempt; empty where it is."""
        with self._lock:
            attempt, strike = self._attempt, self._strikes.get(site)
            if attempt is None or strike is None or site in attempt.waited_for or site in attempt.hurried:
                return ""
            return f"is asked again in round {strike.again} ({strike.reason})"

    def hurried(self, site: str) -> bool:
        """Whether a site that is asked is not waited for much longer than the others."""
        with self._lock:
            return self._attempt is not None and site in self._attempt.hurried

    def note(self, site: str, step: str, seconds: float, *, absent: bool, given_up: bool = False) -> None:
        """Note what became of a question.

        Args:
            site, step: whom it was put to, and which.
            seconds: that it took.
            absent: whether there was no answer to it.
            given_up: whether it was waited for no longer, though its deadline had not passed.
        """
        with self._lock:
            if self._attempt is not None:
                at = self._clock()
                self._attempt.answered.setdefault(step, {})[site] = at
                if absent:
                    self._attempt.absent[site] = Absence(step, at, seconds, given_up)

    def over(self, site: str, step: str) -> bool:
        """Whether a site that is hurried is waited for no longer: all others have answered this step, some time ago."""
        with self._lock:
            attempt, strike = self._attempt, self._strikes.get(site)
            if attempt is None or strike is None or site not in attempt.hurried:
                return False
            answered = attempt.answered.get(step, {})
            others = [other for other in attempt.waited_for if other in answered or other not in attempt.absent]
            if not others or any(other not in answered for other in others):
                return False
            now = self._clock()
            return now - max(answered[other] for other in others) > max(LEAST_S, SHARE * (now - strike.at))

    def forgive(self, site: str) -> None:
        """Hold nothing against a site that has come back: from the next sum on it is waited for as any other."""
        with self._lock:
            self._strikes.pop(site, None)

    def settle(self, survivors: Collection[str], dropped: Mapping[str, str]) -> dict[str, str]:
        """Take in who was in a finished sum.

        Args:
            survivors: the sites in it.
            dropped: why each other site is not.

        Returns:
            Those reasons, with the round in which the site is asked again where that is not the next.
        """
        with self._lock:
            attempt, self._attempt = self._attempt, None
            for site in survivors:
                self._strikes.pop(site, None)
            if attempt is None:
                return dict(dropped)
            told = dict(dropped)
            for site, reason in dropped.items():
                given_up = site in attempt.absent and attempt.absent[site].given_up
                if attempt.cost_s(site) <= CHEAP_S and not given_up:
                    continue
                before = self._strikes.get(site)
                count = before.count + 1 if before else 1
                interval = min(2 ** (count - 1), LONGEST_INTERVAL)
                why = before.reason if before and given_up else reason  # that it was given up says little
                strike = Strike(count=count, again=attempt.round + interval, at=self._clock(), reason=why)
                self._strikes[site] = strike
                if why != reason:
                    told[site] = f"{reason} (before: {why})"
                if interval > 1:
                    told[site] += f"; it is asked again in round {strike.again}"
            return told
