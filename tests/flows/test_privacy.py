"""A plan's privacy: what it comes to for every survivor set, what a site charges, adds and refuses."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from safetensors.numpy import load_file

from flows.local_work import LocalWork
from flows.messages import AskWork
from flows.plan import Plan, PlanError, make_plan
from flows.policy import BudgetTable
from flows.privacy import affordable_rounds, cautions, check_privacy, clips, planned_epsilon, shares_of
from flows.tables import clipped_values, tables_of
from flows.workshop import WorkOrder
from ml_tasks.layout import Sizes
from ml_tasks.noised_metrics import WIDEST
from protocols.encoding import CLAMPED, vector_bytes
from protocols.errors import BadInput, RingTooSmall
from protocols.ledger import EMPTY_LEDGER, LedgerEntry, check_chain
from protocols.messages import AskAdvertise
from tests.flows.consortium import Trial, at, plan_for, trial
from tests.flows.test_site import join, refusal, send

SIX = ("ann", "bob", "cat", "dan", "eve", "fay")
PRIVACY = {
    "unit": "record",
    "epsilon": 3.0,
    "delta": 1e-5,
    "clip": 1.0,
    "sampling_rate": 0.5,
    "expected_batch": 20.0,
}


SITES_PRIVACY = {
    "unit": "site",
    "epsilon": 3.0,
    "delta": 1e-5,
    "clip": 0.5,
    "sampling_rate": 1.0,
    "expected_batch": 0.0,
    "least_weight": 0.1,
    "statistics": "bounds",
}


def private(privacy: dict[str, object] | None = None, **fields: object) -> Plan:
    """A plan of two steps with privacy."""
    return plan_for(**{"local": {"steps": 1}, "privacy": PRIVACY | (privacy or {}), "max_attempts": 2, **fields})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Trial]:
    """A consortium with privacy in which nobody has joined yet."""
    with trial(tmp_path, private()) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("privacy", [PRIVACY, SITES_PRIVACY, SITES_PRIVACY | {"adaptive": True}])
def test_every_survivor_set_costs_at_most_what_was_planned(privacy: dict[str, object], epsilon: float) -> None:
    """Recomputed from each site's noise alone, over all sets of survivors and all sets of colluders among them."""
    rules = {"threshold": 4, "update": {"bits": 64}}
    plan = private(privacy | {"epsilon": epsilon}, sites=SIX, rounds=5, protection=rules)
    costs = set()
    for survivors in (set(chosen) for size in range(4, 7) for chosen in combinations(SIX, size)):
        for colluder in survivors:
            costs.add(recomputed(plan, honest=len(survivors - {colluder})))
    planned = planned_epsilon(plan, parameters=3, features=2)
    assert max(costs) <= planned <= epsilon
    assert max(costs) > 0.95 * epsilon
    assert len(costs) == 3


