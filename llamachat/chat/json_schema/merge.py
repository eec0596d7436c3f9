"""Two JSON Schemas that a value must both satisfy → one, as far as that can be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_MAX_ALTERNATIVES = 100
_CLOSED = "additionalProperties"
_FREE = {
    "$schema", "$id", "id", "$comment", "$defs", "definitions", "$anchor", "title", "description", "default",
    "examples", "example", "deprecated", "readOnly", "writeOnly", "not", "if", "then", "else",
}  # fmt: skip
"""Keywords of which one is enough: they say nothing about values, or nothing that a grammar could hold."""


class SchemaConflict(ValueError):
    """Two schemas ask for things that cannot be put into one."""


def merge_schemas(a: Any, b: Any) -> Any:
    """A schema for what satisfies both; raise `SchemaConflict` if there is no way to write it."""
    if a is False or b is False:
        return False
    if a is True or b is True:
        return b if a is True else a
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        raise SchemaConflict("there is no schema: an object, true or false is expected")
    merged = dict(a)
    for key, value in b.items():
        if key not in a or a[key] == value:
            merged[key] = value
        elif key == "$ref":
            merged["allOf"] = [*merged.get("allOf", []), {"$ref": value}, *b.get("allOf", [])]
        elif key in _BOTH:
            merged[key] = _BOTH[key](a[key], value)
        elif key not in _FREE and key != "properties":
            raise SchemaConflict(f"{key} is asked for twice, each time otherwise")
    if "properties" in a or "properties" in b:
        merged["properties"] = _properties(a, b)
    return merged


def _properties(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Those of both. What only one of them lists must be what the other wants of properties that it does not list."""
    found = {}
    own, other = a.get("properties", {}), b.get("properties", {})
    if not isinstance(own, Mapping) or not isinstance(other, Mapping):
        raise SchemaConflict("properties is not an object")
    for name in {**own, **other}:
        wanted = [
            schema[name] if name in schema else side.get(_CLOSED, True) for schema, side in ((own, a), (other, b))
        ]
        found[name] = _all_of(*wanted)
    return found


def _all_of(a: Any, b: Any) -> Any:
    if a is True or b is True or a == b:
        return b if a is True else a
    if a is False or b is False:
        return False
    return {"allOf": [a, b]}


def _types(a: Any, b: Any) -> Any:
    wide = [set(kinds if isinstance(kinds, list) else [kinds]) for kinds in (a, b)]
    for kinds, others in (wide, wide[::-1]):
        if "number" in kinds and "integer" in others:
            kinds.add("integer")
    common = sorted(wide[0] & wide[1])
    if not common:
        raise SchemaConflict(f"the types {a} and {b} are asked for at once")
    return common


def _common(a: Any, b: Any) -> Any:
    if not isinstance(a, list) or not isinstance(b, list):
        raise SchemaConflict("enum is not a list")
    return [value for value in a if value in b]


def _either_of_both(a: Any, b: Any) -> Any:
    if not isinstance(a, list) or not isinstance(b, list) or len(a) * len(b) > _MAX_ALTERNATIVES:
        raise SchemaConflict("there are too many ways to combine alternatives")
    return [_all_of(x, y) for x in a for y in b]


def _joined(a: Any, b: Any) -> Any:
    if not isinstance(a, list) or not isinstance(b, list):
        raise SchemaConflict("a list is expected for allOf and required")
    return [*a, *(value for value in b if value not in a)]


def _extreme(choose: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def chosen(a: Any, b: Any) -> Any:
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (a, b)):
            raise SchemaConflict("a bound is not a number")
        return choose(a, b)

    return chosen


_BOTH: dict[str, Callable[[Any, Any], Any]] = {
    "type": _types,
    "enum": _common,
    "required": _joined,
    "allOf": _joined,
    "anyOf": _either_of_both,
    "oneOf": _either_of_both,
    "items": _all_of,
    "additionalProperties": _all_of,
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), _extreme(max)),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), _extreme(min)),
}
"""How two values of a keyword become one."""
