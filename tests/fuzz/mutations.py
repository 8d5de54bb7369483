"""Change JSON as JSON: bytes changed at random hardly ever parse, and would never reach what lies behind the parser.

A value anywhere in it is put in another's place, repeated, left out, or becomes one of those that break parsers. JSON
in a string, such as a message's body, is changed in the same way.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, "", [], {}, [[]], {"": {}}, "\0", "\ud800", "é", "x" * 5000, "0" * 64, "@everyone", "BF16"),
    *(0, -1, 1, 2**31, 2**40, 2**53, 2**63, 2**64, 10**400, -(10**400), 0.0, -0.0, 0.5, 1e-320, 1e308),
    *(float("nan"), float("inf"), "NaN", "1", "true", [0] * 3000, {str(number): 0 for number in range(500)}),
)
DEEP = 400
Place = tuple[Any, Any]  # what holds a value, and its key or index there


def mutate_json(content: bytes, random: Random) -> bytes | None:
    """Change a JSON text in one to three places; ``None`` where it does not parse. A first line of no JSON stays."""
    head, line, _ = content.partition(b"\n")
    kind = head + line if line and not head.startswith((b"{", b"[")) else b""
    changed = _changed(content.removeprefix(kind), random)
    return None if changed is None else kind + changed.encode(errors="surrogatepass")


def mutate_safetensors(content: bytes, random: Random) -> bytes | None:
    """Change a safetensors file's header, which is JSON behind its length; ``None`` where it does not parse."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = mutate_json(content[8:end], random)
    return None if header is None else len(header).to_bytes(8, "little") + header + content[end:]


def _changed(text: bytes | str, random: Random) -> str | None:
    try:
        top = [json.loads(text)]
    except (ValueError, RecursionError):
        return None
    for _ in range(random.randint(1, 3)):
        places = list(_places(top))
        _change(*random.choice(places), random, places)
    printed = json.dumps(top[0], ensure_ascii=random.random() < 0.5)
    if random.random() < 0.02:
        printed = printed.replace(random.choice(("0", '"')), "[" * DEEP, 1)
    return printed


def _change(holder: Any, key: Any, random: Random, places: list[Place]) -> None:
    value = holder[key]
    if isinstance(value, str) and value.startswith(("{", "[")) and random.random() < 0.9:
        holder[key] = _changed(value, random) or value
        return
    match random.randrange(7):
        case 0:
            holder[key] = deepcopy(random.choice(ODD))
        case 1:
            other, name = random.choice(places)
            holder[key] = deepcopy(other[name])
        case 2 if isinstance(holder, dict):
            del holder[key]
        case 2 | 3 if isinstance(holder, list) and len(holder) > 1:
            holder[key : key + 1] = [value] * random.choice((0, 2, 2, 3, 50))
        case 3 if isinstance(holder, dict):
            holder[random.choice(("extra", "é", "0", *holder))] = value
        case 4 if isinstance(value, int | float) and abs(value) < 2**70:
            holder[key] = random.choice((value + 1, value - 1, -value, value * 2, str(value)))
        case 4 | 5 if isinstance(value, str) and value:
            at = random.randrange(len(value))
            holder[key] = value[:at] + random.choice(("", "0", "a", "\\", '"', "\n", "é", "-")) + value[at + 1 :]
        case _ if isinstance(value, list):
            random.shuffle(value)
        case _:
            holder[key] = [value]


def _places(value: Any) -> Iterator[Place]:
    """Every place in a value where a value is; the first is the whole."""
    for key, below in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(below, dict | list):
            yield from _places(below)
