"""One consortium for all attacks, with four sites that serve: to start it takes the better part of a minute."""

from collections.abc import Iterator

import pytest
from prefect.states import Completed

from tests.hostile.hand import SITES, Attacker, Hand, Round
from tests.processes.harness import Consortium, consortium, eventually


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """The consortium."""
    with consortium(
        tmp_path_factory.mktemp("hostile"), SITES, tables=dict.fromkeys(SITES, "max_trainings = 16")
    ) as made:
        for site in SITES:
            eventually(lambda site=site: made.online(site), 120)
        yield made


@pytest.fixture(scope="package")
def attacker(home: Consortium) -> Attacker:
    """Who can write to the Prefect API and the exchange, and has read all that passed there."""
    return Attacker(home)


@pytest.fixture(scope="package")
def hand(home: Consortium, attacker: Attacker) -> Iterator[Hand]:
    """A training that every site has joined; a test begins a round of its own in it."""
    hand = Hand.begin(home, attacker, "honest").join()
    yield hand
    home.client.set_flow_run_state(hand.run, Completed(), force=True)


@pytest.fixture
def round_(hand: Hand) -> Round:
    """A new round of the training, in which nobody has been asked yet."""
    return hand.round()


@pytest.fixture(scope="module")
def standing(hand: Hand) -> Iterator[Round]:
    """A round in which all have shared and none has masked; after the attacks of a module its sum is the honest one."""
    round_ = hand.round()
    round_.shared()
    yield round_
    round_.assert_honest()
