"""JSON values: of which type they are, and which schemas plainly have none in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def are_apart(a: Any, b: Any) -> bool:
    """Whether it is plain to see that no value satisfies both: other types, or other constants."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return a is False or b is False
    values: list[Any] = [[side["const"]] if "const" in side else side.get("enum") for side in (a, b)]
    if isinstance(values[0], list) and isinstance(values[1], list):
        return not any(is_same(x, y) for x in values[0] for y in values[1])
    kinds = [_kinds(side) for side in (a, b)]
    if all(kinds) and not kinds[0] & kinds[1]:
        return True
    properties = [side.get("properties", {}) for side in (a, b)]
    needed = set(a.get("required", ())) & set(b.get("required", ()))
    return kinds == [{"object"}] * 2 and any(
        are_apart(properties[0][name], properties[1][name]) for name in needed if all(name in p for p in properties)
    )


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    kinds = schema.get("type", [])
    found = set(kinds if isinstance(kinds, list) else [kinds])
    return found | {"integer"} if "number" in found else found


def is_of_type(value: Any, kind: str) -> bool:
    """Whether a JSON value is of that type."""
    match kind:
        case "integer":
            return is_number(value) and bool(value == int(value))
        case "number":
            return is_number(value)
    return isinstance(value, {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}[kind])


def is_number(value: Any) -> bool:
    """Whether JSON has it as a number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_same(a: Any, b: Any) -> bool:
    """Whether JSON has them as one value: true is not 1."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)
