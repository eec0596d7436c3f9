"""JSON Schema → GBNF: whatever the grammar lets through is JSON, and valid except for what is said.

Dialects from draft 4 to 2020-12 (https://json-schema.org/specification), as far as a grammar can express them. What
it cannot is either refused or named in `notes`; nothing is ignored silently and nothing is fetched. The grammar may
be narrower than the schema: objects have the properties that are listed, in that order, unless
`additionalProperties` asks for others, and formats have their usual form.

llama-cpp-python's own `json_schema_to_gbnf` is not used: it lets line breaks into strings, which is no JSON, and
drops bounds of numbers, `uniqueItems`, unknown formats and whatever stands beside `$ref`, `anyOf` or a list of types.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from llamachat.chat.json_schema.formats import FORMATS
from llamachat.chat.json_schema.merge import SchemaConflict, merge_schemas
from llamachat.chat.json_schema.pattern import PatternError, pattern_to_gbnf
from llamachat.chat.json_schema.text import JSON_RULES, integers_between, numbers_between, one_of, quote, write_json
from llamachat.engine.gbnf import check_grammar
from llamachat.errors import BadGrammar, BadSchema

_MAX_DEPTH = 60
_MAX_SCHEMAS = 5000
_MAX_COUNT = 2000
"""What llama.cpp counts to."""
_MAX_BOUND = 10**15
_MAX_DECIMALS = 12

_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")

_ANNOTATIONS = {
    "$schema", "$id", "id", "$comment", "$defs", "definitions", "$anchor", "$vocabulary", "title", "description",
    "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType",
    "contentSchema", "discriminator", "type",
}  # fmt: skip
_BY_TYPE = {
    "object": {"properties", "required", "additionalProperties", "unevaluatedProperties"},
    "array": {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "unevaluatedItems"},
    "string": {"pattern", "format", "minLength", "maxLength"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set[str](),
    "null": set[str](),
}
"""Keywords that the grammar holds, by the type of value that they are about."""
_ELSEWHERE = {
    "object": {"patternProperties", "propertyNames", "minProperties", "maxProperties", "dependentRequired",
               "dependentSchemas", "dependencies"},
    "array": {"uniqueItems", "contains", "minContains", "maxContains"},
    "number": {"multipleOf"},
    "integer": {"multipleOf"},
}  # fmt: skip
"""Keywords that no grammar holds, by the type of value that they are about."""


@dataclass(frozen=True)
class SchemaGrammar:
    """A grammar in GBNF, and what of the schema it does not hold: the keyword and where, as JSON pointers."""

    text: str
    notes: Sequence[str]


def schema_to_grammar(schema: Any, source: Path | str) -> SchemaGrammar:
    """A grammar for a parsed schema; `source` is what errors call it. Raise `BadSchema` where none can be made."""
    compiler = _Compiler(schema, source)
    try:
        text = compiler.grammar()
        check_grammar(text, source)
    except _Impossible as error:
        raise BadSchema(source, error.place, "no value at all can be valid") from error
    except RecursionError as error:
        raise BadSchema(source, "", "it is nested too deeply") from error
    except BadGrammar as error:
        raise BadSchema(source, "", f"no grammar can be made of it ({_in_schema_words(error.problem)})") from error
    return SchemaGrammar(text, tuple(dict.fromkeys(compiler.notes)))


def _in_schema_words(problem: str) -> str:
    what = re.sub(r"^line \d+, column \d+: ", "", problem)
    return "a value would have to contain itself" if what.endswith(("never ends", "begin with itself")) else what


class _Impossible(Exception):
    """No value is valid here; what surrounds it may do without."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


