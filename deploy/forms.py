"""The forms in the Prefect UI that trainings are started with: a whole plan, or a published one's open numbers.

A form is a JSON schema, which the server checks what is filled in against. The coordinator takes neither its word for
that: it reads the plan by itself (``flows.published``).
"""

from collections.abc import Mapping
from typing import Annotated, Any

from prefect.utilities.callables import parameter_schema
from pydantic import Field

from deploy.entries import Entry
from flows.authors import number_at
from flows.plan import Plan, make_plan
from flows.published import Published
from flows.setting_words import table_at
from flows.settings import CUSTOM, TRAINING, coordinator_pool, mark_of, marked

TAG = "training"
"""The tag of trainings, by which the list of runs shows them and none of their rounds."""
FIRST = ("name", "task", "data", "sites", "rounds", "local", "seed", "min_sites", "privacy")
"""The fields that a form begins with; local training has five of its own, and the rest is seldom changed."""


def custom_entry(coordinator: str, begin: Plan) -> Entry:
    """The deployment whose form is a whole plan.

    Args:
        coordinator: its public key.
        begin: the plan that the form is filled in with.
    """

    def form(plan: Annotated[Plan, Field(title="Plan")]) -> None:
        """The form of the deployment: one plan."""

    schema = parameter_schema(form).model_dump_for_openapi()
    ordered(schema["definitions"]["Plan"]["properties"])
    about = "Train a model across sites that keep their data. Fill in the plan; every site decides if it takes part."
    return _entry(coordinator, CUSTOM, about, schema, {"plan": unresolved(begin)})


def ordered(properties: dict[str, Any]) -> None:
    """Have a form begin with the fields that are filled in most; PostgreSQL keeps no order but this."""
    places = {name: place for place, name in enumerate([*FIRST, *(name for name in properties if name not in FIRST)])}
    for name, field in properties.items():
        field["position"] = places[name]


def published_entry(coordinator: str, published: Published) -> Entry:
    """The deployment of a published plan, whose form has its open numbers alone.

    Args:
        coordinator: its public key.
        published: the plan.
    """
    plan = published.filled({})
    given = {word: number_at(plan, field) for word, field in published.words.items()}
    name = {"title": "Plan", "type": "string", "enum": [plan.name], "default": plan.name, "position": 0}
    fields = {
        word: _number(published, field, given[word]) | {"position": place}
        for place, (word, field) in enumerate(published.words.items(), 1)
    }
    schema = {
        "title": "Parameters",
        "type": "object",
        "required": ["plan"],
        "properties": {"plan": name, **fields},
        "definitions": {},
    }
    return _entry(coordinator, plan.name, described(plan, published), schema, {"plan": plan.name, **given})


def _number(published: Published, field: str, value: float) -> dict[str, Any]:
    """The schema of an open number: the plan's words for it, and its range."""
    least, most = published.open[field]
    *tables, last = field.split(".")
    about = table_at(Plan, tuple(tables)).model_fields[last]
    whole = about.annotation is int
    return {
        "title": about.title or last.replace("_", " ").capitalize(),
        "description": f"{about.description or ''} From {least:g} to {most:g}.".strip(),
        "type": "integer" if whole else "number",
        "minimum": int(least) if whole else least,
        "maximum": int(most) if whole else most,
        "default": value,
    }


def described(plan: Plan, published: Published) -> str:
    """A published plan in a few lines, for the page of its deployment."""
    rules = plan.privacy
    privacy = "no differential privacy" if rules.unit == "none" else f"epsilon {rules.epsilon:g} for each {rules.unit}"
    signed = ", from a template that an author of the consortium has signed" if published.template else ""
    return (
        f"{plan.task} on the data set {plan.data}, over {', '.join(plan.sites)}: {plan.rounds} rounds, a sum needs "
        f"{plan.protection.threshold} sites, {privacy}{signed}. Open: {', '.join(published.open) or 'nothing'}.\n\n"
        "The coordinator's own copy of this plan is what runs; fedseal coordinator publish replaces it."
    )


def _entry(coordinator: str, name: str, about: str, schema: dict[str, Any], parameters: Mapping[str, Any]) -> Entry:
    return Entry(
        flow=TRAINING,
        name=marked(name, coordinator),
        pool=coordinator_pool(coordinator),
        description=about,
        schema=schema,
        parameters=parameters,
        tags=(TAG, mark_of(coordinator)),
    )


def unresolved(plan: Plan) -> dict[str, Any]:
    """A plan for the form: what follows from the roster is 0 there, so that it still does when sites are edited."""
    fields = plan.model_dump(mode="json")
    follows = fields | {"min_sites": 0, "protection": fields["protection"] | {"threshold": 0}}
    return follows if make_plan(follows, source="form").digest == plan.digest else fields