def recomputed(plan: Plan, honest: int) -> float:
    """Epsilon from the shares of so many sites, rounding counted as an addition of sqrt(length) grid steps."""
    accountant = RdpAccountant(range(2, 200), dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for purpose, table in tables_of(plan, Sizes(weights=3, features=2)).items():
        shares, groups = shares_of(plan, purpose, table), clips(plan, purpose, table)
        rounds, rate = (plan.rounds, plan.privacy.sampling_rate) if purpose == "training" else (1, 1.0)
        assert sorted(name for one in groups for name in one.names) == sorted({one.name for one in table} - {CLAMPED})
        for group in groups:
            sigmas = {one.name: shares[one.name] * honest**0.5 for one in table}
            chosen = [one for one in table if one.name in group.names]
            moved = group.bound * max(one.scale / sigmas[one.name] for one in chosen)
            noise = 1 / (moved + sum(one.length / sigmas[one.name] ** 2 for one in chosen) ** 0.5)
            event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
            accountant.compose(event, rounds * plan.max_attempts)
    return float(accountant.get_epsilon(plan.privacy.delta))


def test_a_plan_reads_back_as_it_was_with_the_noise_that_its_epsilon_takes() -> None:
    plan = private()
    assert plan.privacy.training_noise > 0
    assert make_plan(plan.model_dump(mode="json"), source="test") == plan


def test_less_noise_than_epsilon_takes_is_refused_with_the_numbers() -> None:
    plan = private({"training_noise": 0.4})
    with pytest.raises(PlanError, match=r"epsilon comes to \d+.*, more than 3"):
        check_privacy(plan, parameters=3, features=2)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"privacy": PRIVACY | {"sampling_rate": 1.5}}, "less than or equal to 1"),
        ({"privacy": PRIVACY | {"epsilon": 0}}, "needs epsilon"),
        ({"local": {"steps": 2}}, "a round is one step"),
        ({"privacy": PRIVACY | {"adaptive": True}}, "only the clip of sites adapts"),
        ({"privacy": {"adaptive": True}}, "only the clip of sites adapts"),
        ({"privacy": PRIVACY | {"noise": "local"}, "local": {"steps": 1001}}, "at most 1000 noised steps"),
        ({"privacy": SITES_PRIVACY | {"sampling_rate": 0.5}}, "set sampling_rate = 1"),
        ({"privacy": SITES_PRIVACY | {"least_weight": 0}}, "needs epsilon and least_weight"),
        ({"stopping": {"patience": 1}}, "no round is measured"),
        ({"privacy": PRIVACY | {"delta": 0.5}}, r"delta \(0.5\) allows .* less than one over the 40 examples .* 0.025"),
        ({"privacy": SITES_PRIVACY | {"delta": 0.01}}, "less than one over the 1,000 examples"),
        ({"privacy": PRIVACY | {"expected_batch": 20_001.0}}, r"expected_batch \(20001\) is more than the 20000 that"),
        ({"privacy": PRIVACY | {"expected_batch": 0.5}}, "most steps would sample no record"),
        ({"privacy": SITES_PRIVACY | {"least_weight": 5.0}}, "more than the 4 that the weights"),
        ({"privacy": PRIVACY | {"clip": 1e-6}}, r"clip \(1e-06\) is too small: .* at most 2e-07"),
        ({"privacy": SITES_PRIVACY | {"clip": 1e-4}}, "too small"),
        ({"protection": {"protocol": "plain", "allow_insecure": True}}, "needs secure aggregation"),
    ],
)
def test_a_plan_that_cannot_be_private_is_refused_in_one_line(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(PlanError, match=reason) as caught:
        private(**fields)
    assert "\n" not in str(caught.value)


def test_noise_that_moves_the_model_further_than_its_gradients_can_is_warned_of_with_the_number() -> None:
    assert cautions(private(rounds=100), 3) == []
    (said,) = cautions(private(), 10_000)
    assert re.match(r"the noise moves the model \d+ times as far as 2 steps .*privacy.expected_batch", said)
    (said,) = cautions(private({"clip": 1e5}, rounds=100), 3)
    assert re.match(r"the noise moves each weight by \d[\d.e+]* in all rounds: .*privacy.clip \(100000\)", said)
    sites = {"privacy": SITES_PRIVACY, "local": {"steps": 3}}
    assert ["privacy.least_weight" in said for said in cautions(plan_for(**sites), 3)] == [True, True]


def test_a_ring_too_small_for_the_noise_is_refused() -> None:
    plan = private({"epsilon": 0.05}, protection={"update": {"bits": 32, "scale": 2.0**24, "max_abs": 1.0}})
    with pytest.raises(RingTooSmall, match="of noise"):
        check_privacy(plan, parameters=3, features=2)


@pytest.mark.slow
def test_a_private_training_charges_each_attempt_once_and_keeps_to_its_epsilon(tmp_path: Path) -> None:
    faults = {(site, "share"): at([1], "lost") for site in ("ann", "bob")}
    with trial(tmp_path, private(), faults) as run:
        report = run.train()
        assert report.statistics is not None
        epsilons = [record.epsilon for record in report.records]
        assert epsilons == sorted(epsilons) and 0 < epsilons[0] < epsilons[-1] <= 3.0
        assert report.privacy == {"unit": "record", "epsilon": epsilons[-1], "delta": 1e-5}
        assert [record.attempt for record in report.rounds] == [2, 1]
        assert all(record.metrics == {} and record.clamped == 0 for record in report.rounds)
        final = report.final
        assert final.metrics["examples"] >= 0 and set(final.intervals) == set(final.metrics)
        assert {"accuracy", "loss", "auroc"} <= set(final.unclear) | set(final.metrics)
        assert all(
            high - low <= 2 * WIDEST + 1e-9 for name, (low, high) in final.intervals.items() if name != "examples"
        )
        assert set(final.to_json()["unclear"]) == set(final.unclear)
        for site in run.plan.sites:
            vault = run.local.sites.sites[site].vault
            check_chain(site, vault.ledger_lines())
            kinds = [entry.kind for entry in vault.ledger()]
            assert kinds == ["reserve", "spent", "reserve", "release", *["reserve", "spent"] * 3]


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [False, True])
def test_sites_are_protected_by_a_joint_clip_of_update_and_weight(tmp_path: Path, adaptive: bool) -> None:
    """An adaptive clip moves by at most a factor of e^0.1 a round, where half of the updates should be within."""
    rules = {"max_examples": 20, "update": {"bits": 64}}
    privacy = SITES_PRIVACY | {"epsilon": 50.0, "clip": 0.01, "adaptive": adaptive}
    plan = private(privacy, rounds=1, max_attempts=1, protection=rules, local={"steps": 3, "batch_size": 4})
    with trial(tmp_path, plan) as run:
        report = run.train()
        assert report.privacy is not None and 0 < report.privacy["epsilon"] <= 50.0
        model = run.live.checkpoint.model
    assert np.isfinite(model.vector).all()
    assert (model.clip is not None) == adaptive
    if model.clip is not None:
        assert 0.009 < model.clip[0] < 0.0111 and model.clip[0] != np.float32(0.01)


