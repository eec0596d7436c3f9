"""What becomes of keys that are pressed while no line is being read."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

_INPUT, _LOCAL = 0, 3  # places in termios.tcgetattr's list
_MARK_PASTES, _LEAVE_PASTES = "\x1b[?2004h", "\x1b[?2004l"
_SANE = f"{_LEAVE_PASTES}\x1b[?7h\x1b[?25h\x1b[0m"  # lines wrap, the cursor shows, no style


@contextmanager
def keys_held() -> Iterator[None]:
    """Keys are not shown and wait, just as they were pressed, for whoever reads next; Ctrl-C and Ctrl-D are keys too.

    In the terminal's usual modes they would appear in the middle of an answer, and those that mean something at
    once would be lost on the way to the line editor.
    """
    before = termios.tcgetattr(sys.stdin)
    held = termios.tcgetattr(sys.stdin)
    held[_INPUT] &= ~termios.ICRNL
    held[_LOCAL] &= ~(termios.ECHO | termios.ICANON | termios.ISIG)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, held)
    try:
        yield
    finally:
        _write(_SANE)  # a line editor that a signal tears down leaves some of it undone
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


@contextmanager
def interrupt_allowed() -> Iterator[None]:
    """Inside `keys_held`, for an answer: Ctrl-C is a signal, and what is pasted waits as one piece."""
    held = termios.tcgetattr(sys.stdin)
    allowed = termios.tcgetattr(sys.stdin)
    allowed[_LOCAL] |= termios.ISIG
    termios.tcsetattr(sys.stdin, termios.TCSANOW, allowed)
    _write(_MARK_PASTES)
    try:
        yield
    finally:
        _write(_LEAVE_PASTES)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, held)


def _write(sequence: str) -> None:
    sys.stdout.write(sequence)
    sys.stdout.flush()
