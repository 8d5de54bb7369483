"""The data steward's commands below ``fedseal site``: see what waits, decide on it, leave, read the log (SPEC 6.8).

A plan is shown before it is approved, in words and whole, and what is approved is the plan with the digest that was
typed: a coordinator that swaps what waits gets another plan to wait beside it.
"""

import json
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager, nullcontext
from difflib import get_close_matches
from typing import Annotated

import typer

from deploy.accounts import read_log
from deploy.site import HERE, Folder, app, fail, one_line, one_printed_line
from deploy.tidying import erase_left
from flows.code_digest import code_digest, without_code
from flows.data_sets import choose
from flows.fitting import check_all, check_fitting
from flows.plan import Plan, PlanError, make_plan
from flows.roster_memory import why_too_close
from flows.sandbox.sandboxed import SandboxedWorkshops
from flows.settings import SettingsError, SiteFolder
from flows.site_log import SiteLog
from flows.workshop import WorkFailed, Workshops
from protocols.consortium import fingerprint
from protocols.decisions import Decision
from protocols.encoding import vector_bytes
from protocols.errors import Refused
from protocols.ledger import charges
from protocols.vault import Vault

DESCRIBE_S = 120.0
"""Seconds for a task to be imported and described."""
LEAST_DIGITS = 12
"""Of a digest that is typed: its first digits alone name a plan that was shown here, and no other that waits."""

MOST_NAMES = 5
"""Of trainings that may have been meant."""

Training = Annotated[str, typer.Argument(help="The training's name, as in fedseal site status.")]


@app.command()
def show(
    training: Training,
    folder: Folder = HERE,
    text: Annotated[bool, typer.Option("--text", help="Print the plans themselves as JSON.")] = False,
) -> None:
    """Show what a training asks of this site, before you approve its plan."""
    with one_line():
        site = SiteFolder.read(folder)
        vault = site.open_vault()
    plans = vault.plans(training)
    known = vault.decision(training)
    if not plans and known is None:
        raise fail(not_known(training, known_trainings(vault)))
    if known is not None and known.withdrawn:
        print(withdrawn_line(training, known))
    for digest, canonical in plans.items():
        vault.show(training, digest)
        if text:
            print(json.dumps(json.loads(canonical), indent=2))
            continue
        word = vault.decision(training, digest)
        print(f"{training}: plan {digest}: {word.decision if word else 'unknown'}")
        for line in plan_lines(site, vault, training, read_waiting(canonical)):
            print(f"  {line}")
        if word is not None and word.decision == "pending":
            print(f"To approve exactly this plan: fedseal site approve {training} {digest}")
    if len(plans) > 1:
        print(f"{len(plans)} plans have been asked for under this name: compare them before you approve one.")


@app.command()
def approve(
    training: Training,
    digest: Annotated[
        str, typer.Argument(help=f"The plan's digest, as shown, or its first digits: {LEAST_DIGITS} at least.")
    ] = "",
    folder: Folder = HERE,
) -> None:
    """Approve a training under exactly the plan that you name, which fedseal site show has shown you."""
    with one_line():
        site = SiteFolder.read(folder)
        vault = site.open_vault()
    plans = vault.plans(training)
    if not plans:
        waiting = {one.training for one in vault.decisions() if vault.plans(one.training)}
        raise fail(not_known(training, waiting, "no plan of this name waits here"))
    if not digest:
        show(training, folder, False)
        raise fail(f"{training}: nothing was approved: read what is shown, and name the plan's digest")
    plan = named_plan(digest, plans.keys(), vault.shown(training))
    if plan is None:
        raise fail(
            f"{training}: {digest} names no plan that waits here and was shown to you: see fedseal site show {training}"
        )
    try:
        with one_line():
            vault.decide(Decision(training, plan, plans[plan], "approved"))
    except Refused as refused:
        raise fail(refused.reason) from None
    SiteLog(vault.folder).append("approved", training=training, plan=plan)
    print(f"approved: {training}, plan {plan}", file=sys.stderr)


