"""SPEC 1: what a site lets out before a masked vector does not depend on its data, whatever the coordinator asks.

Found from outside: a refusal answered any question about one site's records (attacks.md, 1), the ledger's head told
neighbouring data sets apart (2), joining counted records (5), and ``done`` told the time (16). One harness plays random
scripts of a hostile coordinator against two unrelated data sets and compares every byte.
"""

import pytest

from tests.attacks.two_worlds import WORLDS, difference, play

OTHERS = [world for world in WORLDS if world not in ("one", "a million rows")]
FAILING = ("none", "broken", "strange", "infinite")
"""Where work fails, or most of it: whatever tells of that is found with these."""


@pytest.mark.parametrize("privacy", ["none", "record", "site"])
def test_scripts_of_a_hostile_coordinator_see_the_same_whatever_the_data_are(privacy: str) -> None:
    for seed, world in ((2, "other"), (2, "infinite"), (4, "none"), (5, "strange"), (7, "broken")):
        assert difference(seed, privacy, ("one", world)) == ""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_three_hundred_scripts_see_the_same_whatever_the_data_are(part: int) -> None:
    for seed in range(1000 + part, 1300, 4):
        privacy = ("none", "record", "site")[seed % 3]
        worlds = (OTHERS[seed % len(OTHERS)], OTHERS[(seed // 7) % len(OTHERS)])
        assert difference(seed, privacy, ("one" if worlds[0] == worlds[1] else worlds[0], worlds[1])) == ""


@pytest.mark.slow
def test_a_million_rows_are_not_told_from_one() -> None:
    for privacy in ("none", "site"):
        assert difference(5, privacy, ("a million rows", "one row")) == ""


def test_scripts_reach_a_masked_vector_and_every_kind_of_answer() -> None:
    """Otherwise the comparison would be of refusals alone."""
    seen = [entry for seed in (1, 2, 7) for entry in play(seed, "none", "one")]
    text = " ".join(said for _, said in seen)
    for kind in ("joined", "advert", "done", "share", "refusal"):
        assert f'"kind":"{kind}"' in text.replace("\\", ""), kind
    assert any(said.startswith("masked") for _, said in seen)