def test_a_site_s_values_are_no_longer_than_one_and_point_where_they_did() -> None:
    plan = private(SITES_PRIVACY | {"adaptive": True}, protection={"max_examples": 20})
    for length, within in ((0.3, 0.5), (40.0, -0.5)):
        update = np.array([length, 0, 0], np.float32)
        values = clipped_values(plan, "ann", 10, update, 0.5)
        joint = np.concatenate([values["weight"], values["update"]])
        assert np.linalg.norm(joint) <= 1.0
        assert values["update"][0] / values["weight"][0] == pytest.approx(length / 0.5)
        assert values["within"] == [within]
    with pytest.raises(BadInput, match="diverged"):
        clipped_values(plan, "ann", 10, np.array([np.nan], np.float32), 0.5)


@pytest.mark.slow
def test_with_local_noise_each_site_is_charged_for_each_of_its_steps(tmp_path: Path) -> None:
    plan = private({"noise": "local", "statistics": "bounds"}, local={"steps": 3}, max_attempts=1)
    with trial(tmp_path, plan) as run:
        report = run.train()
        assert report.privacy is not None and 0 < report.privacy["epsilon"] <= 3.0
        assert planned_epsilon(plan, parameters=3, features=2) == pytest.approx(report.privacy["epsilon"])
        for site in run.plan.sites:
            charged = [entry.charge for entry in run.local.sites.sites[site].vault.ledger() if entry.charge]
            assert [[count for _, _, count, _ in charge.events] for charge in charged[:2]] == [[3], [3]]
    accountant = RdpAccountant(range(2, 200), dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    noise = 2.0**20 * plan.privacy.training_noise / (2.0**20 + 3**0.5)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.5, dp_accounting.GaussianDpEvent(noise)), 2 * 3)
    assert accountant.get_epsilon(1e-5) <= 3.0


