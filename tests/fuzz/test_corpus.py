"""Whatever bytes come from outside, a parser gives a documented error or the thing itself, at a bounded cost.

This replays the corpus that coverage-guided fuzzing has left (``tests.fuzz.run``), without needing it.
"""

import pytest

from tests.fuzz.corpus import MENDED, read_inputs
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS, measure


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_target_accepts_what_a_party_writes(name: str) -> None:
    """Otherwise the fuzzer would only ever see the front of a door."""
    for seed in seeds()[name]:
        TARGETS[name].enter(seed)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_all_that_the_fuzzer_has_kept_gives_a_documented_error_at_most(name: str) -> None:
    kept = read_inputs(name)
    assert kept
    for content in [*kept, *read_inputs(name, MENDED)]:
        measure(TARGETS[name], content)
