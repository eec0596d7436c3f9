"""Regular expressions as JSON Schema has them (ECMA-262) → GBNF for the inside of a JSON string."""

from __future__ import annotations

import re

from llamachat.chat.json_schema.text import Ranges, character_in_string, complement, one_of, union

_MAX_DEPTH = 50

_DIGITS: Ranges = ((0x30, 0x39),)
_WORD = union(_DIGITS, ((0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)))
_BLANK = union(((0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)),
               ((0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)))  # fmt: skip
_LINE_ENDS = union(((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)))
_CLASSES: dict[str, Ranges] = {"d": _DIGITS, "w": _WORD, "s": _BLANK}
_CLASSES |= {name.upper(): complement(ranges) for name, ranges in _CLASSES.items()}
_CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0x00}
_CODE = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}")
_COUNTS = re.compile(r"\{([0-9]{1,6})(?:(,)([0-9]{1,6})?)?\}")
_GROUP = re.compile(r"\((?:\?:|\?<[A-Za-z_]\w*>)?(?!\?)")


class PatternError(ValueError):
    """A pattern that is wrong, or that no grammar can express."""


def pattern_to_gbnf(pattern: str) -> str:
    """An expression for what stands between the quotes; it uses the rule `char`. A pattern may match anywhere in it."""
    return _Parser(pattern).parse()


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0

    def parse(self) -> str:
        alternatives = [self._anchored()]
        while self._take("|"):
            alternatives.append(self._anchored())
        if self._at < len(self._text):
            raise PatternError(f"there is a {self._text[self._at]} too many")
        return one_of(alternatives)

    def _anchored(self) -> str:
        before = "" if self._take("^") else "char*"
        inside = self._sequence(0)
        after = "" if self._take("$") else "char*"
        if before == after and not inside:
            inside, after = "", ""
        return " ".join(part for part in (before, inside, after) if part) or '""'

    def _alternatives(self, depth: int) -> str:
        found = [self._sequence(depth)]
        while self._take("|"):
            found.append(self._sequence(depth))
        return one_of(part or '""' for part in found)

    def _sequence(self, depth: int) -> str:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)$":
            parts.append(self._atom(depth) + self._count())
        if depth and self._text.startswith("$", self._at):
            raise PatternError("there is a $ within parentheses")
        return " ".join(parts)

    def _atom(self, depth: int) -> str:
        head = self._text[self._at]
        if head == "(":
            return self._group(depth + 1)
        if head in "^*+?{":
            raise PatternError(f"there is a {head} where it cannot be")
        self._at += 1
        if head == "[":
            return self._written(self._class())
        if head == ".":
            return self._written(complement(_LINE_ENDS))
        if head == "\\":
            return self._written(self._escape())
        return self._written(((ord(head), ord(head)),))

    def _group(self, depth: int) -> str:
        start = _GROUP.match(self._text, self._at)
        if start is None:
            raise PatternError(f"{self._text[self._at : self._at + 3]}…) looks around, which a grammar cannot")
        if depth > _MAX_DEPTH:
            raise PatternError(f"it has more than {_MAX_DEPTH} parentheses within each other")
        self._at = start.end()
        inside = self._alternatives(depth)
        if not self._take(")"):
            raise PatternError("a ) is missing")
        return inside if inside.startswith("(") and " | " in inside else f"({inside})"

    def _count(self) -> str:
        found = ""
        if self._at < len(self._text) and self._text[self._at] in "*+?":
            found = self._text[self._at]
            self._at += 1
        elif counts := _COUNTS.match(self._text, self._at):
            found = counts.group()
            self._at = counts.end()
        if found:
            self._take("?")  # how much is tried first makes no difference to what matches
        return found

    def _class(self) -> Ranges:
        is_negated = self._take("^")
        found: Ranges = ()
        while not self._take("]"):
            item = self._class_item()
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                last = self._class_item()
                if len(item) != 1 or len(last) != 1 or item[0][0] != item[0][1] or last[0][0] < item[0][0]:
                    raise PatternError("a range in brackets is the wrong way round, or not between two characters")
                item = ((item[0][0], last[0][1]),)
            found = union(found, item)
        return complement(found) if is_negated else found

    def _class_item(self) -> Ranges:
        if self._at >= len(self._text):
            raise PatternError("a ] is missing")
        head = self._text[self._at]
        self._at += 1
        if head != "\\":
            return ((ord(head), ord(head)),)
        if self._take("b"):
            return ((0x08, 0x08),)
        return self._escape()

    def _escape(self) -> Ranges:
        if code := _CODE.match(self._text, self._at):
            self._at = code.end()
            point = int(next(digits for digits in code.groups() if digits), 16)
            return ((point, point),)
        name = self._text[self._at : self._at + 1]
        self._at += 1
        if name in _CLASSES:
            return _CLASSES[name]
        if name in _CONTROLS:
            return ((_CONTROLS[name], _CONTROLS[name]),)
        if not name or name.isalnum():
            raise PatternError(f"\\{name} is not something that a grammar can express")
        return ((ord(name), ord(name)),)

    @staticmethod
    def _written(ranges: Ranges) -> str:
        written = character_in_string(ranges)
        if written is None:
            raise PatternError("it asks for characters that are not written in JSON")
        return written

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True
