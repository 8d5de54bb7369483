"""What several trainings add up to: budgets belong to data, not to a plan's words for them (rule 10; SPEC 12.9)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flows.data_sets import DataSet
from flows.plan import Plan
from flows.policy import BudgetTable, Policy
from flows.privacy import afford, charges_of
from flows.site import Site
from flows.tables import rounding_key, training_seed
from protocols.contexts import AttemptContext, sha256
from protocols.errors import Refused
from protocols.keys import Identity
from protocols.ledger import EMPTY_LEDGER, Budget, LedgerEntry
from protocols.messages import AskAdvertise, Envelope
from protocols.vault import Decision, Entry
from tests.flows.consortium import Trial, plan_for, trial
from tests.flows.test_privacy import private
from tests.flows.test_site import join, refusal, send


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Trial]:
    """A consortium in which nobody has joined yet."""
    with trial(tmp_path / "run", plan_for()) as made:
        yield made


def allow(run: Trial, epsilon: float = 0.1, **data: DataSet | Path) -> Site:
    """Give ann these data sets, and a budget to the group ``tiny``."""
    site = run.local.sites.sites["ann"]
    site._data = data or {"tiny": DataSet()}
    site._policy = site._policy.model_copy(update={"budgets": {"tiny": BudgetTable(epsilon=epsilon, delta=1e-6)}})
    return site


def called(run: Trial, data: str) -> str:
    """Why ann does not join a plan that calls its data so."""
    return refusal(join(run, "ann", run.plan.model_copy(update={"data": data}), training=f"on-{data}"))


def test_a_task_without_a_folder_names_a_data_set_of_the_site_all_the_same(run: Trial) -> None:
    allow(run)
    assert "has a privacy budget here" in called(run, "tiny")
    assert "the data set anything is not one of this site's" in called(run, "anything")


def test_a_folder_of_two_names_has_one_budget_or_none_of_them_is_trained_on(run: Trial, tmp_path: Path) -> None:
    (tmp_path / "icu" / "2024").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "icu")
    for other in (tmp_path / "icu", tmp_path / "link", tmp_path / "icu" / "2024", tmp_path):
        allow(run, tiny=tmp_path / "icu", again=other)
        assert "do not go together" in called(run, "again")
        allow(run, tiny=tmp_path / "icu", again=DataSet(other, group="none"))
        assert "do not go together" in called(run, "again")
        allow(run, tiny=tmp_path / "icu", again=DataSet(other, group="tiny"))
        assert "has a privacy budget here" in called(run, "again")


def test_where_one_data_set_has_a_budget_each_other_has_one_or_says_none(run: Trial, tmp_path: Path) -> None:
    allow(run, tiny=tmp_path / "a", other=tmp_path / "b")
    assert "do not go together" in called(run, "other")
    allow(run, tiny=tmp_path / "a", other=DataSet(tmp_path / "b", group="none"))
    assert join(run, "ann", run.plan.model_copy(update={"data": "other"}), training="other").kind == "joined"


def test_a_copy_under_another_group_is_charged_to_both_from_its_first_sum_on() -> None:
    """A yearly export whose rows are still the old ones: its content stands on the line of its first sum."""
    plan = private({"epsilon": 1.0}, rounds=1, max_attempts=1)
    sizes, budget = {"parameters": 3, "features": 2}, Budget(1.0, 1e-5)
    ledger: list[LedgerEntry] = []
    for group in ("icu", "icu-2025"):
        more = charges_of(plan, group=group, **sizes)
        afford("ann", ledger, more, budget)  # nobody has read the copy yet
        for charge in more:
            context = sha256(group, str(len(ledger)))
            ledger += [LedgerEntry("reserve", context, charge), LedgerEntry("spent", context, content=sha256("rows"))]
    for group in ("icu", "icu-2025"):
        with pytest.raises(Refused, match="is spent or reserved"):
            afford("ann", ledger, charges_of(plan, group=group, **sizes)[:1], Budget(1.2, 1e-5))
    afford("ann", ledger, charges_of(plan, group="other", **sizes), budget)


def test_all_data_sets_of_a_group_spend_one_budget_also_what_was_charged_before_there_were_groups() -> None:
    plan = private({"epsilon": 1.0}, rounds=1, max_attempts=1)
    more = charges_of(plan, parameters=3, features=2, group="beds")
    old = [replace(charge, data="icu", fingerprint=sha256("rows")) for charge in more]
    for spent, names in ((more, ()), (old, ("icu", "ward"))):
        ledger = [LedgerEntry("reserve", sha256(str(number)), charge) for number, charge in enumerate(spent)]
        with pytest.raises(Refused, match="is spent or reserved"):
            afford("ann", ledger, more, Budget(1.0, 1e-5), names)


def of_sites(*sites: str, **fields: object) -> Plan:
    return plan_for(sites=list(sites), rounds=1, max_attempts=1, **fields)


def advertise(run: Trial, plan: Plan, training: str, site: str = "ann") -> tuple[AttemptContext, Envelope]:
    """Ask a site to advertise in a training."""
    context = replace(
        run.live.context("training", 1, 1),
        training=training,
        plan=plan.digest,
        sites={name: run.live.consortium.sites[name] for name in plan.sites},
        threshold=plan.protection.threshold,
    )
    return context, send(run, site, "advertise", context.digest, AskAdvertise(context))


def advertised(run: Trial, plan: Plan, training: str, site: str = "ann") -> AttemptContext:
    """Have a site join and advertise; fails unless it does."""
    assert join(run, site, plan, training).kind == "joined"
    context, answer = advertise(run, plan, training, site)
    assert answer.kind == "advert"
    return context


def test_four_trainings_of_three_of_four_sites_stop_at_the_second(tmp_path: Path) -> None:
    """Finding 18: the four sums are four equations in four unknowns, of which each site's own update is one."""
    sites = ("ann", "bob", "cat", "dan")
    with trial(tmp_path, plan_for()) as run:
        plans = [of_sites(*(site for site in sites if site != left_out)) for left_out in reversed(sites)]
        for number, plan in enumerate(plans):
            for site in plan.sites:
                if number == 0:
                    advertised(run, plan, "first", site)
                elif site in plans[0].sites:
                    apart = sorted({*plans[0].sites} ^ {*plan.sites})
                    reason = refusal(join(run, site, plan, f"leave-out-{number}"))
                    assert f"would set {', '.join(apart)} apart" in reason


