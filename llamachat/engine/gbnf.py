"""Checks a grammar in GBNF before a model is loaded, and says where it is wrong.

GBNF is described in llama.cpp's grammars/README.md; what is accepted here is what src/llama-grammar.cpp accepts,
less what would make it run for ever, fill the memory or never end an answer. Elements that name a token (`<think>`)
are refused: control tokens put nothing into an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from llamachat.errors import BadGrammar

_MAX_BYTES = 256 * 1024
_MAX_DEPTH = 100
_MAX_REPETITIONS = 2000
_MAX_EXPANDED = 200_000

_NAME = re.compile(r"[A-Za-z0-9-]+")
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_CHARACTER = re.compile(r'\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[tnr\\"\[\]-])|[^\\]', re.DOTALL)
_COUNTS = re.compile(r"\{\s*([0-9]+)\s*(?:(,)\s*([0-9]*)\s*)?\}")


@dataclass(frozen=True)
class _Item:
    """Something in a sequence: a rule, or characters (None)."""

    rule: str | None
    at: int
    is_optional: bool = False


_Rules = dict[str, list[list[_Item]]]  # a rule is its alternatives, each a sequence


def check_grammar(text: str, source: Path | str) -> None:
    """Raise `BadGrammar`, with line and column, for a grammar that llama.cpp cannot use or that no answer can end.

    `source` is what errors call it.
    """
    parser = _Parser(text, source)
    rules = parser.parse()
    if "root" not in rules:
        raise parser.error("there is no rule named root", None)
    for item in _references(rules):
        if item.rule not in rules:
            raise parser.error(f"there is no rule named {item.rule}", item.at)
    empty = _rules_with(rules, lambda item, found: item.is_optional or item.rule in found)
    for item in parser.repeated:
        if item.is_optional or item.rule in empty:
            raise parser.error("what is repeated here may be empty", item.at)
    if (again := _left_recursion(rules, empty)) is not None:
        raise parser.error("this rule may begin with itself", again.at)
    ending = _rules_with(rules, lambda item, found: item.rule is None or item.is_optional or item.rule in found)
    for item in _references(rules):
        if item.rule not in ending:
            raise parser.error("what this describes never ends", item.at)


class _Parser:
    """Recursive descent, by the rules of llama.cpp's own parser. Groups become rules, as there."""

    def __init__(self, text: str, source: Path | str) -> None:
        self._text = text
        self._source = source
        self._at = 0
        self._depth = 0
        self._n_symbols = 0
        self._n_expanded = 0
        self._names: set[str] = set()
        self._rules: _Rules = {}
        self.repeated: list[_Item] = []
        """What stands before * or + or {n,}."""

    def parse(self) -> _Rules:
        if len(self._text.encode("utf-8", "replace")) > _MAX_BYTES:
            raise self.error(f"it is larger than {_MAX_BYTES // 1024} KiB", None)
        if (nul := self._text.find("\0")) >= 0:
            raise self.error("there is a NUL character", nul)
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._text):
            self._rule()
        return self._rules

    def error(self, problem: str, at: int | None) -> BadGrammar:
        if at is None:
            return BadGrammar(self._source, problem)
        line, column = self._text.count("\n", 0, at) + 1, at - self._text.rfind("\n", 0, at)
        return BadGrammar(self._source, f"line {line}, column {column}: {problem}")

    def _rule(self) -> None:
        name = self._match(_NAME, "a rule's name is expected").group()
        self._count_name(name)
        self._skip(_SPACE)
        if not self._text.startswith("::=", self._at):
            raise self.error("::= is expected", self._at)
        self._at += 3
        self._skip(_SPACE_AND_LINES)
        self._rules[name] = self._alternatives(nested=False)
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            raise self.error("the end of the line is expected", self._at)
        self._skip(_SPACE_AND_LINES)

    def _alternatives(self, *, nested: bool) -> list[list[_Item]]:
        found = [self._sequence(nested=nested)]
        while self._text.startswith("|", self._at):
            self._at += 1
            self._skip(_SPACE_AND_LINES)
            found.append(self._sequence(nested=nested))
        return found

    def _sequence(self, *, nested: bool) -> list[_Item]:
        items: list[_Item] = []
        n_rules = 1  # that a repetition would multiply, as llama.cpp counts them
        space = _SPACE_AND_LINES if nested else _SPACE
        while (start := self._at) < len(self._text):
            head = self._text[start]
            if head in "*+?{":
                n_rules = self._repeat(items, n_rules)
            elif head in '"[':
                items.append(self._characters('"' if head == '"' else "]"))
                n_rules = 1
            elif head == ".":
                self._at += 1
                items.append(_Item(None, start))
                n_rules = 1
            elif head == "(":
                n_before = self._n_symbols
                items.append(self._group())
                n_rules = max(1, self._n_symbols - n_before)
            elif head in "<!":
                raise self.error("a token is named here, but an answer is made of text", self._at)
            elif name := _NAME.match(self._text, start):
                self._at = name.end()
                self._count_name(name.group())
                items.append(_Item(name.group(), start))
                n_rules = 1
            else:
                break
            self._skip(space)
        return items

    def _group(self) -> _Item:
        start = self._at
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self.error(f"parentheses are nested more than {_MAX_DEPTH} deep", self._at)
        self._at += 1
        self._skip(_SPACE_AND_LINES)
        self._n_symbols += 1
        name = f"({start}"  # no rule of the file can have it
        self._rules[name] = self._alternatives(nested=True)
        if not self._text.startswith(")", self._at):
            raise self.error(") is expected", self._at)
        self._at += 1
        self._depth -= 1
        return _Item(name, start)

    def _characters(self, end: str) -> _Item:
        start = self._at
        self._at += 1
        if end == "]" and self._text.startswith("^", self._at):
            self._at += 1
        first = self._at
        while not self._text.startswith(end, self._at):
            if self._at >= len(self._text):
                raise self.error(f"the {end} that ends this is missing", start)
            self._match(_CHARACTER, "this is no escape that GBNF knows")
        is_empty = self._at == first
        self._at += 1
        if is_empty and end == "]":
            raise self.error("there is no character between the brackets", start)
        return _Item(None, start, is_optional=is_empty)

    def _repeat(self, items: list[_Item], n_rules: int) -> int:
        at = self._at
        if not items or self._text.startswith('""', items[-1].at):
            raise self.error("there is nothing before this to repeat", self._at)
        least, most = self._counts()
        if most is not None and most < least:
            raise self.error("the first number is larger than the second", at)
        if most is not None and most > _MAX_REPETITIONS:
            most = None
        n_total = (most or least or 1) * n_rules
        if least > _MAX_REPETITIONS or n_total > _MAX_REPETITIONS:
            raise self.error(f"this comes to more than {_MAX_REPETITIONS} repetitions", at)
        self._n_expanded += n_total
        if self._n_expanded > _MAX_EXPANDED:
            raise self.error("all repetitions together are too many", at)
        self._n_symbols += 1 if most is None else most - least
        last = items[-1]
        if most is None:
            self.repeated.append(last)
        items[-1] = replace(last, is_optional=last.is_optional or least == 0)
        return n_total

    def _counts(self) -> tuple[int, int | None]:
        head = self._text[self._at]
        if head != "{":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[head]
        least, comma, most = self._match(_COUNTS, "{n}, {n,} or {n,m} is expected").groups()
        if len(least) > 9 or len(most or "") > 9:
            raise self.error("the number is too large", self._at)
        return int(least), (int(most) if most else None) if comma else int(least)

    def _count_name(self, name: str) -> None:
        if name not in self._names:
            self._names.add(name)
            self._n_symbols += 1

    def _match(self, pattern: re.Pattern[str], problem: str) -> re.Match[str]:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise self.error(problem, self._at)
        self._at = match.end()
        return match

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if match := pattern.match(self._text, self._at):
            self._at = match.end()


