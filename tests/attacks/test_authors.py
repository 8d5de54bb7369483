"""Where the consortium pins authors, only what one of them has signed is joined (SPEC 6.13)."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flows.authors import Template, first_template, fitting_template, read_range, read_template, sign_template
from flows.messages import AskJoin, join_context
from flows.plan import Plan, PlanError
from protocols.consortium import ConsortiumError, read_consortium, write_consortium
from protocols.keys import Identity
from tests.flows.consortium import Trial, plan_for, trial
from tests.flows.test_privacy import PRIVACY
from tests.flows.test_site import refusal, send

JANE, EVE = Identity.generate("jane"), Identity.generate("eve")
RAW = {
    "name": "tiny",
    "task": "tests.flows.tasks:Tiny",
    "data": "tiny",
    "sites": ["ann", "bob", "cat", "dan"],
    "rounds": 2,
    "local": {"steps": 3},
}
OPEN = {"rounds": (1.0, 10.0), "local.learning_rate": (0.01, 1.0)}
TEMPLATE = sign_template(JANE, RAW, OPEN)


def changed(**fields: object) -> Plan:
    return plan_for(**{"deadlines": {}, "local": {"steps": 3}, **fields})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Trial]:
    """A consortium with one author, jane."""
    with trial(tmp_path, plan_for()) as made:
        for site in made.local.sites.sites.values():
            site._consortium = replace(made.live.consortium, authors={"jane": JANE.public})
        yield made


def ask(run: Trial, plan: Plan, template: str) -> str:
    """Why ann does not join; empty where it does."""
    context = join_context(f"t-{plan.digest[:12]}", plan.digest)
    answer = send(run, "ann", "join", context, AskJoin(f"t-{plan.digest[:12]}", plan.to_json(), template))
    return "" if answer.kind == "joined" else refusal(answer)


def test_a_plan_is_joined_with_its_open_fields_within_their_ranges_and_with_no_other_change(run: Trial) -> None:
    signed = TEMPLATE.to_json()
    for plan in (changed(), changed(rounds=10), changed(name="other", local={"steps": 3, "learning_rate": 0.01})):
        assert ask(run, plan, signed) == ""
    asked = [line.fields for line in run.local.sites.sites["ann"].record.read() if line.event == "asked"]
    assert [fields["author"] for fields in asked] == ["jane"] * 3
    assert "the plan's rounds (11) may be from 1 to 10" in ask(run, changed(rounds=11), signed)
    for plan in (
        changed(seed=1),
        changed(local={"steps": 4}),
        changed(protection={"colluding": 1, "threshold": 4}),
        changed(max_attempts=4),
    ):
        assert "a closed field differs" in ask(run, plan, signed)


def test_what_no_author_has_signed_is_refused(run: Trial) -> None:
    plan = changed()
    of_eve = sign_template(EVE, RAW, OPEN)
    wider = replace(TEMPLATE, open={"rounds": (1.0, 10_000.0)})
    for template, reason in (
        ("", "is not signed by an author"),
        ("{}", "does not read as one"),
        ("[" * 100_000, "does not read as one"),
        (of_eve.to_json(), "the plan's author is not in the consortium file"),
        (replace(of_eve, author="jane").to_json(), "signature of the plan's author jane does not verify"),
        (wider.to_json(), "does not verify"),
        (replace(TEMPLATE, plan=TEMPLATE.plan.replace("Tiny", "Bare")).to_json(), "does not verify"),
        (signed_by_jane("[]").to_json(), "makes no plan"),
        (signed_by_jane('{"local":1}', {"local.steps": (1.0, 9.0)}).to_json(), "makes no plan"),
    ):
        assert reason in ask(run, plan, template)


def signed_by_jane(plan: str, open_: dict[str, tuple[float, float]] | None = None) -> Template:
    """A template that an author should not have signed."""
    unsigned = Template("jane", plan, open_ or {}, "0" * 128)
    return replace(unsigned, signature=JANE.sign(unsigned.signed).hex())


def test_without_authors_all_is_as_it_was(tmp_path: Path) -> None:
    with trial(tmp_path, plan_for()) as run:
        assert ask(run, changed(seed=7), "") == ""
        (asked,) = (line for line in run.local.sites.sites["ann"].record.read() if line.event == "asked")
        assert "author" not in asked.fields


def test_a_template_reads_back_and_leaves_open_what_follows_from_others() -> None:
    assert read_template(TEMPLATE.to_json()) == TEMPLATE
    noised = sign_template(JANE, RAW | {"privacy": PRIVACY, "local": {"steps": 1}}, {"privacy.epsilon": (1.0, 5.0)})
    assert "training_noise" not in noised.plan


@pytest.mark.parametrize(
    ("open_", "reason"),
    [
        ({"rounds": (3.0, 9.0)}, "rounds = 2 is not within its own range"),
        ({"name": (1.0, 2.0)}, "no field that holds a number"),
        ({"protection.update.rotated": (0.0, 1.0)}, "no field that holds a number"),
        ({"local.nothing": (0.0, 1.0)}, "no field that holds a number"),
    ],
)
def test_only_numbers_are_left_open(open_: dict[str, tuple[float, float]], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        sign_template(JANE, RAW, open_)
    with pytest.raises(PlanError, match=r"field=least\.\.most"):
        read_range("rounds=1-9")


def test_the_coordinator_finds_the_template_that_a_plan_fits(tmp_path: Path) -> None:
    authors = {"jane": JANE.public}
    with pytest.raises(PlanError, match="there is none"):
        fitting_template(changed(), tmp_path, authors)
    assert first_template(tmp_path, authors) is None
    (tmp_path / "a.json").write_text(sign_template(JANE, RAW | {"seed": 9}, {}).to_json() + "\n")
    (tmp_path / "b.json").write_text(TEMPLATE.to_json())
    assert fitting_template(changed(rounds=7), tmp_path, authors) == TEMPLATE.to_json()
    assert fitting_template(changed(rounds=7), tmp_path, {}) == ""
    with pytest.raises(PlanError, match=r"a.json: .*closed field differs; b.json: .*rounds \(11\)"):
        fitting_template(changed(rounds=11), tmp_path, authors)
    begin = first_template(tmp_path, authors)
    assert begin is not None and begin.seed == 9


def test_authors_are_pinned_in_the_consortium_file(tmp_path: Path, run: Trial) -> None:
    path = tmp_path / "consortium.toml"
    consortium = replace(run.live.consortium, authors={"jane": JANE.public})
    write_consortium(path, consortium)
    assert read_consortium(path) == consortium
    text = path.read_text()
    for broken, reason in (
        (text.replace("jane =", '"No Name" ='), "an author's name is"),
        (text.replace(JANE.public, consortium.coordinator), "is the key of coordinator.key"),
        (text.replace(f'jane = "{JANE.public}"', ""), "authors: is empty"),
    ):
        path.write_text(broken)
        with pytest.raises(ConsortiumError, match=reason):
            read_consortium(path)
    assert json.loads(TEMPLATE.to_json())["author"] == "jane"