def named_plan(typed: str, waiting: Collection[str], shown: Collection[str]) -> str | None:
    """Find the one plan that a data steward names.

    First digits alone name only what was shown here: whoever writes plans can make two whose digests begin alike, have
    one looked at, and then have the other wait in its place.

    Args:
        typed: the digest, or its first digits.
        waiting: the digests of the plans that wait.
        shown: of these, those that were shown.
    """
    if typed in waiting:
        return typed
    found = [plan for plan in waiting if plan.startswith(typed)]
    return found[0] if len(typed) >= LEAST_DIGITS and len(found) == 1 and found[0] in shown else None


@app.command()
def revoke(
    training: Training,
    folder: Folder = HERE,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take a withdrawal back: the coordinator may ask again.")
    ] = False,
) -> None:
    """Withdraw from a training: the site answers nothing more in it, and a participation that runs ends."""
    with one_line():
        site = SiteFolder.read(folder)
        vault = site.open_vault()
        if training not in (trainings := known_trainings(vault)):
            raise fail(not_known(training, trainings))
        if undo:
            return take_back(site, vault, training)
        known = vault.decision(training)
        plan = (known.plan if known else "") or vault.trainings().get(training, "")
        vault.decide(Decision(training, plan, "", "revoked"))
    SiteLog(vault.folder).append("withdrawn", training=training, by="fedseal site revoke")
    print(f"withdrawn: {training}", file=sys.stderr)
    with one_line():
        if trouble := erase_left(site, vault, training):
            print(f"warning: {trouble}", file=sys.stderr)


def take_back(site: SiteFolder, vault: Vault, training: str) -> None:
    """Take a withdrawal back, and tell the Prefect server, where the coordinator has seen it.

    Raises:
        typer.Exit: there is nothing to take back.
    """
    try:
        vault.take_back(training)
    except Refused as refused:
        raise fail(refused.reason) from None
    SiteLog(vault.folder).append("returned", training=training)
    print(f"the site takes part again: {training}", file=sys.stderr)
    if site.policy.approval == "by-hand":
        print(f"its plan waits for you: fedseal site show {training}", file=sys.stderr)
    os.environ.update(site.prefect.environment)  # before Prefect is first imported, which reads it
    from deploy.withdrawals import forget_withdrawal

    if trouble := forget_withdrawal(site, training):
        print(f"warning: the Prefect server {trouble}; then give this command again", file=sys.stderr)


def known_trainings(vault: Vault) -> set[str]:
    """The trainings that the site has joined, left, or has a plan of."""
    return {*vault.trainings(), *(one.training for one in vault.decisions())}


def not_known(training: str, known: Collection[str], what: str = "no training of this name is known here") -> str:
    """Say that a name is none of those that can be meant, those that are like it first."""
    close = get_close_matches(training, known, MOST_NAMES, 0.6)
    names = [*close, *sorted(set(known) - set(close))]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    meant = f"did you mean {close[0]}? " if close else ""
    others = f"known: {', '.join(names[:MOST_NAMES])}{more}" if names else "there is none yet"
    return f"{one_printed_line(training)}: {what}: {meant}{others} (fedseal site status)"


@app.command()
def check(
    task: Annotated[str, typer.Argument(help="A task, module:Class; without one, all that the policy allows.")] = "",
    folder: Folder = HERE,
    data: Annotated[str, typer.Option(help="A data set of site.toml; without one, all of them.")] = "",
) -> None:
    """Check that tasks and data sets fit together; shows examples and every reason. Exit code 1 if they do not."""
    with one_line():
        site = SiteFolder.read(folder)
    sets = {name: one.path for name, one in site.data.items() if data in ("", name)}
    if not sets:
        raise fail(f"{data or '[data]'}: is no data set of {folder}: name it in [data] of site.toml")
    tasks = [task] if task else site.policy.tasks
    if strangers := [one for one in tasks if one not in site.policy.tasks]:
        raise fail(f"{strangers[0]}: is not on this site's list: its code does not run here, add it to [policy] tasks")
    with workshops_of(site) as workshops:
        if task and data:
            found = check_fitting(site.name, task, data, sets[data], workshops)
            checked = [([found], found.lines)]
        else:
            checked = list(check_all(site.name, tasks, sets, workshops))
    for fitting, _ in checked:
        for found in fitting:
            for line in (found.counted, *found.odd):
                print(one_printed_line(line), file=sys.stderr)
    lines = [line for _, wrong in checked for line in wrong]
    for line in lines:
        print(one_printed_line(line))
    if lines:
        raise typer.Exit(1)
    print(f"{', '.join(tasks)} on {', '.join(sets)}: nothing is wrong")


