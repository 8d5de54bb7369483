"""What is wrong with a field of a plan, in words for whoever wrote it instead of a validator's (SPEC 6.1)."""

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

LONGEST_KEY = 100
"""Characters of a key that others are compared with: the time that takes grows with it, and anybody may send a plan."""
FORMS = {
    "name": "must be 1 to 40 of a-z, 0-9 and -",
    "task": "must be module:Class, as in ml_tasks.heart:Heart",
    "code": "must be the 64 hexadecimal digits that fedseal code TASK prints, or empty",
    "data": "must be a data set's name of a-z, 0-9 and -; its folder is what --data or site.toml names",
    "sites": "a site's name must be 1 to 32 of a-z, 0-9 and -",
}
"""How the fields look that must match a pattern."""
KINDS = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "string": "must be text in quotes",
    "tuple": 'must be a list, as in \'sites=["north", "east", "south"]\'',
}
"""What the values of each kind are; the kind is the first word of the validator's error."""


def wrong(error: ErrorDetails, plan: type[BaseModel]) -> str:
    """Say what is wrong with a field and what would be right.

    Args:
        error: the validator's.
        plan: the model of plans, whose fields are compared with one that is unknown.
    """
    place, kind, context = tuple(str(part) for part in error["loc"]), error["type"], error.get("ctx", {})
    match kind:
        case "extra_forbidden":
            return f"there is no such field: {_meant(place, plan)}"
        case "missing":
            return "is missing: add it"
        case "string_pattern_mismatch" if place and place[0] in FORMS:
            return FORMS[place[0]]
        case "too_short":
            return f"at least {context['min_length']} are needed, {context['actual_length']} are named"
        case "model_type" | "model_attributes_type" | "dict_type":
            if not place:
                return "is no plan, which is a table of fields"
            return f"is a table: set a field of it, as in {'.'.join(place)}.{_first(place, plan)}"
    said = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    number = kind.split("_")[0]
    return KINDS[number] if number in KINDS and kind.split("_")[1] in ("type", "parsing", "from") else said


def _meant(place: tuple[str, ...], plan: type[BaseModel]) -> str:
    """The field that was probably meant: one of that name in another table, else of the same one spelt alike."""
    fields = list(_fields(plan))
    *table, name = place
    beside = [field[-1] for field in fields if list(field[:-1]) == table]
    alike = difflib.get_close_matches(name[:LONGEST_KEY], beside, n=1)
    if found := [field for field in fields if field[-1] == name] or [(*table, one) for one in alike]:
        return f"did you mean {' or '.join('.'.join(field) for field in found)}?"
    return f"{'.'.join(table) or 'a plan'} has {', '.join(beside)}"


def _first(place: tuple[str, ...], plan: type[BaseModel]) -> str:
    """The first field of a table."""
    return next(field[-1] for field in _fields(plan) if field[:-1] == place)


def _fields(table: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of a table and of the tables in it, by its names from the top."""
    for name, field in table.model_fields.items():
        yield (*place, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, (*place, name))
