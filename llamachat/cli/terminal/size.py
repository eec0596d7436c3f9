"""How large the terminal is."""

from __future__ import annotations

import os
import sys
from textwrap import fill
from typing import NamedTuple


class Size(NamedTuple):
    """Character cells."""

    columns: int
    lines: int


def terminal_size() -> Size:
    """That of the terminal behind the standard output, as it is now."""
    try:
        found = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return Size(80, 24)
    return Size(found.columns or 80, found.lines or 24)


def wrapped(text: str) -> str:
    """A long line broken between its words, where the terminal would break it within one."""
    return fill(text, terminal_size().columns, break_on_hyphens=False)
