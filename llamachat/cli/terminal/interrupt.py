"""Ctrl-C as a wish, not an accident, and an orderly end on SIGTERM and SIGHUP.

A handler must not raise while llama.cpp runs: it may be called inside one of its callbacks, where an exception
cannot get out. So during an answer the signals only set an event, which the engine looks at.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

SAME_WISH_S = 1.0
"""Ctrl-C again sooner than this is the same wish, from a held key or an impatient hand."""

_TERMINATIONS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def cancel_on_interrupt() -> Iterator[threading.Event]:
    """While active, Ctrl-C only sets the event; if that has not helped for a second, the next one interrupts as usual.

    SIGTERM and SIGHUP set the event as well, and leave the program with 128 and their number at the end of the block.
    """
    cancel = threading.Event()
    asked_at: float | None = None
    terminated_by: int | None = None

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if asked_at is not None and now - asked_at > SAME_WISH_S:
            raise KeyboardInterrupt
        asked_at = now if asked_at is None else asked_at
        cancel.set()

    def on_termination(number: int, _frame: FrameType | None) -> None:
        nonlocal terminated_by
        terminated_by = number
        cancel.set()

    try:
        with ExitStack() as handling:
            handling.enter_context(_handling(signal.SIGINT, on_interrupt))
            for number in _TERMINATIONS:
                handling.enter_context(_handling(number, on_termination))
            yield cancel
    finally:  # also where what was cancelled has ended in an error
        if terminated_by is not None:
            _leave(terminated_by)


@contextmanager
def leave_on_termination() -> Iterator[None]:
    """While active, SIGTERM and SIGHUP unwind the program, so that the terminal is left as it was found."""
    with ExitStack() as handling:
        for number in _TERMINATIONS:
            handling.enter_context(_handling(number, _leave))
        yield


def _leave(number: int, _frame: FrameType | None = None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _handling(number: signal.Signals, handler: signal._HANDLER) -> Iterator[None]:
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)
