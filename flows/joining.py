"""What a site agrees to: plan, policy, the data steward's word and the budget, and no data (SPEC 6.8, 8).

Joining is a function of public things and of the steward's decisions alone: the plan, the policy, the ledger, and the
task's code without its data. What plan and data must agree on is checked by ``fedseal site check``, and fails in
local work, where nobody outside learns of it (SPEC 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.code_digest import check_code, without_code
from flows.data_sets import Chosen, DataSet, choose
from flows.plan import Plan, PlanError, make_plan
from flows.policy import Policy, check_policy
from flows.privacy import afford, charges_of, check_privacy
from flows.roster_memory import check_roster, waiting
from flows.workshop import Described, WorkFailed, Workshop, Workshops
from protocols.decisions import Decision
from protocols.errors import Pending, Refused
from protocols.keys import Consortium
from protocols.messages import COORDINATOR, parse
from protocols.vault import Vault


@dataclass(frozen=True, slots=True, eq=False)
class Agreed:
    """A training that this site has joined: plan, task, data set, and where its local work is done."""

    plan: Plan
    described: Described
    workshop: Workshop
    chosen: Chosen

    @property
    def private(self) -> bool:
        """Whether its sums are noised."""
        return self.plan.privacy.unit != "none"


def read_plan_of(ask_plan: str, site: str) -> Plan:
    """Read the plan of a request to join, which must be canonical JSON with every default resolved.

    Raises:
        Refused: it does not read as the coordinator's.
        BadMessage, PlanError: it is none.
    """
    raw = parse(dict[str, object], ask_plan, party=COORDINATOR, step="join")
    privacy = raw.get("privacy")
    if isinstance(privacy, dict) and privacy.get("unit") != "none":
        noises = [privacy.get(f"{part}_noise") for part in ("training", "statistics", "metrics")]
        if not all(isinstance(noise, float) and noise > 0 for noise in noises):
            raise Refused(site, "join", "the plan's noise is not resolved: resolve it before sites are asked")
    plan = make_plan(raw, source="plan")
    if plan.to_json() != ask_plan:
        raise Refused(site, "join", "the plan does not read as the coordinator's: versions differ")
    return plan


def join(
    site: str,
    plan: Plan,
    training: str,
    *,
    policy: Policy,
    vault: Vault,
    consortium: Consortium,
    data: Mapping[str, DataSet | Path],
    workshops: Workshops,
) -> Agreed:
    """Agree to a plan for a training, durably, or say why not.

    Args:
        site: the site's name.
        plan: what it is asked to join, already read by ``read_plan_of``.
        training: the training's name.
        policy: what may run here.
        vault: keeps agreements, decisions, the ledger, and with whom data were summed.
        consortium: the pinned keys.
        data: each data set, or its bare folder, by name.
        workshops: makes the workshop, which imports the task once the policy has let it pass.

    Raises:
        Refused: naming the rule; Pending: the data steward has still to approve.
        PlanError, RingTooSmall: the plan does not keep to its own epsilon.
    """
    check_policy(policy, plan, site)
    chosen = choose(plan, site, data, policy)
    check_code(policy.code, plan, site)
    check_decision(site, plan, training, policy, vault)
    with waiting(vault, training, plan):
        check_roster(site, training, vault, chosen, plan, consortium)
    workshop = workshops(without_code(plan) if policy.code == "any" else plan, site, chosen.data_set.path)
    try:
        described = workshop.describe(min(plan.deadlines.train_s, policy.max_train_s))
        agreed = Agreed(plan, described, workshop, chosen)
        if described.sizes.parameters > policy.max_parameters:
            raise Refused(site, "join", f"the model's {described.sizes.parameters} parameters are too many here")
        check_budget_allows(site, agreed, training, policy, vault)
        if not vault.agree(training, plan.digest):
            raise Refused(site, "join", "this site agreed to another plan for this training")
    except WorkFailed as error:
        workshop.stop()
        raise PlanError(str(error)) from None
    except BaseException:
        workshop.stop()
        raise
    return agreed


def check_decision(site: str, plan: Plan, training: str, policy: Policy, vault: Vault) -> None:
    """Refuse what the data steward has withdrawn from, or has still to approve of.

    Args:
        site: the site's name.
        plan: the training's.
        training: its name.
        policy: says whether each training is approved by hand.
        vault: keeps the decisions.

    Raises:
        Refused: withdrawn; Pending: not yet approved.
    """
    known = vault.decision(training, plan.digest)
    if known is not None and known.withdrawn:
        raise Refused(site, "join", "this site has withdrawn from this training")
    if policy.approval == "by-hand" and (known is None or known.decision != "approved"):
        vault.decide(Decision(training, plan.digest, plan.to_json(), "pending"))
        raise Pending(site, "join", f"waits for its data steward: fedseal site show {training}")


def check_budget_allows(site: str, agreed: Agreed, training: str, policy: Policy, vault: Vault) -> None:
    """Refuse a plan that does not keep to its own epsilon, or that the data set's budget has no room for.

    Args:
        site: the site's name.
        agreed: plan, task and data set.
        training: its name; what it was charged before is not counted twice.
        policy: holds the budgets.
        vault: keeps the ledger.

    Raises:
        Refused: with the numbers.
        PlanError: the plan costs more than it says.
    """
    plan, chosen, sizes = agreed.plan, agreed.chosen, agreed.described.sizes
    lengths = {"parameters": sizes.parameters, "features": sizes.features}
    check_privacy(plan, **lengths)
    if (budget := policy.budget(chosen.group)) is not None:
        own = contexts_of(vault, training)
        others = [entry for entry in vault.ledger() if entry.context not in own]
        afford(site, others, charges_of(plan, **lengths, group=chosen.group), budget, chosen.names)


def contexts_of(vault: Vault, training: str) -> set[str]:
    """The attempt contexts of a training, by which the ledger's lines are its own."""
    return {known.attempt_context for known in vault.of_training(training)}
