"""With whom a site's data were summed before: a roster that is too close to one of those needs a word (SPEC 12.10).

Differential privacy covers any difference. Without it a new roster waits for the data steward where its sums, with
those of the earlier trainings on the same budget group, would set fewer sites apart than a sum must hold.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flows.data_sets import Chosen
from flows.plan import Plan
from protocols.consortium import fingerprint
from protocols.decisions import Decision
from protocols.errors import Pending, Refused
from protocols.keys import Consortium
from protocols.ledger import check_whole, contents_of, related
from protocols.rosters import MOST_ROSTERS, Roster, set_apart
from protocols.vault import Vault


def roster_of(plan: Plan, consortium: Consortium) -> Roster:
    """A plan's sites by their keys; one that the consortium does not know by its name."""
    return Roster(frozenset(consortium.sites.get(site, site) for site in plan.sites), plan.protection.threshold)


def why_too_close(site: str, vault: Vault, chosen: Chosen, plan: Plan, consortium: Consortium) -> str | None:
    """Say why a plan's roster needs the data steward's word; ``None`` where it needs none.

    Args:
        site: the site's name.
        vault: remembers the rosters.
        chosen: the plan's data set and its budget group.
        plan: what is asked for.
        consortium: who has which key.
    """
    if plan.privacy.unit != "none":
        return None
    entries = vault.ledger()
    try:
        check_whole(site, entries)
    except Refused:
        return "the vault was restored from a copy: with whom its data were summed is unknown"
    charged, summed = contents_of(entries), vault.summed()
    contents = {group: charged.get(group, set()) | summed.get(group, set()) for group in charged.keys() | summed.keys()}
    earlier = [
        (training, Roster(frozenset(map(consortium.current, known.keys)), known.threshold))
        for training, known in vault.rosters(related({chosen.group, *chosen.names}, contents))
    ]
    roster = roster_of(plan, consortium)
    apart = set_apart([known for _, known in earlier], roster)
    if apart is None:
        return None
    trainings = ", ".join(dict.fromkeys(training for training, known in earlier if known.keys != roster.keys))
    if not apart:
        return f"its data were summed with {MOST_ROSTERS} rosters and more, which cannot all be compared ({trainings})"
    names = ", ".join(sorted(_name(key, consortium.sites) for key in apart))
    return f"sums of this plan and of earlier trainings on the same data ({trainings}) would set {names} apart"


def check_roster(site: str, training: str, vault: Vault, chosen: Chosen, plan: Plan, consortium: Consortium) -> None:
    """Refuse a plan whose roster is too close to an earlier one, unless the data steward has approved it.

    Args:
        site: the site's name.
        training: the training's name.
        vault: remembers the rosters, and keeps the steward's decisions.
        chosen: the plan's data set and its budget group.
        plan: what is asked for.
        consortium: who has which key.

    Raises:
        Pending: it waits.
    """
    known = vault.decision(training, plan.digest)
    if known is not None and known.decision == "approved":
        return
    if reason := why_too_close(site, vault, chosen, plan, consortium):
        raise Pending(site, "join", f"{reason}: waits for its data steward: fedseal site show {training}")


@contextmanager
def waiting(vault: Vault, training: str, plan: Plan) -> Iterator[None]:
    """Enter a plan that is found to wait for its data steward among those that do."""
    try:
        yield
    except Pending:
        vault.decide(Decision(training, plan.digest, plan.to_json(), "pending"))
        raise


def _name(key: str, sites: Mapping[str, str]) -> str:
    return next((name for name, known in sites.items() if known == key), f"the site of key {fingerprint(key)}")
