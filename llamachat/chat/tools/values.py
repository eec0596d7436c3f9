"""Tools, and the calls of them that belong to an answer: frozen values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

WrittenCall = tuple[str, str]
"""The name and the arguments as a model wrote them, before anybody has looked at them."""


@dataclass(frozen=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of an object: a property for each parameter, in order."""

    def as_json(self) -> dict[str, Any]:
        """In the form that chat templates know, with its keys in their order."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCall:
    """What the model asks for."""

    name: str
    arguments: str
    """A JSON object."""
    id: str
    """Nine letters and digits, which is what Mistral wants; other families have no use for it."""

    def parsed(self) -> dict[str, Any]:
        """The arguments by name."""
        arguments: dict[str, Any] = json.loads(self.arguments)
        return arguments

    def __str__(self) -> str:
        """For people: one line, whatever the model wrote."""
        name = self.name if self.name.isidentifier() else write_json(self.name)
        return f"{name}({self.arguments})"


@dataclass(frozen=True)
class ToolResult:
    """What came of a call."""

    text: str
    is_error: bool = False

    def __str__(self) -> str:
        """As the model sees it."""
        return f"Error: {self.text}" if self.is_error else self.text


LOST = ToolResult("It was interrupted, and nothing is known of its result.", is_error=True)


@dataclass(frozen=True)
class ToolStep:
    """What a model wrote before it called tools, its calls, and what came of them."""

    text: str
    calls: tuple[ToolCall, ...]
    results: tuple[ToolResult, ...] = ()
    """One for each call, in order; fewer while they are made, or where the program was killed meanwhile."""
    reasoning: str = ""
    """What the model thought before all that."""

    @property
    def outcomes(self) -> Iterator[tuple[ToolCall, ToolResult]]:
        """Every call with its result."""
        return zip_longest(self.calls, self.results, fillvalue=LOST)  # type: ignore[arg-type]


def write_json(value: Any) -> str:
    """As `tojson` of chat templates does."""
    return json.dumps(value, ensure_ascii=False)


def describe_steps(steps: tuple[ToolStep, ...]) -> Iterator[str]:
    """For people: what was written before the calls, each call, and its result."""
    for step in steps:
        if step.text:
            yield step.text
        for call, result in step.outcomes:
            yield f"→ {call}"
            yield f"← {result}"


def steps_to_json(steps: tuple[ToolStep, ...]) -> list[dict[str, Any]]:
    """For the history and for exported conversations."""
    return [
        {
            "text": step.text,
            **({"reasoning": step.reasoning} if step.reasoning else {}),
            "calls": [{"name": call.name, "arguments": call.arguments, "id": call.id} for call in step.calls],
            "results": [{"text": result.text, "is_error": result.is_error} for result in step.results],
        }
        for step in steps
    ]


def steps_from_json(parsed: Any) -> tuple[ToolStep, ...]:
    """Steps from anywhere; raise ValueError for what is none."""
    if not isinstance(parsed, list):
        raise ValueError("no list of steps")
    return tuple(map(_step, parsed))


def _step(parsed: Any) -> ToolStep:
    match parsed:
        case {"text": str(text), "calls": [_, *_] as calls, "results": [*results]} if len(results) <= len(calls):
            reasoning = parsed.get("reasoning", "")
            if isinstance(reasoning, str):
                return ToolStep(text, tuple(map(_call, calls)), tuple(map(_result, results)), reasoning)
    raise ValueError("no step")


def _call(parsed: Any) -> ToolCall:
    match parsed:
        case {"name": str(name), "arguments": str(arguments), "id": str(id_)} if type(json.loads(arguments)) is dict:
            return ToolCall(name, arguments, id_)
    raise ValueError("no call")


def _result(parsed: Any) -> ToolResult:
    match parsed:
        case {"text": str(text), "is_error": bool(is_error)}:
            return ToolResult(text, is_error)
    raise ValueError("no result")
