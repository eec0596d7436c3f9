"""A grammar in the making: named rules in GBNF."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llamachat.chat.json_schema.text import JSON_RULES


class Rules:
    """Rules by name: those for JSON of any shape, and those that were made for a schema."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def define(self, name: str, expression: str) -> None:
        """Give an expression that name."""
        self._rules[name] = expression

    def text(self) -> str:
        """The grammar."""
        return "".join(f"{name} ::= {rule}\n" for name, rule in self._rules.items())

    def add(self, expression: str) -> str:
        """A rule of its own for an expression, or the one that there is."""
        name = self._names.get(expression)
        if name is None:
            name = self._names[expression] = f"r{len(self._names)}"
            self._rules[name] = expression
        return name

    def json(self, name: str) -> str:
        """One of the rules for JSON of any shape, with those that it needs."""
        if name not in self._rules:
            self._rules[name] = JSON_RULES[name]
            for needed in _names_in(JSON_RULES[name]):
                self.json(needed)
        return name

    def braces(self, opening: str, inside: tuple[str, bool], closing: str) -> str:
        """What stands between two braces: its members, and whether there may be none."""
        space = self.json("space")
        content, may_be_empty = inside
        if not content:
            return f'"{opening}" {space} "{closing}"'
        filled = f"{content} {space}" if not may_be_empty else f"({content} {space})?"
        return f'"{opening}" {space} {filled} "{closing}"'


def _names_in(rule: str) -> Iterator[str]:
    outside = re.sub(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]', " ", rule)
    return (name for name in re.findall(r"[a-z]+", outside) if name in JSON_RULES)
