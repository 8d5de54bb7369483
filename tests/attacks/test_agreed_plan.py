"""A site holds the coordinator to the plan that it has agreed to: threshold, sites, segments, rounds (SPEC 8, rule 4).

``protocols`` binds a context to the plan's digest; that the context's numbers are the plan's is for ``flows.site``,
which alone can read the plan. Each of these contexts is safe by itself and weaker than what was agreed.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flows.data_sets import DataSet
from flows.exchange import Exchange
from flows.messages import AskFinish, AskJoin, AskWork, join_context
from flows.plan import Plan, make_plan
from flows.policy import Policy
from flows.site import Site
from flows.tables import segments_of
from ml_tasks.layout import Sizes
from protocols.contexts import AttemptContext, Purpose, sha256
from protocols.encoding import CLAMPED, Segment
from protocols.keys import Consortium, Identity
from protocols.messages import COORDINATOR, AskAdvertise, Refusal, envelope, parse
from protocols.vault import Vault

TASK = "tests.flows.tasks:Tiny"
SITES = ("ann", "bob", "cat", "dan", "eve", "flo", "gus")


def plan_with(threshold: int = 5, sites: tuple[str, ...] = SITES) -> Plan:
    raw = {"name": "tiny", "task": TASK, "data": "tiny", "sites": list(sites), "rounds": 3}
    return make_plan({**raw, "protection": {"threshold": threshold}}, source="test")


class Play:
    """One site, ann, and a coordinator that asks it what it likes."""

    def __init__(self, folder: Path) -> None:
        self.coordinator = Identity.generate(COORDINATOR)
        vault = Vault(folder / "ann")
        vault.keep_identity(Identity.generate("ann"))
        keys = {site: Identity.generate(site).public for site in SITES} | {"ann": vault.identity.public}
        self.consortium = Consortium(self.coordinator.public, keys)
        exchange = Exchange(f"file://{folder}/exchange")
        self.site = Site(vault, self.consortium, exchange, {"tiny": DataSet()}, Policy(tasks=[TASK]))

    def ask(self, kind: str, context: str, body: object) -> str:
        """Give the reason of a refusal, or "" where the site does as it is asked."""
        (answer, *_) = self.site.answer(envelope(self.coordinator, f"ask/{kind}", context, "ann", body))
        return parse(Refusal, answer.body, party="ann", step=kind).reason if answer.kind == "refusal" else ""

    def join(self, plan: Plan) -> str:
        return self.ask("join", join_context("trial", plan.digest), AskJoin("trial", plan.to_json()))

    def context(self, plan: Plan, purpose: Purpose = "training", round_: int = 1, attempt: int = 1) -> AttemptContext:
        rules = plan.protection
        keys = {site: self.consortium.sites[site] for site in plan.sites}
        model = sha256("model", f"{round_}")
        table = segments_of(plan, purpose, Sizes(weights=3, tensors=2, features=2))
        return AttemptContext(
            purpose, "trial", round_, attempt, plan.digest, keys, rules.threshold, rules.colluding, model, table, {}
        )

    def advertise(self, context: AttemptContext) -> str:
        return self.ask("advertise", context.digest, AskAdvertise(context))


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    one = Play(tmp_path)
    assert one.join(plan_with()) == ""
    yield one
    one.site.vault.close()


def test_the_agreed_context_is_joined(play: Play) -> None:
    assert play.advertise(play.context(plan_with())) == ""


def test_another_threshold_number_of_colluders_or_roster_is_refused(play: Play) -> None:
    """Flower's server picks the threshold. Here 3 of 3 would sum ann with one honest site, though 5 of 7 was agreed."""
    agreed = play.context(plan_with())
    trio = {site: agreed.sites[site] for site in SITES[:3]}
    six = {site: agreed.sites[site] for site in SITES[:6]}
    assert "threshold and colluding" in play.advertise(replace(agreed, threshold=6))
    assert "threshold and colluding" in play.advertise(replace(agreed, colluding=2))
    assert "threshold and colluding" in play.advertise(replace(agreed, sites=trio, threshold=3))
    assert "the invited sites" in play.advertise(replace(agreed, sites=six))


def test_another_segment_table_is_refused(play: Play) -> None:
    agreed = play.context(plan_with())
    first, *rest = agreed.segments
    for table in (
        (replace(first, scale=first.scale / 2), *rest),
        (replace(first, max_abs=first.max_abs / 2), *rest),
        (first, Segment("extra", 1, 32, 1.0, 1.0), *rest),
        tuple(segment for segment in agreed.segments if segment in (first,) or segment.name == CLAMPED),
    ):
        if table != agreed.segments:
            assert "segment table" in play.advertise(replace(agreed, segments=table))


def test_a_training_that_was_not_joined_is_refused(play: Play) -> None:
    assert "has not joined" in play.advertise(replace(play.context(plan_with()), training="other"))
    plan = plan_with(threshold=6)
    assert "not the plan" in play.advertise(play.context(plan))


def test_another_plan_under_the_same_name_is_refused(play: Play) -> None:
    assert "agreed to another plan" in play.join(plan_with(threshold=6))


def test_a_refused_plan_does_not_take_the_agreed_ones_place(play: Play) -> None:
    """Join plan A (5 of 7), try plan B (3 of 3; refused), then ask for a sum with A's digest and B's numbers."""
    agreed, weak = plan_with(), plan_with(3, SITES[:3])
    assert "agreed to another plan" in play.join(weak)
    mixed = replace(play.context(weak), plan=agreed.digest)
    assert play.advertise(mixed) != ""
    assert play.advertise(play.context(agreed)) == ""


@pytest.mark.parametrize(
    ("purpose", "round_"), [("statistics", 1), ("statistics", 7), ("training", 0), ("training", 4), ("evaluation", 2)]
)
def test_a_purpose_has_its_rounds(play: Play, purpose: Purpose, round_: int) -> None:
    """Statistics do not depend on the model: asked again without one site, the difference is that site's."""
    assert play.advertise(play.context(plan_with(), purpose, round_)) != ""


def test_a_request_for_an_older_attempt_does_not_delete_the_newer_ones_work(play: Play) -> None:
    """Anyone who can write to Prefect's API can send the coordinator's old, signed request again."""
    plan = plan_with()
    new = play.context(plan, attempt=2)
    play.advertise(new)
    kept = play.site.vault.folder / "work" / "trial" / new.digest
    kept.mkdir(parents=True, exist_ok=True)
    old = play.context(plan, attempt=1)
    play.ask("train", old.digest, AskWork(old))
    assert kept.exists()


def test_finishing_one_training_leaves_the_vectors_of_another(play: Play, tmp_path: Path) -> None:
    plan = plan_with()
    assert play.ask("join", join_context("other", plan.digest), AskJoin("other", plan.to_json())) == ""
    digest = Exchange(f"file://{tmp_path}/exchange").put("ann", b"a vector of the training named trial")
    assert play.ask("finish", join_context("other", plan.digest), AskFinish("other")) == ""
    assert Exchange(f"file://{tmp_path}/exchange").get("ann", digest, size=100)
