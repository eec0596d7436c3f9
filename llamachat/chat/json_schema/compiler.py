"""Subschemas of every kind → rules: references, combinations, constants, and the types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from llamachat.chat.json_schema.bounds import Impossible
from llamachat.chat.json_schema.containers import array_rule, object_rule
from llamachat.chat.json_schema.keywords import ANNOTATIONS, BY_TYPE, TYPES, says_more, unheld, without
from llamachat.chat.json_schema.merge import SchemaConflict, merge_schemas
from llamachat.chat.json_schema.rules import Rules
from llamachat.chat.json_schema.scalars import boolean_rule, integer_rule, null_rule, number_rule, string_rule
from llamachat.chat.json_schema.text import one_of, write_json
from llamachat.chat.json_schema.values import are_apart, is_of_type, is_same
from llamachat.errors import BadSchema

_MAX_DEPTH = 60
_MAX_SCHEMAS = 5000


class Compiler:
    """Visits every subschema and makes a rule of it; references become rules that are compiled once."""

    def __init__(self, schema: Any, source: Path | str) -> None:
        self.notes: list[str] = []
        self._root = schema
        self._source = source
        self.rules = Rules()
        self._references: dict[str, str] = {}
        self._waiting: list[tuple[str, str]] = []
        self._n_schemas = 0
        self._depth = 0

    def grammar(self) -> str:
        """The whole grammar. Raises `BadSchema` or `Impossible`."""
        self.rules.define("root", self.visit(self._root, ""))
        while self._waiting:
            pointer, name = self._waiting.pop()
            self.rules.define(name, self.visit(self._find(pointer, pointer), pointer))
        return self.rules.text()

    # --- which kind of schema it is --------------------------------------------------------------------------

    def visit(self, schema: Any, place: str) -> str:
        """An expression for a subschema. Raises `BadSchema` or `Impossible`."""
        self._n_schemas += 1
        self._depth += 1
        if self._n_schemas > _MAX_SCHEMAS:
            raise self.bad(place, f"the schema has become too large (more than {_MAX_SCHEMAS} parts)")
        if self._depth > _MAX_DEPTH:
            raise self.bad(place, f"the schema is nested more than {_MAX_DEPTH} deep")
        try:
            return self._expression(schema, place)
        except SchemaConflict as error:
            raise self.bad(place, str(error)) from error
        finally:
            self._depth -= 1

    def _expression(self, schema: Any, place: str) -> str:
        if schema is False:
            raise Impossible(place)
        if schema is True:
            return self.rules.json("value")
        if not isinstance(schema, dict):
            raise self.bad(place, "there is no schema: an object, true or false is expected")
        if "$ref" in schema:
            return self._reference(schema, place)
        if "allOf" in schema:
            return self.visit(self._merged(without(schema, "allOf"), schema["allOf"], place), place)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._choice(schema, keyword, place)
        if "const" in schema or "enum" in schema:
            return self._constants(schema, place)
        return self._typed(schema, place)

    def _typed(self, schema: Mapping[str, Any], place: str) -> str:
        wanted = schema.get("type")
        if wanted is None:
            wanted = [kind for kind in TYPES if BY_TYPE[kind] & schema.keys()][:1]
            if not wanted:
                self._note_rest(schema, "object", place)
                return self.rules.json("value")
        kinds = wanted if isinstance(wanted, list) else [wanted]
        if unknown := [kind for kind in kinds if kind not in TYPES]:
            raise self.bad(place, f"{unknown[0]!r} is no type")
        found = []
        for kind in kinds:
            self._note_rest(schema, kind, place)
            found += self.possible(_RULES[kind], self, schema, place, is_needed=len(kinds) == 1)
        if not found:
            raise Impossible(place)
        return one_of(found)

    def _reference(self, schema: Mapping[str, Any], place: str) -> str:
        pointer = schema["$ref"]
        if not isinstance(pointer, str):
            raise self.bad(place, "$ref is not text")
        own = self._root.get("$id") if isinstance(self._root, dict) else None
        if isinstance(own, str) and own and pointer.startswith(own.rstrip("#") + "#"):
            pointer = pointer[len(own.rstrip("#")) :]
        if pointer != "#" and not pointer.startswith("#/"):
            raise self.bad(place, f"$ref {pointer!r} leads out of this file, and nothing is fetched")
        pointer = unquote(pointer[1:])
        rest = without(schema, "$ref")
        if says_more(rest):
            return self.visit(self._merged(rest, [self._find(pointer, place)], place), place)
        self._find(pointer, place)
        if pointer not in self._references:
            self._references[pointer] = name = f"ref{len(self._references)}"
            self._waiting.append((pointer, name))
        return self._references[pointer]

    def _find(self, pointer: str, place: str) -> Any:
        found = self._root
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isascii() and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise self.bad(place, f"there is nothing at #{pointer}, which $ref names")
        return found

    def _resolved(self, schema: Any) -> Any:
        """What a schema that is only a reference refers to."""
        for _ in range(_MAX_DEPTH):
            match schema:
                case {"$ref": str(pointer)} if pointer.startswith("#"):
                    schema = self._find(unquote(pointer[1:]), "")
        return schema

    def _merged(self, schema: Mapping[str, Any], others: Any, place: str) -> Any:
        result: Any = dict(schema)
        for other in self._schemas(others, "allOf", place):
            result = merge_schemas(result, other)
        return result

    def _choice(self, schema: Mapping[str, Any], keyword: str, place: str) -> str:
        rest = without(schema, keyword)
        beside = rest if says_more(rest) else {}
        alternatives = self._schemas(schema[keyword], keyword, place)
        found = []
        for i, alternative in enumerate(alternatives):
            whole = merge_schemas(beside, alternative) if beside else alternative
            found += self.possible(self.visit, whole, f"{place}/{keyword}/{i}")
        if not found:
            raise Impossible(place)
        if keyword == "oneOf" and not all(
            are_apart(self._resolved(a), self._resolved(b)) for a, b in combinations(alternatives, 2)
        ):
            self.notes.append(f"{place or '/'} oneOf (taken as anyOf)")
        return self.rules.add(one_of(found))

    def _constants(self, schema: Mapping[str, Any], place: str) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list):
            raise self.bad(place, "enum is not a list")
        if "const" in schema and "enum" in schema:
            values = [value for value in schema["enum"] if is_same(value, schema["const"])]
        kinds = schema.get("type", list(TYPES))
        kinds = kinds if isinstance(kinds, list) else [kinds]
        values = [value for value in values if any(is_of_type(value, kind) for kind in kinds)]
        if not values:
            raise Impossible(place)
        for keyword in schema.keys() - ANNOTATIONS - {"const", "enum"}:
            self.notes.append(f"{place or '/'} {keyword}")
        return self.rules.add(one_of(write_json(value) for value in values))

    @staticmethod
    def possible(visit: Callable[..., str], *arguments: Any, is_needed: bool = False) -> list[str]:
        """What `visit` gives, or nothing where no value is possible and none is needed."""
        try:
            return [visit(*arguments)]
        except Impossible:
            if is_needed:
                raise
            return []

    def _schemas(self, value: Any, keyword: str, place: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self.bad(place, f"{keyword} is not a list of schemas")
        return value

    def bad(self, place: str, problem: str) -> BadSchema:
        """The error for what is wrong at that place."""
        return BadSchema(self._source, place, problem)

    def _note_rest(self, schema: Mapping[str, Any], kind: str, place: str) -> None:
        self.notes += [f"{place or '/'} {keyword}" for keyword in unheld(schema, kind)]


_RULES: dict[str, Callable[[Compiler, Mapping[str, Any], str], str]] = {
    "object": object_rule,
    "array": array_rule,
    "string": string_rule,
    "number": number_rule,
    "integer": integer_rule,
    "boolean": boolean_rule,
    "null": null_rule,
}