@contextmanager
def workshops_of(site: SiteFolder) -> Iterator[Workshops]:
    """Where this site's local work is done, and checked; no process of a task is left behind."""
    workshops = site.open_workshops()
    with closing(workshops) if isinstance(workshops, SandboxedWorkshops) else nullcontext():
        yield workshops


def read_waiting(canonical: str) -> Plan:
    """Read a plan that waits.

    Raises:
        typer.Exit: this version of fedseal, newer than the text, does not read it.
    """
    try:
        return make_plan(json.loads(canonical), source="plan")
    except (PlanError, ValueError) as error:
        raise fail(f"{error}: ask the coordinator to start it anew") from None


def plan_lines(site: SiteFolder, vault: Vault, training: str, plan: Plan) -> list[str]:
    """What a plan asks of this site, in a steward's words.

    Args:
        site: the site's folder.
        vault: knows what was decided and done before.
        training: the training's name.
        plan: the plan that it would run under.
    """
    rules, described = plan.protection, site.data.get(plan.data)
    folder = described.path if described else None
    others = [name for name in plan.sites if name != site.name]
    lines = [
        f"asked by     {asker(site)}",
        *author_lines(vault, training, plan),
        f"task         {plan.task}{'' if plan.task in site.policy.tasks else ', which is NOT on your list'}",
        f"code         {code_line(plan)}",
        f"data set     {plan.data}: {folder or 'no folder is named for it here'}; budget group "
        f"{site.group_of(plan.data)}",
        f"with         {', '.join(others)}; a sum needs {rules.threshold} of {len(plan.sites)} sites, and "
        f"{rules.colluding} of them may collude with the coordinator",
        f"rounds       {plan.rounds}, at most {plan.max_attempts} attempts at each, local work of at most "
        f"{plan.deadlines.train_s:g} s",
        protection_line(plan),
        *price_lines(site, vault, plan),
    ]
    earlier = earlier_trainings(vault, training, plan.data)
    lines.append(f"earlier      {'; '.join(earlier) or 'none on this data set, as far as the log knows'}")
    return lines + [f"CAUTION      {reason}" for reason in cautions(site, vault, plan)]


def price_lines(site: SiteFolder, vault: Vault, plan: Plan) -> list[str]:
    """What leaves in each sum, and what it costs the budget; the task's own code describes it, without data.

    Args:
        site: the site's folder.
        vault: holds the ledger.
        plan: the plan.
    """
    from flows.privacy import events_in, planned_epsilon, times  # the accountant takes a second to load
    from flows.tables import tables_of
    from protocols.privacy.accounting import epsilon

    if plan.task not in site.policy.tasks or (plan.code and plan.code != installed_code(plan)):
        return ["what leaves  is not known: the plan is for code that does not run here"]
    try:
        with workshops_of(site) as workshops:
            sizes = workshops(without_code(plan), site.name, None).describe(DESCRIBE_S).sizes
    except WorkFailed as failed:
        return [f"what leaves  is not known: {one_printed_line(str(failed))}"]
    lengths = {"parameters": sizes.parameters, "features": sizes.features}
    lines = []
    for purpose, table in tables_of(plan, sizes).items():
        names = ", ".join(f"{one.name} ({one.length:,})" for one in table)
        lines.append(
            f"what leaves  {purpose}, {times(plan, purpose, 1)} time(s), masked, {vector_bytes(table):,} bytes: {names}"
        )
    if plan.privacy.unit == "none":
        return lines
    lines.append(
        f"price        epsilon {planned_epsilon(plan, **lengths):.4g} where every round takes all its attempts"
    )
    group = site.group_of(plan.data)
    if (budget := site.policy.budget(group)) is not None:
        charged = charges(vault.ledger(), {group, *site.members(group)})
        used = epsilon(events_in(charged), budget.delta)
        lines.append(
            f"budget       of {group}: epsilon {used:.4g} of {budget.epsilon:g} at delta {budget.delta:g} used"
        )
    return lines


