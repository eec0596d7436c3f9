"""The keywords of JSON Schema, by what becomes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")

ANNOTATIONS = {
    "$schema", "$id", "id", "$comment", "$defs", "definitions", "$anchor", "$vocabulary", "title", "description",
    "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType",
    "contentSchema", "discriminator", "type",
}  # fmt: skip
BY_TYPE = {
    "object": {"properties", "required", "additionalProperties", "unevaluatedProperties"},
    "array": {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "unevaluatedItems"},
    "string": {"pattern", "format", "minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set[str](),
    "null": set[str](),
}
"""Keywords that the grammar holds, by the type of value that they are about."""
ELSEWHERE = {
    "object": {"patternProperties", "propertyNames", "minProperties", "maxProperties", "dependentRequired",
               "dependentSchemas", "dependencies"},
    "array": {"uniqueItems", "contains", "minContains", "maxContains"},
    "number": {"multipleOf"},
    "integer": {"multipleOf"},
}  # fmt: skip
"""Keywords that no grammar holds, by the type of value that they are about."""


def unheld(schema: Mapping[str, Any], kind: str) -> Iterator[str]:
    """What the grammar does not hold of a schema for that type; keywords about other types hold by themselves."""
    about_others = set().union(*BY_TYPE.values(), *ELSEWHERE.values()) - ELSEWHERE.get(kind, set())
    for keyword in schema.keys() - ANNOTATIONS - about_others:
        if not (keyword == "uniqueItems" and schema[keyword] is False):
            yield keyword


def says_more(schema: Mapping[str, Any]) -> bool:
    """Whether a schema says anything about values, beside notes to people."""
    return bool(schema.keys() - ANNOTATIONS) or "type" in schema


def without(schema: Mapping[str, Any], keyword: str) -> dict[str, Any]:
    """A copy without that keyword."""
    return {key: value for key, value in schema.items() if key != keyword}