def test_a_roster_with_one_site_fewer_or_more_waits_and_is_approved_or_private(run: Trial) -> None:
    four, three = of_sites("ann", "bob", "cat", "dan"), of_sites("ann", "bob", "cat")
    context = advertised(run, three, "first")
    assert "(first) would set dan apart: waits for its data steward" in refusal(join(run, "ann", four, "second"))
    vault = run.local.sites.sites["ann"].vault
    assert vault.decision("second").decision == "pending"
    assert join(run, "ann", private(), "covered").kind == "joined"
    assert join(run, "ann", three, "same").kind == "joined"
    vault.decide(Decision("second", three.digest, three.to_json(), "approved"))
    assert join(run, "ann", four, "second").kind == "refusal"
    vault.decide(Decision("second", four.digest, four.to_json(), "approved"))
    advertised(run, four, "second")
    assert join(run, "ann", four, "third").kind == "joined"
    assert vault.find(context.digest).state


def test_two_trainings_at_once_are_not_both_advertised_in(run: Trial) -> None:
    four, three = of_sites("ann", "bob", "cat", "dan"), of_sites("ann", "bob", "cat")
    for plan, training in ((three, "first"), (four, "second")):
        assert join(run, "ann", plan, training).kind == "joined"
    context = advertised(run, three, "first")
    assert "would set dan apart" in refusal(advertise(run, four, "second")[1])
    assert run.local.sites.sites["ann"].vault.decision("second").decision == "pending"
    assert run.local.sites.sites["ann"].vault.find(context.digest).state


def test_what_was_never_masked_is_forgotten_and_what_was_is_not(run: Trial) -> None:
    four, three = of_sites("ann", "bob", "cat", "dan"), of_sites("ann", "bob", "cat")
    site = run.local.sites.sites["ann"]
    advertised(run, three, "given-up")
    assert join(run, "ann", four, "second").kind == "refusal"
    site.leave("given-up")
    context = advertised(run, four, "second")
    with site.vault.exclusive():
        site.vault.journal(context.digest, "mask", Entry("", "", None))
    site.leave("second")
    assert join(run, "ann", three, "third").kind == "refusal"


def test_a_copy_of_the_data_under_another_group_remembers_the_same_rosters_from_its_first_sum_on(run: Trial) -> None:
    four, three = of_sites("ann", "bob", "cat", "dan"), of_sites("ann", "bob", "cat")
    vault = allow(run, tiny=DataSet(), copy=DataSet()).vault
    run.local.sites.sites["ann"]._policy = Policy(tasks=[four.task])
    copied = [plan.model_copy(update={"data": "copy"}) for plan in (four, three)]
    for training, plan, content in (("first", four, "rows"), ("other", copied[0], "rows")):
        advertised(run, plan, training)
        assert join(run, "ann", copied[1], f"before-{training}").kind == (
            "joined" if training == "first" else "refusal"
        )
        with vault.exclusive():
            vault.add_summed(training, sha256(content))
    assert vault.summed() == {"tiny": {sha256("rows")}, "copy": {sha256("rows")}}
    assert "(first, other) would set dan apart" in refusal(join(run, "ann", three, "second"))


def test_a_site_is_known_by_its_key_and_not_by_its_name(run: Trial) -> None:
    """A consortium file in which dan is called eve, and one in which another is called dan."""
    sites = dict(run.live.consortium.sites)
    site, old = run.local.sites.sites["ann"], run.live.consortium
    context = advertised(run, of_sites("ann", "bob", "cat", "dan"), "first")
    assert site.vault.find(context.digest)
    renamed = {("eve" if name == "dan" else name): key for name, key in sites.items()}
    site._consortium = replace(old, sites=renamed)
    assert join(run, "ann", of_sites("ann", "bob", "cat", "eve"), "renamed").kind == "joined"
    site._consortium = replace(old, sites=sites | {"dan": Identity.generate("dan").public})
    assert "would set" in refusal(join(run, "ann", of_sites("ann", "bob", "cat", "dan"), "another"))


def test_a_restored_vault_does_not_know_with_whom_its_data_were_summed(run: Trial) -> None:
    vault = run.local.sites.sites["ann"].vault
    for kind, answer in (("restored", "refusal"), ("accepted", "joined")):
        with vault.exclusive():
            vault.enter(LedgerEntry(kind, EMPTY_LEDGER))
        assert join(run, "ann").kind == answer


def test_no_site_s_batches_or_rounding_are_the_same_with_another_roster() -> None:
    four, three = of_sites("ann", "bob", "cat", "dan"), of_sites("ann", "bob", "cat")
    again = of_sites("dan", "cat", "bob", "ann")
    for of_plan in (training_seed, rounding_key):
        assert of_plan(four, "ann", 1) == of_plan(again, "ann", 1) != of_plan(three, "ann", 1)