def installed_code(plan: Plan) -> str:
    """The digest of the code that is installed here; empty where there is none."""
    try:
        return code_digest(plan.task)
    except PlanError:
        return ""


def cautions(site: SiteFolder, vault: Vault, plan: Plan) -> list[str]:
    """Why a plan would be refused, or what it would add up to with earlier ones (SPEC 12.10)."""
    try:
        chosen = choose(plan, site.name, site.data, site.policy)
        reason = why_too_close(site.name, vault, chosen, plan, site.consortium)
    except Refused as refused:
        return [f"it is refused: {refused.reason}"]
    except SettingsError:
        return []
    return [reason] if reason else []


def code_line(plan: Plan) -> str:
    """Say whether the plan's code is the one that is installed here."""
    try:
        here = code_digest(plan.task)
    except PlanError as error:
        return f"{plan.code or 'not named'}; {error}"
    if not plan.code:
        return f"not named; {here} is installed here"
    return f"{plan.code}, which is {'installed here' if plan.code == here else f'NOT what is installed here: {here}'}"


def asker(site: SiteFolder) -> str:
    """Who signs the requests of a training."""
    try:
        return f"the coordinator, key {fingerprint(site.consortium.coordinator)} (of your consortium file)"
    except SettingsError as error:
        return f"the coordinator; its key is not known: {error}"


def author_lines(vault: Vault, training: str, plan: Plan) -> list[str]:
    """Who has signed a plan, where the consortium file says who may; the site has checked that when it was asked."""
    named = {
        str(line.fields["author"])
        for line in read_log(vault)
        if line.event == "asked"
        and (line.fields.get("training"), line.fields.get("plan")) == (training, plan.digest)
        and "author" in line.fields
    }
    return [f"signed by    the author {name} (of your consortium file)" for name in sorted(named)]


def protection_line(plan: Plan) -> str:
    """Say how what leaves is protected."""
    if plan.protection.protocol == "plain":
        return "protection   NONE: the plain protocol shows this site's own update and counts to the coordinator"
    rules = plan.privacy
    if rules.unit == "none":
        return "protection   secure sums; NO differential privacy: sums and model may tell of single records"
    return (
        f"protection   secure sums; differential privacy: epsilon {rules.epsilon:g} at delta {rules.delta:g} for "
        f"adding or removing one {rules.unit}"
    )


def earlier_trainings(vault: Vault, training: str, data: str) -> list[str]:
    """The other trainings that this site has joined on a data set, and how many sums each has come to."""
    found = {}
    for line in SiteLog(vault.folder).read():
        name = line.fields.get("training")
        if line.event == "joined" and line.fields.get("data") == data and name != training:
            sums = sum(context.confirmed for context in vault.of_training(str(name)))
            found[name] = f"{name} ({sums} sums with {line.fields.get('sites')})"
    return list(found.values())


def withdrawn_line(training: str, decision: Decision) -> str:
    """Say why a site takes no part in a training any more, and what can be done."""
    if decision.decision == "restored":
        return (
            f"{training}: this vault was put back from a copy that knew this training: no approval brings it back. The "
            "coordinator can start the training under a new name."
        )
    return f"{training}: the site has withdrawn; fedseal site revoke --undo {training} takes that back."
