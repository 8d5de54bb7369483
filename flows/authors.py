"""Plans that an author of the consortium has signed, with the fields that others may fill in (SPEC 6.13).

Where the consortium file pins authors, a site joins only what fits a template that one of them has signed: the plan
that follows from the template with its name and its open fields filled in, each within its range. Whoever else can
start a training, at the coordinator or in its Prefect server, chooses among these and can make no other.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from flows.plan import Plan, PlanError, make_plan
from protocols.contexts import SPEC_VERSION, canonical
from protocols.errors import Refused
from protocols.keys import Identity, InvalidKey, framed, verify

_STRICT = ConfigDict(extra="forbid", strict=True)
_Number = Annotated[float, Field(allow_inf_nan=False)]
MOST_BYTES = 2**20


@dataclass(frozen=True, slots=True, config=_STRICT)
class Template:
    """A plan with open fields, signed by its author.

    Attributes:
        author: the author's name.
        plan: canonical JSON of a plan, in which what follows from other fields may be left 0 or out.
        open: by field (``local.learning_rate``), the least and the most number that may stand there.
        signature: the author's, 128 hex digits, over ``signed``.
    """

    author: str
    plan: str
    open: dict[str, tuple[_Number, _Number]]
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @property
    def signed(self) -> bytes:
        """The bytes that are signed."""
        ranges = canonical({name: list(bounds) for name, bounds in self.open.items()})
        return framed(SPEC_VERSION, "template", self.author, self.plan, ranges)

    def to_json(self) -> str:
        """Its text, as kept in a file and sent to sites."""
        return canonical(
            {
                "author": self.author,
                "plan": self.plan,
                "open": {name: list(bounds) for name, bounds in self.open.items()},
                "signature": self.signature,
            }
        )


_TEMPLATE = TypeAdapter(Template)


def sign_template(author: Identity, raw: Mapping[str, Any], open_: Mapping[str, tuple[float, float]]) -> Template:
    """Sign a plan with open fields.

    Args:
        author: whose key signs.
        raw: the plan's fields as they are written, which must make a plan.
        open_: the least and the most of each field that others may fill in.

    Raises:
        PlanError: the fields make no plan, or an open field is no number of it or lies outside its range.
    """
    plan = make_plan(raw, source="plan")
    for name, (least, most) in open_.items():
        value = number_at(plan, name)
        if not least <= value <= most:
            raise PlanError(f"plan: {name} = {value:g} is not within its own range, {least:g} to {most:g}")
    unsigned = Template(author.name, canonical(dict(raw)), dict(open_), "0" * 128)
    return Template(unsigned.author, unsigned.plan, unsigned.open, author.sign(unsigned.signed).hex())


def read_template(text: str) -> Template:
    """Read a template's text; its signature is not checked.

    Raises:
        PlanError: it is none.
    """
    try:
        if len(text) > MOST_BYTES:
            raise ValueError
        return _TEMPLATE.validate_json(text)
    except (ValidationError, ValueError, RecursionError):
        raise PlanError("the signed template does not read as one: have its author sign it anew") from None


def check_template(site: str, plan: Plan, text: str, authors: Mapping[str, str]) -> None:
    """Refuse a plan that follows from no template of an author of the consortium.

    Args:
        site: who refuses.
        plan: what is asked for.
        text: the signed template that it is said to follow from; empty where there is none.
        authors: the pinned keys by name; where there are none, any plan may be asked for.

    Raises:
        Refused: there is no template, its author or signature is not the consortium's, or the plan is another.
    """
    if not authors:
        return
    if not text:
        raise Refused(site, "join", "the plan is not signed by an author of the consortium file")
    try:
        template = read_template(text)
        if template.author not in authors:
            raise Refused(site, "join", "the plan's author is not in the consortium file")
        verify(authors[template.author], template.signed, bytes.fromhex(template.signature))
        made = filled(template, plan)
    except InvalidKey:
        raise Refused(site, "join", f"the signature of the plan's author {template.author} does not verify") from None
    except PlanError as error:
        raise Refused(site, "join", str(error)) from None
    if made.to_json() != plan.to_json():
        raise Refused(
            site, "join", f"the plan is not the one that {template.author} has signed: a closed field differs"
        )


def filled(template: Template, plan: Plan) -> Plan:
    """The plan that a template gives with the name and the open fields of ``plan``.

    Raises:
        PlanError: an open field lies outside its range, or the template makes no plan.
    """
    try:
        raw = json.loads(template.plan)
        raw["name"] = plan.name
        raw["code"] = raw.get("code") or plan.code  # which each site compares with its own
        _fill(raw, template, plan)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise PlanError("the signed template makes no plan: have its author sign it anew") from None
    return make_plan(raw, source="signed template")


def _fill(raw: dict[str, Any], template: Template, plan: Plan) -> None:
    for name, (least, most) in template.open.items():
        value = number_at(plan, name)
        if not least <= value <= most:
            raise PlanError(f"the plan's {name} ({value:g}) may be from {least:g} to {most:g} in the signed template")
        *parents, last = name.split(".")
        place = raw
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value


def number_at(plan: Plan, name: str) -> float | int:
    """The number of a plan's field, as in ``local.learning_rate``.

    Raises:
        PlanError: there is no such field, or it is no number.
    """
    value: Any = plan.model_dump(mode="json")
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"plan: {name}: is no field that holds a number: only such may be left open")
    return value


def fitting_template(plan: Plan, folder: Path, authors: Mapping[str, str]) -> str:
    """Find the signed template in the coordinator's folder that a plan follows from; empty without authors.

    Raises:
        PlanError: there are authors, and no template of theirs that fits.
    """
    reasons = []
    for path in sorted(folder.glob("*.json")) if authors else ():
        try:
            text = path.read_text(encoding="utf-8").strip()
            check_template("coordinator", plan, text, authors)
            return text
        except Refused as refused:
            reasons.append(f"{path.name}: {refused.reason}")
    if authors:
        raise PlanError(
            f"plan: follows from no signed template in {folder} ({'; '.join(reasons) or 'there is none'}): have an "
            "author sign it with fedseal author sign"
        )
    return ""


def first_template(folder: Path, authors: Mapping[str, str]) -> Plan | None:
    """The plan of the first signed template, with which the form begins; ``None`` without authors or templates.

    Raises:
        PlanError: it does not read.
    """
    paths = sorted(folder.glob("*.json")) if authors else []
    if not paths:
        return None
    return make_plan(json.loads(read_template(paths[0].read_text(encoding="utf-8").strip()).plan), source=str(paths[0]))


def read_range(text: str) -> tuple[str, tuple[float, float]]:
    """Read ``field=least..most``.

    Raises:
        PlanError: it is written in another way.
    """
    name, _, bounds = text.partition("=")
    least, _, most = bounds.partition("..")
    try:
        return name, (float(least), float(most))
    except ValueError:
        raise PlanError(f"--open {text}: write it as field=least..most, as in --open rounds=1..100") from None


def ranges(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Read every ``--open``."""
    return dict(read_range(text) for text in texts)
