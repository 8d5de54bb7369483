"""A site's masked vector on the exchange, where anybody can write: links, and what stands in its place."""

import pytest

from tests.hostile.hand import Attacker, Hand
from tests.processes.harness import Consortium

pytestmark = pytest.mark.slow


def test_a_link_where_a_vector_will_be_written_does_not_have_the_site_overwrite_its_vault(
    home: Consortium, hand: Hand, attacker: Attacker
) -> None:
    """Asked again, a site writes its vector again, whose name everybody knows by then."""
    round_ = hand.round()
    round_.masked()
    vector = attacker.exchange / "north" / round_.vector("north")
    mine = home.home.site("north") / "site.toml"
    before = mine.read_bytes()
    vector.unlink()
    vector.symlink_to(mine)
    vector.with_name(f"{vector.name}.unfinished").symlink_to(mine)
    assert hand.ask_again(round_.masking("north"))[0].kind == "masked"
    assert mine.read_bytes() == before
    assert not vector.is_symlink()
    vector.with_name(f"{vector.name}.unfinished").unlink()
    round_.assert_honest()


def test_what_stands_in_a_vector_s_place_does_not_keep_a_site_out_of_the_next_round(
    hand: Hand, attacker: Attacker
) -> None:
    round_ = hand.round()
    round_.masked()
    vector = attacker.exchange / "north" / round_.vector("north")
    vector.unlink()
    vector.mkdir()
    round_.assert_honest()
    hand.round().assert_honest()
