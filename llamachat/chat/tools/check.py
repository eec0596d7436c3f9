"""Whether a call's arguments are what the tool takes; schemas are those of `schema`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llamachat.chat.tools.values import Tool, ToolCall, write_json

_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_SHOWN_CHARACTERS = 60


def check_arguments(tool: Tool, call: ToolCall) -> str | None:
    """What is wrong with the arguments, in sentences for the model; None if nothing is."""
    properties, given = tool.parameters["properties"], call.parsed()
    problems = [f"{name} is missing." for name in tool.parameters.get("required", ()) if name not in given]
    for name, value in given.items():
        if name not in properties:
            problems.append(f"There is no argument {name}; there are: {', '.join(properties) or 'none'}.")
        else:
            problems += _problems(name, value, properties[name])
    return f"{tool.name} was not called. {' '.join(problems)}" if problems else None


def _problems(where: str, value: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    if value is None and schema.get("nullable"):
        return
    if choices := schema.get("anyOf"):
        if all(any(_problems(where, value, choice)) for choice in choices):
            yield f"{where} is {_shown(value)}, which is none of {_shown(choices)}."
        return
    kinds = schema["type"]
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not any(type(value) in _KINDS[kind] for kind in kinds):
        yield f"{where} must be {' or '.join(kinds)}, but is {_shown(value)}."
    elif "enum" in schema and not any(type(one) is type(value) and one == value for one in schema["enum"]):
        yield f"{where} must be one of {write_json(schema['enum'])}, but is {_shown(value)}."
    else:
        inner = schema.get("items", schema.get("additionalProperties"))
        for name, item in _items(value) if inner else ():
            yield from _problems(f"{where}{name}", item, inner)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        yield from ((f"[{i}]", item) for i, item in enumerate(value))
    if isinstance(value, dict):
        yield from ((f".{name}", item) for name, item in value.items())


def _shown(value: Any) -> str:
    text = write_json(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
