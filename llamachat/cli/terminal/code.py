"""Colours for code that comes line by line."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pygments.lexer import Lexer
    from rich.syntax import SyntaxTheme
    from rich.text import Text

_THEME = "ansi_dark"  # the terminal's own colours, which its owner can read on its background
_ENOUGH_CONTEXT, _MOST_CONTEXT = 8, 40  # lines


class CodeLines:
    """The lines of one piece of code, each coloured by what has come before it.

    Lexers start at the beginning, so lines are lexed with those before them; not with all, which would take longer
    and longer, but from a line on where something new is likely to begin: one that is in no string or comment, and
    empty, or (once there are some) not indented.
    """

    def __init__(self, language: str) -> None:
        """`language` is what the fence says; code in one that is not known is left plain."""
        self._language = language
        self._context: list[str] = []
        self._is_open = False

    def line(self, source: str, *, keep: bool = True) -> Text:
        """One more line in colour; without `keep` it is still being written and comes again."""
        from pygments.token import Comment, String
        from rich.text import Text

        text = Text(no_wrap=False, overflow="fold")
        if self._lexer is None:
            return text.append(source)
        at, is_open = 0, False
        start = sum(len(line) + 1 for line in self._context)
        for kind, value in self._lexer.get_tokens("\n".join([*self._context, source])):
            before, at = at, at + len(value)
            if shown := value[max(0, start - before) :].replace("\n", ""):
                text.append(shown, self._theme.get_style_for_token(kind))
            is_open = (kind in String or kind in Comment) and "\n" in value
        if keep:
            self._remember(source, is_open=is_open)
        return text

    def _remember(self, source: str, *, is_open: bool) -> None:
        """`is_open` tells whether a string or comment goes on in the next line."""
        begins = bool(source) and not source[0].isspace() and not self._is_open
        if begins and len(self._context) >= _ENOUGH_CONTEXT:
            self._context = []
        self._context.append(source)
        if (not source.strip() and not is_open) or len(self._context) > _MOST_CONTEXT:
            self._context = []
        self._is_open = is_open

    @cached_property
    def _lexer(self) -> Lexer | None:
        from pygments.lexers import get_lexer_by_name
        from pygments.util import ClassNotFound

        try:
            return get_lexer_by_name(self._language, stripnl=False, ensurenl=True) if self._language else None
        except ClassNotFound:
            return None

    @cached_property
    def _theme(self) -> SyntaxTheme:
        from rich.syntax import Syntax

        return Syntax.get_theme(_THEME)
