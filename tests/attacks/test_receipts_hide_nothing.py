"""A coordinator that makes more sums than its receipt tells: the sites have bound them in what they signed next."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from deploy.verify import plan_of, terms_of
from protocols.audit import check_receipt
from protocols.confirmed import ConfirmedSums
from protocols.contexts import Purpose, sha256
from protocols.history import NONE_CONFIRMED, next_confirmed
from protocols.messages import COORDINATOR, Advert, parse
from protocols.receipt import Entry, Receipt, ReceiptError, Tensor, add_entry, sign_receipt
from tests.fuzz import fixed

Sum = tuple[Purpose, int, str, str]
FIRST, SCALED, LAST = sha256("first"), sha256("scaled"), sha256("last")
STATISTICS: Sum = ("statistics", 0, FIRST, SCALED)
ROUND: Sum = ("training", 1, SCALED, LAST)
EVALUATION: Sum = ("evaluation", 2, LAST, LAST)


def told(made: Sequence[Sum], hidden: Sequence[Sum] = ()) -> Receipt:
    """The receipt of a training, signed by the coordinator, without the sums that it hides."""
    entries, shown = list[Entry](), list[Entry]()
    for one in made:
        purpose, round_, incoming, outgoing = one
        evidence = fixed.evidence(purpose, round_, incoming, entries)
        entries.append(add_entry(entries[-1] if entries else None, evidence, outgoing, None))
        if one not in hidden:
            shown.append(add_entry(shown[-1] if shown else None, evidence, outgoing, None))
    identity, sites = fixed.IDENTITIES[COORDINATOR], fixed.CONSORTIUM.sites
    return sign_receipt(identity, "tiny", fixed.PLAN.to_json(), sites, shown, [Tensor("weight", (1, 2))])


def check(receipt: Receipt, *, private: bool = False, rounds: int = 1) -> None:
    terms = terms_of(plan_of(receipt), receipt)
    check_receipt(receipt, fixed.CONSORTIUM, replace(terms, private=private, rounds=rounds))


def test_a_receipt_that_hides_nothing_verifies() -> None:
    check(told([STATISTICS, ROUND, EVALUATION]))


def test_statistics_that_sites_have_confirmed_cannot_be_left_out() -> None:
    with pytest.raises(ReceiptError, match=r"rounds: leave out or change a sum before rounds\[0\]"):
        check(told([STATISTICS, ROUND, EVALUATION], hidden=[STATISTICS]))


def test_rounds_that_sites_have_confirmed_cannot_be_left_out_though_the_model_is_said_to_stand_still() -> None:
    probing: list[Sum] = [("training", 2, LAST, sha256("probed")), ("training", 3, sha256("probed"), sha256("again"))]
    still: Sum = ("training", 1, SCALED, SCALED)
    evaluation: Sum = ("evaluation", 4, SCALED, SCALED)
    check(told([STATISTICS, still, evaluation]), rounds=3)
    with pytest.raises(ReceiptError, match=r"rounds: leave out or change a sum before rounds\[2\]"):
        check(told([STATISTICS, still, *probing, evaluation], hidden=probing), rounds=3)


def test_a_private_training_has_all_its_rounds() -> None:
    still: Sum = ("training", 1, SCALED, SCALED)
    receipt = told([STATISTICS, still, ("evaluation", 4, SCALED, SCALED)])
    with pytest.raises(ReceiptError, match="rounds: holds 1 rounds of training, where the plan has 3"):
        check(receipt, private=True, rounds=3)


def test_who_has_confirmed_says_so_next_and_who_may_have_says_either() -> None:
    (entry,) = told([STATISTICS, ROUND, EVALUATION]).rounds[:1]
    before = parse(Advert, entry.adverts[0].body, party="", step="")
    head = next_confirmed(NONE_CONFIRMED, entry.confirmations[0].context, entry.survivors)
    after = replace(before, confirmed_sums=1, confirmed_head=head)
    fewer, without_me = entry.confirmations[1:], tuple(site for site in entry.survivors if site != "ann")
    cases = (
        (entry, False, True),
        (replace(entry, confirmations=fewer), True, True),
        (replace(entry, confirmations=fewer, survivors=without_me), True, False),
    )
    for finished, unchanged, one_more in cases:
        sums = ConfirmedSums()
        assert sums.allow("ann", before) and not sums.allow("ann", after)
        sums.add(finished)
        assert (sums.allow("ann", before), sums.allow("ann", after)) == (unchanged, one_more)
        assert not sums.allow("ann", replace(after, confirmed_head=sha256("another sum")))
