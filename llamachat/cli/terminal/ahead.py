"""The first line, typed while the model still loads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamachat.cli.terminal.escapes import visible

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyPressEvent

_POLL_S = 0.02
_QUICK_S = 0.25
"""A model that loads within this time is waited for without a prompt; keys wait as well."""


@dataclass
class TypedAhead:
    """A line as it was when the model was there."""

    text: str = ""
    cursor: int = 0
    is_sent: bool = False
    """Whether Enter was pressed after the last change."""

    def prompt(self, session: PromptSession[str]) -> str:
        """Go on with the line, or send it, now that there is somebody to send it to."""

        def place_cursor() -> None:
            session.default_buffer.cursor_position = self.cursor

        return session.prompt(default=self.text, accept_default=self.is_sent, pre_run=place_cursor)


def type_ahead(session: PromptSession[str], what: str, is_done: Callable[[], bool]) -> TypedAhead:
    """Let a line be edited until `is_done`; then it vanishes, for what is to be said first, and comes again.

    Enter only marks it. Raises KeyboardInterrupt for Ctrl-C on an empty line, and SystemExit for Ctrl-D.
    """
    until = time.monotonic() + _QUICK_S
    while time.monotonic() < until:
        if is_done():
            return TypedAhead()
        time.sleep(_POLL_S)
    line = TypedAhead()
    while not is_done():
        try:
            _edit(session, what, is_done, line)
        except KeyboardInterrupt:
            if not session.default_buffer.text:
                raise
            line = TypedAhead()
        except EOFError:
            raise SystemExit(0) from None
    return line


def _edit(session: PromptSession[str], what: str, is_done: Callable[[], bool], line: TypedAhead) -> None:
    from prompt_toolkit.key_binding import KeyBindings, merge_key_bindings
    from prompt_toolkit.keys import Keys
    from prompt_toolkit.search import stop_search

    bindings = KeyBindings()
    usual = session.key_bindings

    @bindings.add(Keys.Enter)
    def _mark(event: KeyPressEvent) -> None:
        line.text, line.is_sent = event.current_buffer.text, bool(event.current_buffer.text)

    def is_sent() -> bool:
        return line.is_sent and line.text == session.default_buffer.text

    async def leave_when_done() -> None:
        while not is_done():
            await asyncio.sleep(_POLL_S)
        buffer = session.default_buffer
        if session.app.layout.is_searching:
            stop_search()  # or the next prompt would begin in the middle of it
        line.is_sent = is_sent()
        line.text, line.cursor = buffer.text, buffer.cursor_position
        session.app.exit(result="")

    def watch() -> None:
        session.app.create_background_task(leave_when_done())

    session.bottom_toolbar = lambda: visible(what + (" · what you sent waits for it" if is_sent() else ""))
    session.key_bindings = merge_key_bindings([usual, bindings]) if usual else bindings
    session.app.erase_when_done = True
    try:
        session.prompt(pre_run=watch)
    finally:
        session.app.erase_when_done = False
        session.key_bindings = usual
        session.bottom_toolbar = None
