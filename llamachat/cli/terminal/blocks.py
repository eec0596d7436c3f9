"""Markdown that is still being written → blocks that can change no more, and the one that can.

A block is what is rendered once and then left alone: a paragraph, a heading, a list item, a table, a quote, or one line
of code. It is finished by the line that ends it, so whatever the pieces the text comes in, the blocks are the same.
CommonMark 0.31 decides what a line is, with two exceptions: a nested list item needs no exact indent, and every list
item stands alone, which is why it carries its marker and its indent.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Literal

LONGEST_BLOCK = 8192
"""Characters after which a block ends wherever it is: what is redrawn, and parsed again, has to stay small."""


@dataclass(frozen=True)
class Block:
    """A piece of Markdown without its indent and marker; of code, one line of it."""

    kind: Literal["text", "code"]
    source: str
    indent: int = 0
    marker: str = ""
    """Of a list item: `-`, `3.`, …"""
    gap: bool = False
    """Whether an empty line comes before it."""
    language: str = ""
    """Of code: what its fence says."""
    opens: bool = False
    """Whether this is the first line of some code."""


@dataclass
class _Open:
    """The block that later lines may still belong to."""

    lines: list[str]
    indent: int
    marker: str
    gap: bool

    def close(self) -> Block:
        return Block("text", "\n".join(self.lines), self.indent, self.marker, self.gap)


@dataclass
class _Fence:
    """Code that goes on until a line of at least as many of the same marks."""

    marks: str
    indent: int
    language: str

    def is_closed_by(self, text: str) -> bool:
        text = text.strip()
        return len(text) >= len(self.marks) and not text.strip(self.marks[0])


_FENCE = re.compile(r"(`{3,})([^`]*)$|(~{3,})(.*)$")
_HEADING = re.compile(r"#{1,6}(?:[ \t]|$)")
_RULE = re.compile(r"([-*_])(?:[ \t]*\1){2,}[ \t]*$")
_ITEM = re.compile(r"([-*+]|\d{1,9}[.)])(?:([ \t]+)|$)")
_UNDECIDED = re.compile(r"[ \t]*(?:`+|~+|#+|[-*+_=>|: \t]+|\d{1,9}[.)]?)[ \t]*")
"""The beginning of a line that may turn out to be no text at all."""


@dataclass
class BlockSplitter:
    """Takes text in pieces of any size and gives out blocks."""

    _partial: str = ""
    _open: _Open | None = None
    _fence: _Fence | None = None
    _opens: bool = False
    _gap: bool = False
    _offsets: list[int] = field(default_factory=list)
    """Where the contents of the list items around begin, outermost first."""

    def feed(self, text: str) -> list[Block]:
        """Take the next piece; return the blocks that are finished by it."""
        text, start = self._partial + text, 0
        blocks: list[Block] = []
        while True:
            end = text.find("\n", start, start + LONGEST_BLOCK)
            if end >= 0:
                blocks += self._line(text[start:end])
                start = end + 1
            elif len(text) - start >= LONGEST_BLOCK:  # no end in sight
                end = text.rfind(" ", start, start + LONGEST_BLOCK) + 1 or start + LONGEST_BLOCK
                blocks += [*self._line(text[start:end]), *self._close()]
                start = end
            else:
                self._partial = text[start:]
                return blocks

    def finish(self) -> list[Block]:
        """Return what is left; the text is over."""
        partial, self._partial = self._partial, ""
        return [*(self._line(partial) if partial else []), *self._close()]

    def unfinished(self) -> list[Block]:
        """What `finish` would return now, without a last line of which nobody can tell yet what it is."""
        ahead = copy.copy(self)
        ahead._open, ahead._offsets = copy.deepcopy(self._open), [*self._offsets]
        if _UNDECIDED.fullmatch(self._partial):
            ahead._partial = ""
        return ahead.finish()

    def _line(self, line: str) -> list[Block]:
        text = line.lstrip(" \t")
        indent = len(line[: len(line) - len(text)].expandtabs(4))
        if self._fence:
            return self._code_line(self._fence, line, text)
        if not text.strip():
            self._gap = True
            return self._close()
        if fence := _FENCE.match(text):
            return self._start_code(indent, fence[1] or fence[3], fence[2] or fence[4] or "")
        is_underline = self._open is not None and not text.rstrip().strip("-")
        if _HEADING.match(text) or (_RULE.match(text) and not is_underline):
            return self._single(text, indent)
        if item := self._item(text):
            return self._start_item(text, indent, item)
        return self._text_line(text, indent)

    def _start_code(self, indent: int, marks: str, info: str) -> list[Block]:
        blocks = self._start(indent)
        self._fence = _Fence(marks, indent, "".join(info.split(maxsplit=1)[:1]))
        self._opens = self._gap = True
        return blocks

    def _code_line(self, fence: _Fence, line: str, text: str) -> list[Block]:
        if fence.is_closed_by(text):
            self._fence, self._gap = None, True
            return []
        n_blank = min(fence.indent, len(line) - len(text))
        return [self._code(line[n_blank:], fence.indent, fence.language)]

    def _code(self, source: str, indent: int, language: str) -> Block:
        block = Block("code", source, indent, "", self._gap, language, self._opens)
        self._gap = self._opens = False
        return block

    def _item(self, text: str) -> re.Match[str] | None:
        """A list item: a number other than 1 only where it does not interrupt a paragraph."""
        item = _ITEM.match(text)
        interrupts = self._open is not None and not self._open.marker and not self._offsets
        if item and interrupts and (item[2] is None or item[1] not in ("-", "*", "+", "1.", "1)")):
            return None
        return item

    def _start_item(self, text: str, indent: int, item: re.Match[str]) -> list[Block]:
        blocks = self._start(indent)
        n_blank = len(item[2] or " ")
        offset = indent + len(item[1]) + (n_blank if n_blank <= 4 else 1)
        self._offsets.append(offset)
        self._open = _Open([text[item.end() :]], indent, item[1], self._gap)
        self._gap = False
        return blocks

    def _text_line(self, text: str, indent: int) -> list[Block]:
        is_quote = text.startswith(">")
        if self._open and not (is_quote and not self._open.lines[0].startswith(">")):
            self._open.lines.append(text)
            return self._close() if sum(map(len, self._open.lines)) > LONGEST_BLOCK else []
        blocks = self._start(indent)
        base = self._offsets[-1] if self._offsets else 0
        if indent >= base + 4:
            self._opens = self._gap or not blocks
            return [*blocks, self._code(" " * (indent - base - 4) + text, base, "")]
        self._open = _Open([text], base, "", self._gap)
        self._gap = False
        return blocks

    def _single(self, text: str, indent: int) -> list[Block]:
        """A heading, or a rule across the text."""
        blocks = self._start(indent)
        gap = self._gap or bool(blocks)
        self._gap = text.startswith("#")
        return [*blocks, Block("text", text, indent if self._offsets else 0, "", gap)]

    def _start(self, indent: int) -> list[Block]:
        """Close what is open, and leave the list items that a line with this indent is no part of."""
        blocks = self._close()
        while self._offsets and indent < self._offsets[-1]:
            self._offsets.pop()
        return blocks

    def _close(self) -> list[Block]:
        block, self._open = self._open, None
        return [block.close()] if block else []
