"""A Python function → what a model is told of it: type hints and docstring become a JSON Schema.

Known types: str, int, float, bool; list[…], dict[str, …], Literal[…] of these; any of them or None, or several of
them. `Annotated[…, "text"]` and a Google-style `Args:` section describe a parameter. The form is that of
`transformers.utils.get_json_schema`, which chat templates are written for.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from llamachat.chat.tools.values import Tool

KNOWN_TYPES = "str, int, float, bool, list[…], dict[str, …], Literal[…], and these or None"

_SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean"}
_SECTION = re.compile(r"(Args|Arguments|Parameters|Returns?|Yields?|Raises|Examples?|Notes?):\s*")
_ARGUMENT_SECTIONS = ("Args", "Arguments", "Parameters")
_ARGUMENT = re.compile(r"(\s*)\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class BadTool(Exception):
    """A function that cannot be a tool: one sentence, and the next step."""

    def __init__(self, sentence: str, next_step: str) -> None:
        super().__init__(sentence)
        self.next_step = next_step


def describe_function(function: Callable[..., Any]) -> Tool:
    """The tool that a function is. Raises `BadTool` for one that no model could call."""
    name = function.__name__
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise BadTool(f"{name}() is a generator.", "Let it return a list, or begin its name with _ to keep it out.")
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:  # a hint in quotes is code of the file's author
        raise BadTool(f"The type hints of {name}() cannot be read ({error}).", "Correct them.") from error
    description, about = _read_docstring(inspect.getdoc(function) or "")
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        properties[parameter.name] = _property(name, parameter, hints, about)
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return Tool(name, description, schema)


def _property(
    function: str, parameter: inspect.Parameter, hints: dict[str, Any], about: dict[str, str]
) -> dict[str, Any]:
    where = f"Parameter {parameter.name} of {function}()"
    if parameter.kind not in _BY_NAME:
        raise BadTool(f"{where} cannot be given by name.", "Models give arguments by name: let it be an ordinary one.")
    if parameter.name not in hints:
        raise BadTool(f"{where} has no type hint.", f"Write one, such as {parameter.name}: int. Known: {KNOWN_TYPES}.")
    hint = hints[parameter.name]
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        texts = [extra for extra in extras if isinstance(extra, str)]
        about = {parameter.name: " ".join(texts)} if texts else about
    try:
        schema = _schema(hint)
    except TypeError as error:
        raise BadTool(f"{where} has the type {error}, which is not known.", f"Known: {KNOWN_TYPES}.") from error
    text = about.get(parameter.name)
    return {**schema, "description": text} if text else schema


def _schema(hint: Any) -> dict[str, Any]:
    """Raises TypeError with the name of a type that is not known."""
    origin, inner = get_origin(hint), get_args(hint)
    schema: dict[str, Any] | None = None
    if hint in _SIMPLE:
        schema = {"type": _SIMPLE[hint]}
    elif origin is Literal and all(type(value) in _SIMPLE for value in inner):
        schema = {"type": _one_or_list(_SIMPLE[type(value)] for value in inner), "enum": list(inner)}
    elif list in (hint, origin):
        schema = {"type": "array", **({"items": _schema(inner[0])} if inner else {})}
    elif dict in (hint, origin) and inner[:1] in ((), (str,)):
        schema = {"type": "object", **({"additionalProperties": _schema(inner[1])} if inner else {})}
    elif origin in (Union, types.UnionType):
        schema = _union(inner)
    if schema is None:
        raise TypeError(hint.__name__ if isinstance(hint, type) and not inner else str(hint).replace("typing.", ""))
    return schema


def _union(hints: Sequence[Any]) -> dict[str, Any]:
    choices = [_schema(hint) for hint in hints if hint is not type(None)]
    if len(choices) == 1:
        schema = choices[0]
    elif all(choice.keys() == {"type"} for choice in choices):
        schema = {"type": _one_or_list(choice["type"] for choice in choices)}
    else:
        schema = {"anyOf": choices}
    return {**schema, "nullable": True} if type(None) in hints else schema


def _one_or_list(kinds: Iterable[str]) -> str | list[str]:
    different = list(dict.fromkeys(kinds))
    return different[0] if len(different) == 1 else different


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the first section, and what the section on arguments says of each."""
    sections: dict[str, list[str]] = {"": []}
    section = ""
    for line in text.splitlines():
        if found := _SECTION.fullmatch(line):
            section = found[1]
            sections[section] = []
        else:
            sections[section].append(line)
    arguments = [line for name in _ARGUMENT_SECTIONS for line in sections.get(name, [])]
    return "\n".join(sections[""]).strip(), {name: " ".join(words) for name, words in _arguments(arguments)}


def _arguments(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each name with its words; lines that are indented further than the name go on with them."""
    name, words, indent = "", [""], -1
    for line in lines:
        found = _ARGUMENT.fullmatch(line)
        if found and (indent < 0 or len(found[1]) <= indent):
            if name:
                yield name, words
            name, words, indent = found[2], [found[3]], len(found[1])
        elif line.strip():
            words.append(line.strip())
    if name:
        yield name, words
