"""What an advert tells of its site: nothing of the data, and no site is accused that has forgotten nothing."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import secagg_coordinator as coordinator
from protocols.contexts import sha256
from protocols.errors import Refused
from protocols.history import NONE_CONFIRMED, Past, Seen, contradict
from protocols.ledger import EMPTY_LEDGER, next_head
from protocols.messages import Advert, AskShare, Envelope, parse
from protocols.vault import Vault
from protocols.witness import MOST_SEEN, SCHEMA, witness
from tests.attacks.hostile import adverts, deal, make, mask, to_dealings


def said(message: Envelope) -> Advert:
    return parse(Advert, message.body, party="", step="")


def test_whoever_guesses_a_ledger_s_line_cannot_check_the_guess_with_an_advert(tmp_path: Path) -> None:
    """Finding 2: the head was a hash without a secret, so that a record could be found by trying."""
    simulator, values = make(tmp_path)
    dealings, vault = to_dealings(simulator), simulator.vaults["a"]
    mask(simulator, dealings, "a", values["a"])
    advert = said(adverts(simulator, simulator.at(2, 1), "a")["a"])
    lines = [stored.line for stored in vault.ledger_lines()]
    guesses, head = {EMPTY_LEDGER}, EMPTY_LEDGER
    for number, line in enumerate(lines, start=1):
        guesses |= {next_head(guess, number, line) for guess in guesses}
        head = next_head(head, number, line)
    assert advert.ledger_entries == len(lines)
    assert {advert.ledger_head, advert.previous_head}.isdisjoint({head, *guesses} - {EMPTY_LEDGER})


@pytest.mark.parametrize("what", ["ledger_head", "previous_head"])
def test_sites_with_the_same_past_have_heads_of_their_own(tmp_path: Path, what: str) -> None:
    simulator, _ = make(tmp_path)
    adverts(simulator)
    second = adverts(simulator, simulator.at(1, 2)).values()
    assert len({getattr(said(advert), what) for advert in second}) == len(second)


def test_trainings_side_by_side_accuse_nobody_whichever_is_looked_at_first(tmp_path: Path) -> None:
    """Finding 10: a site has one ledger, and a roster waits for its slowest site."""
    simulator, _ = make(tmp_path)
    contexts = [replace(simulator.context, training=f"t{number}") for number in range(4)]
    for vault in simulator.vaults.values():
        for context in contexts:
            assert vault.agree(context.training, context.plan)
    signed = [adverts(simulator, context) for context in contexts]
    for place in (3, 0, 2, 1):
        deal(simulator, coordinator.open_roster(contexts[place], signed[place].values()))


def test_a_number_and_head_alone_are_compared_by_number_and_head(tmp_path: Path) -> None:
    vault = Vault(tmp_path)
    with vault.exclusive():
        assert vault.witness("z", 2, "2" * 64) and vault.witness("z", 1, "1" * 64) and vault.witness("z", 1, "1" * 64)
        assert not vault.witness("z", 2, "3" * 64)
        assert vault.witness("y", 2, "3" * 64)
    vault.close()


# A site's life as a list of trainings that it advertises in, with lines, answers and confirmations in between.


@dataclass
class Life:
    """What a site would advertise, one advert after the other; ``branch`` is what it is after a restore."""

    branch: str = ""
    entries: int = 0
    head: str = EMPTY_LEDGER
    answers: int = 0
    rounds: tuple[int, ...] = (0, 0, 0, 0)
    confirmed: tuple[int, ...] = (0, 0, 0, 0)
    previous: tuple[int, str] = (0, EMPTY_LEDGER)

    def advertise(self, training: int, lines: int, answers: int, confirms: bool) -> Seen:
        self.entries += 1 + lines
        self.head = sha256(self.head, str(self.entries), self.branch)
        self.rounds = tuple(one + (place == training) for place, one in enumerate(self.rounds))
        sums = self.confirmed[training]
        confirmed_head = sha256("sums", str(sums)) if sums else NONE_CONFIRMED
        place = f"t{training}", self.rounds[training], 1
        seen = Seen(self.entries, self.head, Past(*self.previous, self.answers, *place, sums, confirmed_head))
        self.previous, self.answers = (self.entries, self.head), self.answers + 1 + answers
        self.confirmed = tuple(one + (confirms and place == training) for place, one in enumerate(self.confirmed))
        return seen


def table() -> sqlite3.Connection:
    """What a witness keeps."""
    kept = sqlite3.connect(":memory:")
    kept.executescript(SCHEMA)
    return kept


STEPS = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 4), st.booleans())


def lived(life: Life, steps: Sequence[tuple[int, int, int, bool]]) -> list[Seen]:
    return [life.advertise(*step) for step in steps]


@settings(max_examples=40, deadline=None)
@given(st.data(), st.lists(STEPS, min_size=1, max_size=12))
def test_no_order_and_no_loss_of_messages_accuses_a_site_that_has_forgotten_nothing(
    data: st.DataObject, steps: list[tuple[int, int, int, bool]]
) -> None:
    made = lived(Life(), steps)
    delivered = data.draw(st.permutations(made))[: data.draw(st.integers(1, len(made)))]
    kept = table()
    assert all(witness(kept, "z", seen) for seen in [*delivered, *delivered])


@settings(max_examples=40, deadline=None)
@given(st.data(), st.lists(STEPS, min_size=1, max_size=8), st.lists(STEPS, min_size=1, max_size=8))
def test_every_vault_that_was_put_back_and_has_advertised_since_is_found_in_whatever_order(
    data: st.DataObject,
    lost: list[tuple[int, int, int, bool]],
    since: list[tuple[int, int, int, bool]],
) -> None:
    life = Life()
    before = lived(life, data.draw(st.lists(STEPS, max_size=4)))
    restored = replace(life, branch="restored")
    forked = [*before, *lived(life, lost), *lived(restored, since)]
    kept = table()
    assert not all([witness(kept, "z", seen) for seen in data.draw(st.permutations(forked))])


def test_the_first_advert_after_a_restore_is_refused_by_whoever_has_seen_the_one_that_it_takes_the_place_of() -> None:
    life = Life()
    lived(life, [(0, 1, 3, True)])
    restored = replace(life, branch="restored")
    (lost,) = lived(life, [(0, 0, 3, True)])
    for training, lines in ((0, 0), (1, 0), (2, 2)):
        assert contradict(lost, replace(restored).advertise(training, lines, 0, False))


def test_a_confirmed_sum_that_was_forgotten_is_found_though_the_ledger_agrees() -> None:
    """Put back below the file system, between two adverts: the ledger has no line of what was confirmed."""
    past = Past(1, sha256("1"), 5, "t", 2, 1, 1, sha256("sums"))
    first = Seen(2, sha256("2"), past)
    later = past._replace(previous_entries=2, previous_head=sha256("2"), answers=10, round=3)
    assert not contradict(first, Seen(3, sha256("3"), later))
    assert contradict(first, Seen(3, sha256("3"), later._replace(confirmed_sums=0, confirmed_head=NONE_CONFIRMED)))
    assert contradict(first, Seen(3, sha256("3"), later._replace(confirmed_head=sha256("other sums"))))
    assert contradict(first, Seen(3, sha256("3"), later._replace(answers=5)))
    assert contradict(first, Seen(3, sha256("3"), later._replace(round=2)))


def test_what_is_kept_of_a_site_is_bounded_and_what_is_older_than_all_of_it_is_refused() -> None:
    kept = table()
    assert all(witness(kept, "z", Seen(2 * number, sha256(str(number)))) for number in range(1, MOST_SEEN + 10))
    assert kept.execute("SELECT count(*), min(entries) FROM seen").fetchall() == [(MOST_SEEN, 20)]
    assert not witness(kept, "z", Seen(19, sha256("older")))
    assert witness(kept, "z", Seen(21, sha256("late")))


def test_a_snapshot_of_a_whole_machine_is_noticed_by_its_peers(tmp_path: Path) -> None:
    """Finding 6: everything at the site is as it was; its next advert says what its peers know better."""
    simulator, values = make(tmp_path)
    dealings = to_dealings(simulator)
    for site in dealings.sites:
        mask(simulator, dealings, site, values[site])
    vault = simulator.vaults["a"]
    snapshot = sqlite3.connect(":memory:")
    vault._db.backup(snapshot)
    for context in (simulator.at(2, 1), simulator.at(3, 1)):
        deal(simulator, coordinator.open_roster(context, adverts(simulator, context).values()))
    snapshot.backup(vault._db)
    context = simulator.at(4, 1)
    signed = adverts(simulator, context)
    with pytest.raises(Refused, match="the vault of a was put back"):
        simulator.ask("b", "share", context.digest, AskShare(tuple(signed.values())))