class _Compiler:
    """Visits every subschema and makes a rule of it; references become rules that are compiled once."""

    def __init__(self, schema: Any, source: Path | str) -> None:
        self.notes: list[str] = []
        self._root = schema
        self._source = source
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._references: dict[str, str] = {}
        self._waiting: list[tuple[str, str]] = []
        self._n_schemas = 0
        self._depth = 0

    def grammar(self) -> str:
        self._rules["root"] = self._visit(self._root, "")
        while self._waiting:
            pointer, name = self._waiting.pop()
            self._rules[name] = self._visit(self._find(pointer, pointer), pointer)
        return "".join(f"{name} ::= {self._rules[name]}\n" for name in self._rules)

    # --- which kind of schema it is --------------------------------------------------------------------------

    def _visit(self, schema: Any, place: str) -> str:
        self._n_schemas += 1
        self._depth += 1
        if self._n_schemas > _MAX_SCHEMAS:
            raise self._bad(place, f"the schema has become too large (more than {_MAX_SCHEMAS} parts)")
        if self._depth > _MAX_DEPTH:
            raise self._bad(place, f"the schema is nested more than {_MAX_DEPTH} deep")
        try:
            return self._expression(schema, place)
        except SchemaConflict as error:
            raise self._bad(place, str(error)) from error
        finally:
            self._depth -= 1

    def _expression(self, schema: Any, place: str) -> str:
        if schema is False:
            raise _Impossible(place)
        if schema is True:
            return self._json("value")
        if not isinstance(schema, dict):
            raise self._bad(place, "there is no schema: an object, true or false is expected")
        if "$ref" in schema:
            return self._reference(schema, place)
        if "allOf" in schema:
            return self._visit(self._merged(_without(schema, "allOf"), schema["allOf"], place), place)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return self._choice(schema, keyword, place)
        if "const" in schema or "enum" in schema:
            return self._constants(schema, place)
        return self._typed(schema, place)

    def _typed(self, schema: Mapping[str, Any], place: str) -> str:
        wanted = schema.get("type")
        if wanted is None:
            wanted = [kind for kind in _TYPES if _BY_TYPE[kind] & schema.keys()][:1]
            if not wanted:
                self._note_rest(schema, "object", place)
                return self._json("value")
        kinds = wanted if isinstance(wanted, list) else [wanted]
        if unknown := [kind for kind in kinds if kind not in _TYPES]:
            raise self._bad(place, f"{unknown[0]!r} is no type")
        found = []
        for kind in kinds:
            self._note_rest(schema, kind, place)
            found += self._possible(_VISITORS[kind], self, schema, place, is_needed=len(kinds) == 1)
        if not found:
            raise _Impossible(place)
        return one_of(found)

    def _reference(self, schema: Mapping[str, Any], place: str) -> str:
        pointer = schema["$ref"]
        if not isinstance(pointer, str):
            raise self._bad(place, "$ref is not text")
        own = self._root.get("$id") if isinstance(self._root, dict) else None
        if isinstance(own, str) and own and pointer.startswith(own.rstrip("#") + "#"):
            pointer = pointer[len(own.rstrip("#")) :]
        if pointer != "#" and not pointer.startswith("#/"):
            raise self._bad(place, f"$ref {pointer!r} leads out of this file, and nothing is fetched")
        pointer = unquote(pointer[1:])
        rest = _without(schema, "$ref")
        if rest.keys() - _ANNOTATIONS or "type" in rest:
            return self._visit(self._merged(rest, [self._find(pointer, place)], place), place)
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
                raise self._bad(place, f"there is nothing at #{pointer}, which $ref names")
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
        rest = _without(schema, keyword)
        beside = rest if rest.keys() - _ANNOTATIONS or "type" in rest else {}
        alternatives = self._schemas(schema[keyword], keyword, place)
        found = []
        for i, alternative in enumerate(alternatives):
            whole = merge_schemas(beside, alternative) if beside else alternative
            found += self._possible(self._visit, whole, f"{place}/{keyword}/{i}")
        if not found:
            raise _Impossible(place)
        if keyword == "oneOf" and not all(
            _are_apart(self._resolved(a), self._resolved(b)) for a, b in combinations(alternatives, 2)
        ):
            self.notes.append(f"{place or '/'} oneOf (taken as anyOf)")
        return self._rule(one_of(found))

    def _constants(self, schema: Mapping[str, Any], place: str) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list):
            raise self._bad(place, "enum is not a list")
        if "const" in schema and "enum" in schema:
            values = [value for value in schema["enum"] if _is_same(value, schema["const"])]
        kinds = schema.get("type", list(_TYPES))
        kinds = kinds if isinstance(kinds, list) else [kinds]
        values = [value for value in values if any(_is_of_type(value, kind) for kind in kinds)]
        if not values:
            raise _Impossible(place)
        for keyword in schema.keys() - _ANNOTATIONS - {"const", "enum"}:
            self.notes.append(f"{place or '/'} {keyword}")
        return self._rule(one_of(write_json(value) for value in values))

    # --- one type --------------------------------------------------------------------------------------------

    def _object(self, schema: Mapping[str, Any], place: str) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict):
            raise self._bad(place, "properties is not an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self._bad(place, "required is not a list of names")
        more = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
        if not properties and not required and more in (None, True):
            return self._json("object")
        properties = properties | {name: {} if more is None else more for name in required if name not in properties}
        members = []
        for name, subschema in properties.items():
            at = f"{place}/properties/{str(name).replace('~', '~0').replace('/', '~1')}"
            is_required = name in required
            written = self._possible(self._visit, subschema, at, is_needed=is_required)
            members += [(f'{write_json(name)} ":" space {value}', is_required) for value in written]
        if more not in (None, False):
            members += self._further_members(more, list(properties), place)
        return self._rule(self._braces("{", self._members(members), "}"))

    def _further_members(self, schema: Any, names: Sequence[str], place: str) -> list[tuple[str, bool]]:
        """Members of other names than `names`, as one that is optional."""
        values = self._possible(self._visit, schema, f"{place}/additionalProperties")
        if not values:
            return []
        plain = [name for name in names if _is_plain(name)]  # others cannot be met: these keys have no escapes
        key = self._rule(f'"\\"" {self._other_names(plain)} "\\""') if names else self._json("string")
        member = self._rule(f'{key} ":" space {values[0]}')
        self._json("space")
        return [(f"{member} ({self._json('comma')} {member})*", False)]

    def _other_names(self, names: Sequence[str]) -> str:
        """The inside of a string that is none of `names`, by the tree of their beginnings; it has no escapes."""
        plain = self._rule(r'[^"\\\x00-\x1F\x7F\uD800-\uDFFF]')
        nexts = sorted({name[0] for name in names if name})
        found = ["" if "" in names else '""']
        for c in nexts:
            tails = [name[1:] for name in names if name.startswith(c)]
            found.append(f"{quote(c)} {self._other_names(tails)}")
        shown = "".join(f"\\U{ord(c):08X}" for c in nexts)
        found.append(rf'[^"\\\x00-\x1F\x7F\uD800-\uDFFF{shown}] {plain}*')
        return self._rule(one_of(part for part in found if part))

    def _members(self, members: Sequence[tuple[str, bool]]) -> tuple[str, bool]:
        """Members in order, commas between them; and whether there may be none."""
        comma = self._json("comma")
        first: list[str] = []  # ways to begin, by the member that comes first
        tail = ""
        may_be_empty = True
        for member, is_required in reversed(members):
            name = self._rule(member)
            beginning = f"{name} {tail}".strip()
            if is_required:
                first, may_be_empty = [beginning], False
                tail = self._rule(f"{comma} {beginning}")
            else:
                first.insert(0, beginning)
                tail = self._rule(f"({comma} {name})? {tail}".strip())
        return (one_of(first) if first else "", may_be_empty)

    def _array(self, schema: Mapping[str, Any], place: str) -> str:
        least, most = self._counts(schema, "minItems", "maxItems", place)
        items, first = schema.get("items"), schema.get("prefixItems", [])
        if isinstance(items, list):  # draft 4 to 2019-09
            items, first = schema.get("additionalItems"), items
        if not isinstance(first, list):
            raise self._bad(place, "prefixItems is not a list")
        if items is None:
            items = {} if least > len(first) or not first else False
        parts = []
        for i, subschema in enumerate(first if most is None else first[:most]):
            at = f"{place}/prefixItems/{i}"
            parts += self._possible(self._visit, subschema, at, is_needed=i < least)
            if len(parts) <= i:
                items, first = False, first[:i]
                break
        n_more = None if most is None else max(0, most - len(first))
        rest = self._possible(self._visit, items, f"{place}/items", is_needed=least > len(first))
        return self._rule(self._braces("[", self._elements(parts, rest, least, n_more), "]"))

    def _elements(self, first: Sequence[str], rest: Sequence[str], least: int, n_more: int | None) -> tuple[str, bool]:
        """Elements with commas between them, the last ones repeated; and whether there may be none."""
        comma = self._json("comma")
        more = ""
        if rest and n_more != 0:
            element = self._rule(rest[0])
            further = self._rule(f"{comma} {element}")
            n_needed = max(0, least - len(first))
            if first:
                more = f"{further}{{{n_needed},{'' if n_more is None else n_more}}}"
            else:
                tail = f"{further}{{{max(0, n_needed - 1)},{'' if n_more is None else n_more - 1}}}"
                return f"{element} {tail}", least == 0
        for i in range(len(first) - 1, -1, -1):
            element = f"{self._rule(first[i])} {more}".strip()
            more = element if i == 0 else self._rule(f"{comma} {element}")
            if i >= max(least, 1):
                more = f"({more})?"
        return more, least == 0

    def _string(self, schema: Mapping[str, Any], place: str) -> str:
        least, most = self._counts(schema, "minLength", "maxLength", place)
        pattern, what = schema.get("pattern"), schema.get("format")
        if pattern is None and isinstance(what, str) and what in FORMATS:
            pattern = FORMATS[what]
        elif what is not None:
            self.notes.append(f"{place or '/'} format {what}")
        if pattern is None:
            counts = "*" if (least, most) == (0, None) else f"{{{least},{'' if most is None else most}}}"
            return self._json("string") if counts == "*" else self._rule(f'"\\"" {self._json("char")}{counts} "\\""')
        if least or most is not None:
            self.notes.append(f"{place or '/'} minLength, maxLength (beside a pattern or format)")
        if not isinstance(pattern, str):
            raise self._bad(place, "pattern is not text")
        self._json("char")
        try:
            return self._rule(f'"\\"" {pattern_to_gbnf(pattern)} "\\""')
        except PatternError as error:
            raise self._bad(place, f"the pattern {pattern[:80]!r} cannot be held: {error}") from error

    def _number(self, schema: Mapping[str, Any], place: str) -> str:
        (low, low_open), (high, high_open) = self._bounds(schema, place)
        if low is None and high is None:
            return self._json("number")
        written = numbers_between(low, high, low_open=low_open, high_open=high_open)
        return self._rule(self._possible_value(written, place))

    def _integer(self, schema: Mapping[str, Any], place: str) -> str:
        (low, low_open), (high, high_open) = self._bounds(schema, place)
        if low is None and high is None:
            return self._json("integer")
        least = None if low is None else math.floor(low) + 1 if low_open else math.ceil(low)
        most = None if high is None else math.ceil(high) - 1 if high_open else math.floor(high)
        return self._rule(self._possible_value(integers_between(least, most), place))

    def _boolean(self, _schema: Mapping[str, Any], _place: str) -> str:
        return self._json("boolean")

    def _null(self, _schema: Mapping[str, Any], _place: str) -> str:
        return self._json("null")

    # --- parts of them ---------------------------------------------------------------------------------------

    def _bounds(
        self, schema: Mapping[str, Any], place: str
    ) -> tuple[tuple[Decimal | None, bool], tuple[Decimal | None, bool]]:
        """Lower and upper bound, each with whether it is excluded. One that the longest numbers keep to is none."""
        low = self._bound(schema, "minimum", "exclusiveMinimum", place)
        high = self._bound(schema, "maximum", "exclusiveMaximum", place)
        if low[0] is not None and low[0] < -_MAX_BOUND:
            low = None, False
        if high[0] is not None and high[0] > _MAX_BOUND:
            high = None, False
        for bound in (low[0], high[0]):
            if bound is not None and (abs(bound) > _MAX_BOUND or -int(bound.as_tuple().exponent) > _MAX_DECIMALS):
                raise self._bad(place, f"a bound has too many digits ({bound})")
        return low, high

    def _bound(self, schema: Mapping[str, Any], closed: str, opened: str, place: str) -> tuple[Decimal | None, bool]:
        value, exclusive = schema.get(closed), schema.get(opened)
        if isinstance(exclusive, bool):  # draft 4
            return (None if value is None else self._decimal(value, closed, place)), exclusive
        found = [
            (self._decimal(bound, name, place), name == opened)
            for name, bound in ((closed, value), (opened, exclusive))
            if bound is not None
        ]
        if not found:
            return None, False
        sign = 1 if closed == "minimum" else -1
        return max(found, key=lambda entry: (sign * entry[0], entry[1]))

    def _decimal(self, value: Any, name: str, place: str) -> Decimal:
        if not _is_number(value):
            raise self._bad(place, f"{name} is not a number")
        return Decimal(str(value)).normalize() + 0

    def _counts(self, schema: Mapping[str, Any], low: str, high: str, place: str) -> tuple[int, int | None]:
        least, most = schema.get(low, 0), schema.get(high)
        for name, value in ((low, least), (high, 0 if most is None else most)):
            if not _is_number(value) or value != int(value) or value < 0:
                raise self._bad(place, f"{name} is not a count")
        least, most = int(least), None if most is None else int(most)
        if least > _MAX_COUNT:
            raise self._bad(place, f"{low} {least} is more than a grammar can count ({_MAX_COUNT})")
        if most is not None and most > _MAX_COUNT:
            self.notes.append(f"{place or '/'} {high} (more than {_MAX_COUNT})")
            most = None
        if most is not None and most < least:
            raise _Impossible(place)
        return least, most

    def _braces(self, opening: str, inside: tuple[str, bool], closing: str) -> str:
        space = self._json("space")
        content, may_be_empty = inside
        if not content:
            return f'"{opening}" {space} "{closing}"'
        filled = f"{content} {space}" if not may_be_empty else f"({content} {space})?"
        return f'"{opening}" {space} {filled} "{closing}"'

    @staticmethod
    def _possible(visit: Callable[..., str], *arguments: Any, is_needed: bool = False) -> list[str]:
        """What `visit` gives, or nothing where no value is possible and none is needed."""
        try:
            return [visit(*arguments)]
        except _Impossible:
            if is_needed:
                raise
            return []

    def _possible_value(self, written: str | None, place: str) -> str:
        if written is None:
            raise _Impossible(place)
        return written

    def _note_rest(self, schema: Mapping[str, Any], kind: str, place: str) -> None:
        """Note what the grammar does not hold; keywords about other types of values hold by themselves."""
        about_others = set().union(*_BY_TYPE.values(), *_ELSEWHERE.values()) - _ELSEWHERE.get(kind, set())
        for keyword in schema.keys() - _ANNOTATIONS - about_others:
            if not (keyword == "uniqueItems" and schema[keyword] is False):
                self.notes.append(f"{place or '/'} {keyword}")

    def _schemas(self, value: Any, keyword: str, place: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._bad(place, f"{keyword} is not a list of schemas")
        return value

    def _rule(self, expression: str) -> str:
        """A rule of its own for an expression, or the one that there is."""
        name = self._names.get(expression)
        if name is None:
            name = self._names[expression] = f"r{len(self._names)}"
            self._rules[name] = expression
        return name

    def _json(self, name: str) -> str:
        """One of the rules for JSON of any shape, with those that it needs."""
        if name not in self._rules:
            self._rules[name] = JSON_RULES[name]
            for needed in _names_in(JSON_RULES[name]):
                self._json(needed)
        return name

    def _bad(self, place: str, problem: str) -> BadSchema:
        return BadSchema(self._source, place, problem)


_VISITORS: dict[str, Callable[[_Compiler, Mapping[str, Any], str], str]] = {
    kind: getattr(_Compiler, f"_{kind}") for kind in _TYPES
}


def _names_in(rule: str) -> Iterator[str]:
    outside = re.sub(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]', " ", rule)
    return (name for name in re.findall(r"[a-z]+", outside) if name in JSON_RULES)


def _without(schema: Mapping[str, Any], keyword: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != keyword}


def _are_apart(a: Any, b: Any) -> bool:
    """Whether it is plain to see that no value satisfies both: other types, or other constants."""
    if not isinstance(a, dict) or not isinstance(b, dict):
        return a is False or b is False
    values: list[Any] = [[side["const"]] if "const" in side else side.get("enum") for side in (a, b)]
    if isinstance(values[0], list) and isinstance(values[1], list):
        return not any(_is_same(x, y) for x in values[0] for y in values[1])
    kinds = [_kinds(side) for side in (a, b)]
    if all(kinds) and not kinds[0] & kinds[1]:
        return True
    properties = [side.get("properties", {}) for side in (a, b)]
    needed = set(a.get("required", ())) & set(b.get("required", ()))
    return kinds == [{"object"}] * 2 and any(
        _are_apart(properties[0][name], properties[1][name]) for name in needed if all(name in p for p in properties)
    )


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    kinds = schema.get("type", [])
    found = set(kinds if isinstance(kinds, list) else [kinds])
    return found | {"integer"} if "number" in found else found


def _is_of_type(value: Any, kind: str) -> bool:
    match kind:
        case "integer":
            return _is_number(value) and bool(value == int(value))
        case "number":
            return _is_number(value)
    return isinstance(value, {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}[kind])


def _is_plain(name: str) -> bool:
    """Whether it stands in a JSON string as it is."""
    return write_json(name) == quote(f'"{name}"')


def _is_number(value: Any) -> bool:
    """Whether JSON has it as a number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _is_same(a: Any, b: Any) -> bool:
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)
