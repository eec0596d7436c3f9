"""Rows at the end of the terminal's output: some are there to stay, the last ones may still change."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from llamachat.cli.terminal.size import Size

_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"  # drawn as one picture by terminals that know synchronized output
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_SGR = re.compile(r"\x1b\[[0-9;]*m")
_UNSURE = re.compile("[\u200d\ufe0f\U0001f3fb-\U0001f3ff\U0001f1e6-\U0001f1ff]")
"""Parts of emoji of which terminals make one, or several beside each other: such a row may be too wide for some."""


class ChangingRows:
    """Writes rows; those that are not final are written over by the next call, and only where they differ.

    The cursor is at the end of the last changing row, or else at the beginning of the next line. Nothing above the
    changing rows is ever touched, and they are never more than the screen holds.
    """

    def __init__(self, write: Callable[[str], None], size: Callable[[], Size]) -> None:
        """`write` must write all of its argument at once; `size` is asked before each drawing."""
        self._write = write
        self._size = size
        self._changing: list[str] = []
        self._columns = 0

    def draw(self, final: Sequence[str], changing: Sequence[str]) -> None:
        """Put `final` rows, then `changing` ones, in the place of the rows that were still changing."""
        size = self._size()
        old, room = self._changing, max(size.lines - 1, 1)
        new = [*final, *changing[-room:]]
        if new == old and not final:
            return
        differs = (a != b or (i < len(final) and _is_cut(b)) for i, (a, b) in enumerate(zip(old, new, strict=False)))
        same = next((i for i, row_differs in enumerate(differs) if row_differs), len(old))
        same = max(min(same, len(old) - 1, len(new) - 1), 0)  # the cursor is never before the first row to write
        clear = "\x1b[J" if len(old) > len(new) or size.columns != self._columns else ""
        rows = self._rows(new, same, n_final=len(final))
        self._write(f"{_BEGIN}{self._back_to(old[same:], size.columns)}{clear}{rows}{_END}")
        self._changing, self._columns = new[len(final) :], size.columns

    def _back_to(self, rows: Sequence[str], columns: int) -> str:
        """From the end of these rows to the beginning of the first."""
        n_up = sum(self._height(row, columns) for row in rows) - 1
        return "\r" + (f"\x1b[{n_up}A" if n_up > 0 else "")

    def _height(self, row: str, columns: int) -> int:
        """Lines on the screen that a row takes now: in a window made narrower, most terminals wrap it again."""
        from rich.cells import chop_cells

        if columns >= self._columns or not _wraps_again():
            return 1
        return len(chop_cells(_SGR.sub("", row), columns)) or 1

    def _rows(self, rows: Sequence[str], start: int, *, n_final: int) -> str:
        """What writes rows from the one at `start` on; changing ones do not wrap, however wide their emoji are."""
        final = "".join(f"\x1b[{'J' if _is_cut(row) else 'K'}{row}\r\n" for row in rows[start:n_final])
        changing = "\r\n".join(f"\x1b[K{row}" for row in rows[max(start, n_final) :])
        return final + (f"{_NO_WRAP}{changing}{_WRAP}" if changing else "")


def _is_cut(row: str) -> bool:
    """Whether a row may have been cut off at the edge while it was changing, and is to be written whole now."""
    return bool(_UNSURE.search(row))


def _wraps_again() -> bool:
    """Whether this terminal lays out its lines anew when its width changes, as all but a few do."""
    plain = os.environ.get("TERM", "").partition("-")[0] in ("linux", "rxvt")
    return not (plain or "XTERM_VERSION" in os.environ or "STY" in os.environ)