def test_a_step_of_local_noise_has_noise_of_the_planned_size(tmp_path: Path) -> None:
    """A site's update after one step is its gradients, of length at most 15, and the noise."""
    privacy = {"noise": "local", "statistics": "bounds", "training_noise": 1000.0, "sampling_rate": 1.0}
    plan, moved = private(privacy, max_attempts=1), []
    with trial(tmp_path, plan) as run:
        work, model = LocalWork(plan, "ann", None), run.live.checkpoint.model.to_bytes()
        for number in range(1, 41):
            order = WorkOrder(purpose="training", step="train", round=number, model=model, subset=bytes(32))
            moved.append(work.perform(order).values["update"])
    step = plan.local.learning_rate / plan.privacy.expected_batch
    assert 0.8 < np.std(np.stack(moved) / step) / 1000.0 < 1.25


def test_the_rounds_that_an_epsilon_has_room_for_are_those_that_keep_to_it() -> None:
    plan = private({"training_noise": 4.0}, rounds=5)
    most = affordable_rounds(plan, parameters=3, features=2)
    assert most > 5

    def at(rounds: int) -> float:
        return planned_epsilon(plan.model_copy(update={"rounds": rounds}), parameters=3, features=2)

    assert at(most) <= plan.privacy.epsilon < at(most + 1)


@pytest.mark.slow
def test_a_rotated_update_in_16_bits_takes_two_bytes_a_parameter_and_learns_the_same(tmp_path: Path) -> None:
    """Noise aside: its rounding is of another grid."""
    models = []
    for name, ring in (("wide", {}), ("narrow", {"bits": 16, "scale": 2.0**11, "max_abs": 3.0, "rotated": True})):
        rules = {"update": ring, "max_examples": 64}  # weights near 1: a coarse grid resolves nothing else
        with trial(tmp_path / name, plan_for(protection=rules), name="same") as run:
            run.train()
            models.append(run.live.checkpoint.model.vector)
    assert 0 < np.abs(models[0] - models[1]).max() < 0.02
    ring = {"bits": 16, "scale": 2.0**8, "max_abs": 1.0, "rotated": True}
    table = tables_of(private(protection={"update": ring}), Sizes(weights=10**6, features=2))["training"]
    assert vector_bytes(table) <= 2.01 * 10**6


@pytest.mark.slow
def test_the_sum_of_a_step_is_the_gradients_and_noise_of_the_planned_size(tmp_path: Path) -> None:
    plan = private({"sampling_rate": 1.0, "epsilon": 1.0}, rounds=10, max_attempts=1)
    with trial(tmp_path, plan) as run:
        before = run.live.checkpoint.model.vector
        run.train()
        moved = run.live.checkpoint.model.vector - before
    step = plan.local.learning_rate * plan.privacy.clip / plan.privacy.expected_batch
    table = tables_of(plan, Sizes(weights=3, features=2))["training"]
    sigma = shares_of(plan, "training", table)["update"] * 2.0 / table[0].scale  # of four sites
    spread = step * sigma * np.sqrt(10)
    most = step * 10 * 60  # the gradients of at most 60 records, each of length 1
    assert 0 < np.linalg.norm(moved) < most + 6 * spread * np.sqrt(3)


def test_two_attempts_sample_and_noise_anew(run: Trial) -> None:
    assert join(run, "ann").kind == "joined"
    vault = run.local.sites.sites["ann"].vault
    kept = []
    for attempt in (1, 2):
        context = run.live.context("training", 1, attempt)
        assert send(run, "ann", "advertise", context.digest, AskAdvertise(context)).kind == "advert"
        assert send(run, "ann", "train", context.digest, AskWork(context)).kind == "done"
        kept.append(
            load_file(vault.folder / "work" / run.live.training / context.digest / "train.safetensors")["update"]
        )
    assert len({tuple(one) for one in kept}) > 1


