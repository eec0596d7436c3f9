"""Objects and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llamachat.chat.json_schema.bounds import read_counts
from llamachat.chat.json_schema.text import one_of, quote, write_json

if TYPE_CHECKING:
    from llamachat.chat.json_schema.compiler import Compiler


def object_rule(compiler: Compiler, schema: Mapping[str, Any], place: str) -> str:
    """A rule for objects: their members in the order of `properties`."""
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    if not isinstance(properties, dict):
        raise compiler.bad(place, "properties is not an object")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise compiler.bad(place, "required is not a list of names")
    more = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
    if not properties and not required and more in (None, True):
        return compiler.rules.json("object")
    properties = properties | {name: {} if more is None else more for name in required if name not in properties}
    members = []
    for name, subschema in properties.items():
        at = f"{place}/properties/{str(name).replace('~', '~0').replace('/', '~1')}"
        is_required = name in required
        written = compiler.possible(compiler.visit, subschema, at, is_needed=is_required)
        members += [(f'{write_json(name)} ":" space {value}', is_required) for value in written]
    if more not in (None, False):
        members += _further_members(compiler, more, list(properties), place)
    return compiler.rules.add(compiler.rules.braces("{", _members(compiler, members), "}"))


def _further_members(compiler: Compiler, schema: Any, names: Sequence[str], place: str) -> list[tuple[str, bool]]:
    """Members of other names than `names`, as one that is optional."""
    values = compiler.possible(compiler.visit, schema, f"{place}/additionalProperties")
    if not values:
        return []
    plain = [name for name in names if _is_plain(name)]  # others cannot be met: these keys have no escapes
    key = compiler.rules.add(f'"\\"" {_other_names(compiler, plain)} "\\""') if names else compiler.rules.json("string")
    member = compiler.rules.add(f'{key} ":" space {values[0]}')
    compiler.rules.json("space")
    return [(f"{member} ({compiler.rules.json('comma')} {member})*", False)]


def _other_names(compiler: Compiler, names: Sequence[str]) -> str:
    """The inside of a string that is none of `names`, by the tree of their beginnings; it has no escapes."""
    plain = compiler.rules.add(r'[^"\\\x00-\x1F\x7F\uD800-\uDFFF]')
    nexts = sorted({name[0] for name in names if name})
    found = ["" if "" in names else '""']
    for c in nexts:
        tails = [name[1:] for name in names if name.startswith(c)]
        found.append(f"{quote(c)} {_other_names(compiler, tails)}")
    shown = "".join(f"\\U{ord(c):08X}" for c in nexts)
    found.append(rf'[^"\\\x00-\x1F\x7F\uD800-\uDFFF{shown}] {plain}*')
    return compiler.rules.add(one_of(part for part in found if part))


def _members(compiler: Compiler, members: Sequence[tuple[str, bool]]) -> tuple[str, bool]:
    """Members in order, commas between them; and whether there may be none."""
    comma = compiler.rules.json("comma")
    first: list[str] = []  # ways to begin, by the member that comes first
    tail = ""
    may_be_empty = True
    for member, is_required in reversed(members):
        name = compiler.rules.add(member)
        beginning = f"{name} {tail}".strip()
        if is_required:
            first, may_be_empty = [beginning], False
            tail = compiler.rules.add(f"{comma} {beginning}")
        else:
            first.insert(0, beginning)
            tail = compiler.rules.add(f"({comma} {name})? {tail}".strip())
    return (one_of(first) if first else "", may_be_empty)


def array_rule(compiler: Compiler, schema: Mapping[str, Any], place: str) -> str:
    """A rule for arrays."""
    least, most = read_counts(compiler, schema, "minItems", "maxItems", place)
    items, first = schema.get("items"), schema.get("prefixItems", [])
    if isinstance(items, list):  # draft 4 to 2019-09
        items, first = schema.get("additionalItems"), items
    if not isinstance(first, list):
        raise compiler.bad(place, "prefixItems is not a list")
    if items is None:
        items = {} if least > len(first) or not first else False
    parts = []
    for i, subschema in enumerate(first if most is None else first[:most]):
        at = f"{place}/prefixItems/{i}"
        parts += compiler.possible(compiler.visit, subschema, at, is_needed=i < least)
        if len(parts) <= i:
            items, first = False, first[:i]
            break
    n_more = None if most is None else max(0, most - len(first))
    rest = compiler.possible(compiler.visit, items, f"{place}/items", is_needed=least > len(first))
    return compiler.rules.add(compiler.rules.braces("[", _elements(compiler, parts, rest, least, n_more), "]"))


def _elements(
    compiler: Compiler, first: Sequence[str], rest: Sequence[str], least: int, n_more: int | None
) -> tuple[str, bool]:
    """Elements with commas between them, the last ones repeated; and whether there may be none."""
    comma = compiler.rules.json("comma")
    more = ""
    if rest and n_more != 0:
        element = compiler.rules.add(rest[0])
        further = compiler.rules.add(f"{comma} {element}")
        n_needed = max(0, least - len(first))
        if first:
            more = f"{further}{{{n_needed},{'' if n_more is None else n_more}}}"
        else:
            tail = f"{further}{{{max(0, n_needed - 1)},{'' if n_more is None else n_more - 1}}}"
            return f"{element} {tail}", least == 0
    for i in range(len(first) - 1, -1, -1):
        element = f"{compiler.rules.add(first[i])} {more}".strip()
        more = element if i == 0 else compiler.rules.add(f"{comma} {element}")
        if i >= max(least, 1):
            more = f"({more})?"
    return more, least == 0


def _is_plain(name: str) -> bool:
    """Whether it stands in a JSON string as it is."""
    return write_json(name) == quote(f'"{name}"')