def _references(rules: _Rules) -> Iterator[_Item]:
    for alternatives in rules.values():
        yield from (item for item in chain.from_iterable(alternatives) if item.rule is not None)


def _rules_with(rules: _Rules, holds: Callable[[_Item, Set[str]], bool]) -> set[str]:
    """The smallest set of rules that have an alternative all of whose items hold, given that set."""
    users: dict[str, set[str]] = {}
    for name, alternatives in rules.items():
        for item in chain.from_iterable(alternatives):
            users.setdefault(item.rule or "", set()).add(name)
    found: set[str] = set()
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in found and any(all(holds(item, found) for item in sequence) for sequence in rules[name]):
            found.add(name)
            waiting += users.get(name, ())
    return found


def _left_recursion(rules: _Rules, empty: Set[str]) -> _Item | None:
    """The reference that leads a rule back to its own beginning, if there is one."""
    done: set[str] = set()
    for start in rules:
        path = {} if start in done else {start: _first_references(rules[start], empty)}  # in order
        while path:
            name, ways = next(reversed(path.items()))
            item = next(ways, None)
            if item is None:
                done.add(name)
                del path[name]
            elif item.rule in path:
                return item
            elif item.rule is not None and item.rule not in done:
                path[item.rule] = _first_references(rules[item.rule], empty)
    return None


def _first_references(alternatives: list[list[_Item]], empty: Set[str]) -> Iterator[_Item]:
    for sequence in alternatives:
        for item in sequence:
            if item.rule is not None:
                yield item
            if not (item.is_optional or item.rule in empty):
                break
