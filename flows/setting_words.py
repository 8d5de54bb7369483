"""What is wrong with a field of site.toml or coordinator.toml, in one line for its operator (SPEC 6.8)."""

import difflib
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

LONGEST_KEY = 100
EXAMPLES = {
    "name": 'write 1 to 32 of a-z, 0-9 and -, as in name = "north"',
    "url": 'write it with http:// or https://, as in url = "https://prefect.example/api"',
    "tasks": 'write module:Class for each, as in tasks = ["ml_tasks.heart:HeartDisease"]',
    "budget": 'write the budget group\'s name of a-z, 0-9 and -, or "none"',
}
"""How the fields look that must match a pattern."""
KINDS = {
    "int": "must be a whole number: write it without quotes",
    "float": "must be a number: write it without quotes",
    "bool": "must be true or false: write it without quotes",
    "string": "must be a text: write it in quotes",
    "list": 'must be a list: write it in brackets, as in ["one", "two"]',
    "model": "must be a table: write its fields below a line in brackets",
    "dict": "must be a table: write its fields below a line in brackets",
}
"""What the values of each kind are; the kind is the first word of the validator's error."""


def wrong_setting(error: ErrorDetails, table: type[BaseModel]) -> str:
    """Say what is wrong with a field of a party's file, and what to write.

    Args:
        error: the validator's.
        table: the model of the file, whose fields are compared with one that is unknown.
    """
    place, kind = tuple(str(part) for part in error["loc"]), error["type"]
    context = error.get("ctx", {})
    match kind:
        case "extra_forbidden":
            known = fields_beside(table, place)
            alike = difflib.get_close_matches(place[-1][:LONGEST_KEY], known, n=1)
            return f"is not a field here: {f'did you mean {alike[0]}?' if alike else 'write ' + ', '.join(known)}"
        case "missing":
            field = table_at(table, place)
            return f"is missing: write a table [{'.'.join(place)}]" if _fields(field) else "is missing: write it"
        case "string_pattern_mismatch":
            example = next((EXAMPLES[name] for name in reversed(place) if name in EXAMPLES), "write another word")
            return f"has another form: {example}"
        case "literal_error" | "enum":
            return f"must be one of these: write {context['expected']}"
    if place[0] == "data" and kind.startswith(("model", "dict")):
        return 'must be a folder or a table: write it as in heart = "/data/heart"'
    if (word := kind.split("_")[0]) in KINDS and kind.split("_")[1] in ("type", "parsing", "from", "attributes"):
        return KINDS[word]
    said = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{said}: write such a number" if "than" in said else f"{said}: correct it"


def fields_beside(table: Any, place: tuple[str, ...]) -> list[str]:
    """The fields that may stand where an unknown one does; none where any name may."""
    return list(_fields(table_at(table, place[:-1])))


def table_at(table: Any, place: tuple[str, ...]) -> Any:
    """What a field holds: the model of a table, where it is one."""
    for part in place:
        found = _fields(table).get(part)
        table = table if found is None else _model(found.annotation)  # any name may stand in a dict of tables
    return table


def _fields(table: Any) -> dict[str, Any]:
    return dict(table.model_fields) if isinstance(table, type) and issubclass(table, BaseModel) else {}


def _model(annotation: Any) -> Any:
    """The table that a field holds, through ``| None``, ``Annotated`` and ``dict``, if it holds one."""
    if get_origin(annotation) in (Union, UnionType, Annotated, dict):
        return next((found for one in get_args(annotation) if _fields(found := _model(one))), annotation)
    return annotation