def test_another_noise_than_the_plan_s_is_refused(run: Trial) -> None:
    assert join(run, "ann").kind == "joined"
    context = run.live.context("training", 1, 1)
    for noise in ({}, {name: 2.0 for name in context.noise}, {"update": context.noise["update"]}):
        other = replace(context, noise=noise)
        assert "noise" in refusal(send(run, "ann", "advertise", other.digest, AskAdvertise(other)))


def spend(run: Trial, site: str) -> str:
    """Have a site join attempt after attempt, as if it had masked in each, until it refuses; gives the reason.

    Its bound on attempts is set aside, which would refuse first.
    """
    run.local.sites.sites[site]._check_attempts = lambda *given: None
    vault = run.local.sites.sites[site].vault
    for attempt in range(1, 40):
        context = run.live.context("training", 1, attempt)
        answer = send(run, site, "advertise", context.digest, AskAdvertise(context))
        if answer.kind == "refusal":
            assert attempt > 2
            assert [entry.kind for entry in vault.ledger()] == ["reserve", "spent"] * (attempt - 1)
            return refusal(answer)
        with vault.exclusive():
            vault.enter(LedgerEntry("spent", context.digest))
    raise AssertionError("it never refuses")


def allow(run: Trial, site: str, epsilon: float) -> None:
    """Give a site's data set a budget."""
    budgets = {"tiny": BudgetTable(epsilon=epsilon, delta=1e-5)}
    made = run.local.sites.sites[site]
    made._policy = made._policy.model_copy(update={"budgets": budgets})


def test_a_plan_that_a_budget_has_no_room_for_is_refused_at_joining(run: Trial) -> None:
    allow(run, "ann", 2.0)
    assert "with this sum it would be" in refusal(join(run, "ann"))


def test_a_budget_that_is_used_up_is_refused_and_a_site_that_comes_back_is_not_charged_twice(run: Trial) -> None:
    allow(run, "ann", 2.6)
    assert join(run, "ann").kind == "joined"
    assert "has an epsilon of 2.6 at delta 1e-05" in spend(run, "ann")
    assert join(run, "ann").kind == "joined"
    assert "with this sum it would be" in refusal(join(run, "ann", training="another"))


def test_however_often_it_is_asked_a_training_costs_no_more_than_its_plan_says(run: Trial) -> None:
    assert join(run, "ann").kind == "joined"
    assert "the plan's epsilon of 3 is used up" in spend(run, "ann")


def test_a_ledger_that_was_put_back_affords_nothing_until_its_data_steward_says_so(run: Trial) -> None:
    allow(run, "ann", 50.0)
    vault = run.local.sites.sites["ann"].vault
    for kind, answer in (("restored", "refusal"), ("accepted", "joined")):
        with vault.exclusive():
            vault.enter(LedgerEntry(kind, EMPTY_LEDGER))
        assert join(run, "ann").kind == answer


def test_a_data_set_with_a_budget_takes_no_plan_without_privacy(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for()) as run:
        site = run.local.sites.sites["ann"]
        site._policy = site._policy.model_copy(update={"budgets": {"tiny": BudgetTable(epsilon=2.0, delta=1e-5)}})
        assert "the plan must set privacy.unit =" in refusal(join(run, "ann"))


def test_a_gradient_that_is_nan_counts_as_nothing_and_what_was_reserved_is_released(tmp_path: Path) -> None:
    with trial(tmp_path, private().model_copy(update={"task": "tests.flows.tasks:Diverging"})) as run:
        assert join(run, "cat").kind == "joined"
        context = run.live.context("training", 1, 1)
        assert send(run, "cat", "advertise", context.digest, AskAdvertise(context)).kind == "advert"
        assert send(run, "cat", "train", context.digest, AskWork(context)).kind == "done"
        run.local.sites.sites["cat"].leave(run.live.training)
        kinds = [entry.kind for entry in run.local.sites.sites["cat"].vault.ledger()]
        assert kinds == ["reserve", "release"]
