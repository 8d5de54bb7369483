"""Whom a sum waits for: a dead site costs one wait, a slow one gets its time, and success wipes the slate."""

from collections.abc import Iterator

import pytest

from flows.standing import SHARE, Standings

SITES = ("ann", "bob", "cat", "dan")
ROUND_S = 2.5


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    """A clock at 0."""
    yield Clock()


def play(standings: Standings, clock: Clock, round_: int, dan_takes_s: float, deadline_s: float = 38.0) -> str:
    """Make a sum in which dan takes so long to train; gives why dan is not in it, or ``""``."""
    standings.begin(round_, SITES, threshold=3, again=False)
    clock.now += ROUND_S
    if why := standings.rests("dan"):
        return standings.settle(SITES[:3], {"dan": why})["dan"]
    for site in SITES[:3]:
        standings.note(site, "train", ROUND_S, absent=False)
    waited = ROUND_S
    while waited < min(dan_takes_s, deadline_s) and not standings.over("dan", "train"):
        clock.now, waited = clock.now + 0.1, waited + 0.1
    if waited >= dan_takes_s:
        standings.note("dan", "train", waited, absent=False)
        standings.settle(SITES, {})
        return ""
    standings.note("dan", "train", waited, absent=True, given_up=waited < deadline_s)
    return standings.settle(SITES[:3], {"dan": "no answer"})["dan"]


def test_a_dead_site_costs_one_wait_and_a_fifth_of_the_time_after_it(clock: Clock) -> None:
    standings = Standings(clock)
    asked = []
    took = []
    for round_ in range(1, 101):
        began = clock.now
        why = play(standings, clock, round_, 10**6)
        took.append(clock.now - began)
        if "no answer" in why and "(no answer" not in why:
            asked.append(round_)
    assert took[0] == pytest.approx(38, abs=0.2)
    assert asked == [1, 2, 4, 8, 16, 32, 64]
    assert sum(took[2:]) <= 1.3 * ROUND_S * len(took[2:])
    assert took[1] < 1.3 * ROUND_S


def test_the_reason_says_when_it_is_asked_again(clock: Clock) -> None:
    standings = Standings(clock)
    assert [play(standings, clock, round_, 10**6) for round_ in (1, 2, 3)] == [
        "no answer",
        "no answer; it is asked again in round 4",
        "is asked again in round 4 (no answer)",
    ]


def test_one_that_is_given_up_keeps_the_reason_that_it_had(clock: Clock) -> None:
    standings = Standings(clock)
    standings.begin(1, SITES, threshold=3, again=False)
    standings.note("dan", "train", 30.0, absent=True)
    standings.settle(SITES[:3], {"dan": "refused train: the exchange cannot be used"})
    told = play(standings, clock, 2, 10**6)
    assert told == ("no answer (before: refused train: the exchange cannot be used); it is asked again in round 4")
    assert play(standings, clock, 3, 10**6) == "is asked again in round 4 (refused train: the exchange cannot be used)"


def test_success_wipes_the_slate(clock: Clock) -> None:
    standings = Standings(clock)
    for round_, takes_s in ((1, 99.0), (2, 99.0), (3, 99.0), (4, ROUND_S), (5, 30.0)):
        why = play(standings, clock, round_, takes_s)
    assert why == "", "waited for again as any other"


def test_one_that_has_come_back_is_waited_for_as_any_other(clock: Clock) -> None:
    standings = Standings(clock)
    for round_ in (1, 2):
        play(standings, clock, round_, 10**6)
    standings.forgive("dan")
    assert play(standings, clock, 3, 30.0) == ""


def test_a_site_that_is_slow_gets_its_time_in_the_end(clock: Clock) -> None:
    standings = Standings(clock)
    assert play(standings, clock, 1, 10**6) == "no answer"
    back = next(round_ for round_ in range(2, 200) if play(standings, clock, round_, 12.0) == "")
    assert back <= 64
    assert play(standings, clock, back + 1, 12.0) == ""


def test_an_absence_that_costs_nobody_anything_is_asked_every_time(clock: Clock) -> None:
    standings = Standings(clock)
    for round_ in range(1, 6):
        standings.begin(round_, SITES, threshold=3, again=False)
        assert standings.rests("dan") == ""
        standings.note("dan", "advertise", 0.1, absent=True)
        for site in SITES[:3]:
            standings.note(site, "advertise", 0.2, absent=False)
        assert standings.settle(SITES[:3], {"dan": "its worker is not online"}) == {"dan": "its worker is not online"}


def test_one_that_fails_while_others_still_work_has_cost_nothing(clock: Clock) -> None:
    standings = Standings(clock)
    standings.begin(1, SITES, threshold=3, again=False)
    clock.now = 20.0
    standings.note("dan", "train", 20.0, absent=True)
    clock.now = 60.0
    for site in SITES[:3]:
        standings.note(site, "train", 60.0, absent=False)
    standings.settle(SITES[:3], {"dan": "refused train"})
    standings.begin(2, SITES, threshold=3, again=False)
    assert not standings.hurried("dan") and standings.rests("dan") == ""


@pytest.mark.parametrize(("threshold", "again"), [(4, False), (3, True)])
def test_a_sum_that_needs_a_site_and_one_attempted_again_wait_for_all(
    clock: Clock, threshold: int, again: bool
) -> None:
    standings = Standings(clock)
    play(standings, clock, 1, 10**6)
    play(standings, clock, 2, 10**6)
    standings.begin(3, SITES, threshold=threshold, again=again)
    assert standings.rests("dan") == "" and not standings.hurried("dan")
    assert not standings.over("dan", "train")


def test_the_share_keeps_the_promise() -> None:
    assert 1 + SHARE <= 1.3
