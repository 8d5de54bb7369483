"""What a site has done, training by training, as its data steward asks: who, what, when, with whom, at what cost.

Everything is this site's own: its vault says what was decided and summed, its ledger what that has cost, its log when,
on which data and with whom (SPEC 7.1, 12.8). A log that was lost or changed leaves gaps here, never in the ledger.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flows.settings import SiteFolder
from flows.site_log import LogChanged, LogLine, SiteLog
from protocols.ledger import Charge, charges, standing
from protocols.vault import Vault

NEVER = datetime.min.replace(tzinfo=UTC)
DELTA = 1e-5
"""At which epsilon is shown for a data set without a budget."""


@dataclass(slots=True, kw_only=True)
class Account:
    """What a site has done in one training.

    Attributes:
        training: its name.
        plan: the digest of the plan; empty where the site has left without knowing one.
        word: what was decided: ``agreed``, ``pending``, ``approved``, ``revoked`` or ``restored``.
        waiting: digests of the plans that wait for the data steward.
        task, data, sites: of the plan, from the log; empty where that does not know.
        first, last: when the site joined, and when it last did something, from the log.
        finished: whether the training has ended for this site.
        sums: confirmed sums by purpose.
        epsilon: what its sums have cost, at ``delta``; ``None`` where none was noised.
        delta: that of the data set's budget, or ``DELTA``.
    """

    training: str
    plan: str
    word: str
    waiting: list[str] = field(default_factory=list)
    task: str = ""
    data: str = ""
    sites: tuple[str, ...] = ()
    first: datetime | None = None
    last: datetime | None = None
    finished: bool = False
    sums: dict[str, int] = field(default_factory=dict)
    epsilon: float | None = None
    delta: float = DELTA


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What a budget group was charged with by all trainings.

    Attributes:
        group: its name.
        members: its data sets.
        trainings: how many have summed its data.
        sums: how many were confirmed.
        epsilon: of all noised sums, at ``delta``.
        budget: the most that ``epsilon`` may be; ``None`` without a budget.
    """

    group: str
    members: tuple[str, ...]
    trainings: int
    sums: int
    epsilon: float
    delta: float
    budget: float | None


def accounts(site: SiteFolder, vault: Vault) -> list[Account]:
    """What the site has done or is asked to do, the latest training last."""
    found = _decided(vault)
    for line in read_log(vault):
        if (account := found.get(str(line.fields.get("training")))) is not None:
            _note(account, line, site.name)
    entries = vault.ledger()
    for account in found.values():
        contexts = vault.of_training(account.training)
        for context in contexts:
            account.sums[context.purpose] = account.sums.get(context.purpose, 0) + context.confirmed
        own = {context.attempt_context for context in contexts}
        if charged := standing(entry for entry in entries if entry.context in own):
            budget = site.policy.budget(site.group_of(charged[0].data))
            account.delta = budget.delta if budget else DELTA
            account.epsilon = cost(charged, account.delta)
    return sorted(found.values(), key=lambda account: (account.first or NEVER, account.training))


def totals(site: SiteFolder, vault: Vault, done: Sequence[Account]) -> list[Total]:
    """What each budget group was charged with, those with a budget included; ``done`` are the site's accounts."""
    entries = vault.ledger()
    groups = {site.group_of(entry.charge.data) for entry in entries if entry.charge} | set(site.policy.budgets)
    groups |= {site.group_of(account.data) for account in done if account.data and any(account.sums.values())}
    made = []
    for group in sorted(groups):
        budget = site.policy.budget(group)
        delta = budget.delta if budget else DELTA
        own = [account for account in done if account.data and site.group_of(account.data) == group]
        total = Total(
            group=group,
            members=tuple(sorted(site.members(group))),
            trainings=sum(any(account.sums.values()) for account in own),
            sums=sum(sum(account.sums.values()) for account in own),
            epsilon=cost(charges(entries, {group, *site.members(group)}), delta),
            delta=delta,
            budget=budget.epsilon if budget else None,
        )
        made.append(total)
    return made


def read_log(vault: Vault) -> list[LogLine]:
    """The site's log; without what follows a line that is none, of which ``fedseal site log --verify`` tells."""
    lines = []
    try:
        for line in SiteLog(vault.folder).read():
            lines.append(line)
    except LogChanged:
        pass
    return lines


def _decided(vault: Vault) -> dict[str, Account]:
    """An account of each training that the site has joined, was asked to join, or has left."""
    found = {name: Account(training=name, plan=plan, word="agreed") for name, plan in vault.trainings().items()}
    for decision in vault.decisions():
        new = Account(training=decision.training, plan=decision.plan, word=decision.decision)
        known = found.setdefault(decision.training, new)
        if decision.decision == "pending":
            known.waiting.append(decision.plan)
        else:
            known.word, known.plan = decision.decision, decision.plan or known.plan
    return found


def _note(account: Account, line: LogLine, me: str) -> None:
    account.last = line.time
    account.finished |= line.event == "finished"
    if line.event == "joined":
        account.first = account.first or line.time
        account.task, account.data = str(line.fields.get("task", "")), str(line.fields.get("data", ""))
        account.sites = tuple(name for name in str(line.fields.get("sites", "")).split(", ") if name not in ("", me))


def cost(charged: Sequence[Charge], delta: float) -> float:
    """The epsilon of charges together."""
    from flows.privacy import events_in  # the accountant takes a second to load
    from protocols.privacy.accounting import epsilon

    return epsilon(events_in(charged), delta)
