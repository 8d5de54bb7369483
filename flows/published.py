"""Plans that a coordinator has published: people start them by name, with the few numbers that were left open.

A published plan is a file in the coordinator's folder, which ``fedseal coordinator publish`` writes and nobody else.
The Prefect server shows a form for it, and its runs carry the plan's name and those numbers: whoever can write to the
server chooses among what was published, each number within its range, and changes no other word of it (SPEC 6.14).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.authors import number_at, read_template
from flows.plan import Plan, PlanError, make_plan
from protocols.contexts import canonical
from protocols.files import write_whole

PLAN_NAME = re.compile(r"[a-z0-9-]{1,40}")
MOST_BYTES = 2**20


class Timetable(BaseModel):
    """When a published plan runs by itself, as Prefect has it: a cron line or an interval."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    cron: str | None = None
    interval_s: float | None = Field(default=None, ge=60)
    timezone: str = "UTC"


class Published(BaseModel):
    """A plan that people start by its name.

    Attributes:
        plan: its fields as they were written: what follows from others still does when an open one is filled in.
        open: by field (``local.learning_rate``), the least and the most number that may stand there.
        timetable: when it runs by itself.
        template: the signed template that it is of, where the consortium has authors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: dict[str, Any]
    open: dict[str, tuple[float, float]] = Field(default_factory=dict)
    timetable: Timetable | None = None
    template: Annotated[str, Field(max_length=MOST_BYTES)] = ""

    @property
    def name(self) -> str:
        """The plan's."""
        return str(self.plan["name"])

    @property
    def words(self) -> dict[str, str]:
        """The open fields by the name that they have in the form, in which a dot would be a table."""
        return {field.replace(".", "_"): field for field in self.open}

    def filled(self, given: Mapping[str, object]) -> Plan:
        """The plan with numbers in its open fields; what is not given stays as it was published.

        Args:
            given: numbers by the names of ``words``.

        Raises:
            PlanError: a field is not open, its value is no number or outside its range, or no plan comes of it.
        """
        raw = json.loads(canonical(self.plan))
        for word, value in given.items():
            if word not in self.words:
                raise PlanError(f"{self.name}: {word[:40]!r}: is not left open in this plan: leave it out")
            field = self.words[word]
            least, most = self.open[field]
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise PlanError(f"{self.name}: {field}: must be a number from {least:g} to {most:g}")
            *tables, last = field.split(".")
            place = raw
            for table in tables:
                place = place.setdefault(table, {})
            place[last] = value
        return make_plan(raw, source=self.name)


def publishable(
    raw: Mapping[str, Any],
    open_: Mapping[str, tuple[float, float]],
    timetable: Timetable | None = None,
    template: str = "",
) -> Published:
    """Check a plan that is to be published.

    Args:
        raw: its fields as they were written.
        open_: the least and the most of each number that is left open.
        timetable: when it runs by itself.
        template: the signed template that it is of.

    Raises:
        PlanError: the fields make no plan; an open field is no number of it, or its plan is none at an end of its
            range; its own value is outside of it; or two open fields would have one name in the form.
    """
    published = Published(plan=dict(raw), open=dict(open_), timetable=timetable, template=template)
    plan = published.filled({})
    if len(published.words) < len(open_):
        raise PlanError(f"{plan.name}: two of the open fields have one name in the form: leave one of them out")
    for word, field in published.words.items():
        value, (least, most) = number_at(plan, field), open_[field]
        if not least <= value <= most:
            raise PlanError(f"{plan.name}: {field} = {value:g} is not within its own range, {least:g} to {most:g}")
        whole = isinstance(value, int) and least.is_integer() and most.is_integer()
        for end in (least, most):
            published.filled({word: int(end) if whole else end})
    return published


def of_template(text: str, timetable: Timetable | None = None) -> Published:
    """What a signed template publishes: its plan, and what its author has left open; its signature is not checked.

    Raises:
        PlanError: it does not read, or makes no plan.
    """
    template = read_template(text)
    try:
        raw = json.loads(template.plan)
    except ValueError:
        raise PlanError("the signed template makes no plan: have its author sign it anew") from None
    return publishable(raw, template.open, timetable, text)


def write_published(folder: Path, published: Published) -> None:
    """Publish a plan in the coordinator's folder, in place of what has its name."""
    folder.mkdir(mode=0o700, exist_ok=True)
    write_whole(folder / f"{published.name}.json", published.model_dump_json(indent=1).encode())


def read_published(folder: Path, name: str) -> Published:
    """Read a published plan.

    Args:
        folder: of what is published.
        name: the plan's, as anybody may have written it.

    Raises:
        PlanError: nothing of this name is published, or it does not read.
    """
    if not PLAN_NAME.fullmatch(name):
        raise PlanError("plan: is no plan, nor the name of one that is published: start one that the coordinator shows")
    path = folder / f"{name}.json"
    try:
        return Published.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise PlanError(f"plan: {name} is not published here: fedseal coordinator publish does it") from None
    except (OSError, ValidationError):
        raise PlanError(f"{path}: does not read as a published plan: publish it anew") from None


def all_published(folder: Path) -> list[Published]:
    """Every published plan that reads, by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(read_published(folder, path.stem))
        except PlanError:
            continue
    return found


def plan_of(parameters: Mapping[str, object], folder: Path) -> Plan:
    """The plan that a training's run asks for: a whole one, or a published one with its open numbers filled in.

    Args:
        parameters: the run's, as the server shows them: anybody may have written them.
        folder: of what is published.

    Raises:
        PlanError: there is none.
    """
    asked, others = parameters.get("plan"), {name: value for name, value in parameters.items() if name != "plan"}
    if isinstance(asked, str):
        return read_published(folder, asked).filled(others)
    if others:
        raise PlanError(f"{next(iter(others))[:40]!r}: is no parameter beside a whole plan: put it into the plan")
    return make_plan(asked, source="plan")
