"""What becomes of keys that are pressed while no line is being read."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

_POLL_S = 0.05
_MANY_KEYS = 4096
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
        with suppress(OSError, termios.error):  # the terminal may be gone
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
        with suppress(OSError, termios.error):
            _write(_LEAVE_PASTES)
            termios.tcsetattr(sys.stdin, termios.TCSANOW, held)


def read_key(ask: Callable[[], None], keys: Collection[str], cancel: threading.Event) -> str:
    """Ask, and wait for one of `keys`, in either case; return "" if `cancel` was set, or there is no more input.

    What was typed before the question is no answer to it, and is lost. A paste or an arrow comes as several
    characters at once, and is none.
    """
    before = termios.tcgetattr(sys.stdin)
    asking = termios.tcgetattr(sys.stdin)
    asking[_LOCAL] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, asking)
    try:
        ask()
        while not cancel.is_set():
            readable, _, _ = select.select([sys.stdin], [], [], _POLL_S)
            if not readable:
                continue
            pressed = os.read(sys.stdin.fileno(), _MANY_KEYS)
            if not pressed:
                return ""
            if (key := pressed.decode("ascii", "replace").lower()) in keys:
                return key
        return ""
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def _write(sequence: str) -> None:
    sys.stdout.write(sequence)
    sys.stdout.flush()
