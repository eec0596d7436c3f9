"""Blocks of Markdown → rows of a terminal, with Rich.

Nothing of the text is lost or hidden: HTML and images stay as they are written, links show where they lead, line breaks
are kept. All text is made visible after parsing, too, since an entity may stand for a control character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from rich.markdown import CodeBlock, Heading, Markdown, TableDataElement, TableElement
from rich.segment import Segment
from rich.text import Text

from llamachat.cli.terminal.blocks import Block
from llamachat.cli.terminal.code import CodeLines
from llamachat.cli.terminal.escapes import visible

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult

_CODE_INDENT = 2
_NARROWEST = 10
"""Columns that a text keeps, however deep it is nested."""
_NARROWEST_COLUMN = 6
"""Cells of a table's column and the gap after it, so that a wide character has room."""


class BlockRenderer:
    """Renders the blocks of one answer in their order."""

    def __init__(self, console: Console) -> None:
        """`console` says what colours there are; nothing is printed on it."""
        self._console = console
        self._code = CodeLines("")
        self._is_first = True

    def final(self, blocks: Iterable[Block], columns: int) -> list[str]:
        """Rows, `columns` wide, of blocks that can change no more."""
        return self._rows(blocks, columns, keep=True)

    def changing(self, blocks: Iterable[Block], columns: int) -> list[str]:
        """The same for blocks that come again, when more of them is there."""
        before = self._code, self._is_first
        rows = self._rows(blocks, columns, keep=False)
        self._code, self._is_first = before
        return rows

    def _rows(self, blocks: Iterable[Block], columns: int, *, keep: bool) -> list[str]:
        rows: list[str] = []
        for block in blocks:
            block_rows = (self._code_rows if block.kind == "code" else self._text_rows)(block, columns, keep)
            if block_rows:
                rows += ["", *block_rows] if block.gap and not self._is_first else block_rows
                self._is_first = False
        return rows

    def _code_rows(self, block: Block, columns: int, keep: bool) -> list[str]:
        if block.opens:
            self._code = CodeLines(block.language)
        indent = min(block.indent + _CODE_INDENT, max(columns - _NARROWEST, 0))
        return self._render(self._code.line(visible(block.source), keep=keep), columns, " " * indent) or [""]

    def _text_rows(self, block: Block, columns: int, keep: bool) -> list[str]:
        indent = " " * min(block.indent, max(columns - _NARROWEST - len(block.marker), 0))
        source = block.source if keep else _close_inline(block.source)
        if not block.marker:
            return _without_blank_ends(self._render(_ChatMarkdown(source), columns, indent))
        marker = "•" if block.marker in "-*+" else block.marker
        rows = self._render(_ChatMarkdown(source), columns, indent + " " * (len(marker) + 1))
        rows = _without_blank_ends(rows) or [""]
        first = f"{indent}{marker} {rows[0][len(indent) + len(marker) + 1 :]}"
        return [first.rstrip(), *rows[1:]]

    def _render(self, renderable: RenderableType, columns: int, prefix: str) -> list[str]:
        options = self._console.options.update(width=max(columns - len(prefix), 1), height=None)
        lines = self._console.render_lines(renderable, options, pad=False)
        return [prefix + row if (row := self._row(line)) else "" for line in lines]

    def _row(self, line: Iterable[Segment]) -> str:
        from rich.console import COLOR_SYSTEMS

        if self._console.no_color:
            line = Segment.remove_color(line)
        segments = list(line)
        while segments and not _shows_blanks(segments[-1]):
            segment = segments.pop()
            if shown := segment.text.rstrip(" "):
                segments.append(Segment(shown, segment.style))
                break
        system = COLOR_SYSTEMS.get(self._console.color_system or "")
        return "".join(
            segment.style.render(segment.text, color_system=system) if segment.style else segment.text
            for segment in segments
        )


def _shows_blanks(segment: Segment) -> bool:
    style = segment.style
    return bool(style and (style.bgcolor or style.underline or style.reverse or style.strike))


def _without_blank_ends(rows: list[str]) -> list[str]:
    """Rich puts empty rows around some things; whether there is a gap is the text's matter."""
    while rows and not rows[0]:
        rows = rows[1:]
    while rows and not rows[-1]:
        rows = rows[:-1]
    return rows


class _PlainCode(CodeBlock):
    """Code inside of a quote: as it is, without a box."""

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        yield Text(str(self.text).rstrip("\n"), style="markdown.code", overflow="fold")


class _LeftHeading(Heading):
    """Without the box or the centring of some levels."""

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.justify = "left"
        text.stylize("bold")
        yield text


class _WholeCell(TableDataElement):
    """A word, or a text without blanks, that is too wide for its column goes on in the next row of it."""

    def __init__(self, justify: JustifyMethod) -> None:
        super().__init__(justify)
        self.content.overflow = "fold"  # Rich would cut it off


class _WholeTable(TableElement):
    """Where the columns would be too narrow for words, each row is a line of text."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        header = [self.header.row] if self.header and self.header.row else []
        rows = [*header, *(self.body.rows if self.body else ())]
        if options.max_width >= _NARROWEST_COLUMN * max((len(row.cells) for row in rows), default=0):
            yield from super().__rich_console__(console, options)
            return
        for row in rows:
            yield Text(" | ", overflow="fold").join(cell.content for cell in row.cells)


class _ChatMarkdown(Markdown):
    """Rich's Markdown, of tokens that hide nothing."""

    elements = Markdown.elements | {
        "heading_open": _LeftHeading,
        "fence": _PlainCode,
        "code_block": _PlainCode,
        "table_open": _WholeTable,
        "td_open": _WholeCell,
        "th_open": _WholeCell,
    }

    def __init__(self, source: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = source
        self.parsed = list(_visible_tokens(_parser().parse(source)))


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    return parser.disable(["html_block", "html_inline", "image", "code", "list", "reference"])


def _visible_tokens(tokens: Iterable[Token]) -> Iterator[Token]:
    for token in tokens:
        token.content = visible(token.content)
        token.attrs = _visible_values(token.attrs)
        if token.type == "softbreak":
            token.type = "hardbreak"
        if token.children:
            token.children = list(_visible_tokens(token.children))
        yield token


def _visible_values(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: visible(value) if isinstance(value, str) else value for key, value in attributes.items()}


_EMPHASIS = re.compile(r"(?<![^\s(\[\"'])\*(?=[^\s*])")


def _close_inline(source: str) -> str:
    """Markup that is still open gets its end, so that its marks do not appear for a moment and vanish again."""
    source = source.rstrip("*_~")
    if source.count("`") % 2:
        return source.rstrip("`") if source.endswith("`") else source + "`"
    outside = re.sub(r"`[^`]*`", "", source)
    single = outside.replace("**", "")
    ends = "*" if single.count("*") % 2 and _EMPHASIS.search(single) else ""
    ends += "".join(marks for marks in ("**", "~~") if outside.count(marks) % 2)
    return source.rstrip() + ends if ends else source
