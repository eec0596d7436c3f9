"""Where typed lines come from: prompt-toolkit on a terminal, else the bare standard input.

A reader's `read` returns what was typed. It raises EOFError at the end of input (Ctrl-D), and KeyboardInterrupt for
Ctrl-C at an empty prompt; on a line with something in it, Ctrl-C drops the line.
"""

from __future__ import annotations

import io
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llamachat.cli.output import out
from llamachat.cli.terminal.ahead import TypedAhead, type_ahead
from llamachat.cli.terminal.chips import Chips, show_chips
from llamachat.cli.terminal.commands import escape, is_command
from llamachat.cli.terminal.escapes import visible
from llamachat.cli.terminal.keyboard import interrupt_allowed, keys_held
from llamachat.cli.terminal.mentions import escape_mentions
from llamachat.errors import describe_os_error
from llamachat.paths import input_history_path

if TYPE_CHECKING:
    from asyncio import Task

    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    from llamachat.cli.terminal.completion import Words

_PROMPT = "> "
_POLL_S = 0.02
_PASTED_WITHIN_S = 0.03
_LONGEST_LINE_BYTES = 1023 if sys.platform == "darwin" else 4095
"""As much of a line as a terminal keeps that edits it itself (MAX_CANON, N_TTY_BUF_SIZE)."""


class Reader(Protocol):
    """Reads what the user types."""

    def read(self, begun: str = "") -> str:
        """The next message or command, which may have several lines; `begun` stands there already."""

    def read_ahead(self, what: str, is_done: Callable[[], bool]) -> None:
        """Until `is_done`, let the first line be typed for the next `read`; `what` is going on."""

    def attach(
        self,
        *,
        toolbar: Callable[[], str],
        count_tokens: Callable[[str], int | None],
        words: Mapping[str, Words] | None = None,
    ) -> None:
        """What a loaded model can tell: text below the line, the length of a paste, what Tab completes by command."""

    def hold_keys(self) -> AbstractContextManager[None]:
        """Outside `read`, keys are neither shown nor lost: the next `read` gets them, Ctrl-C and Ctrl-D included."""

    def allow_interrupt(self) -> AbstractContextManager[None]:
        """Within `hold_keys`, while the model answers: Ctrl-C is a signal."""


def open_reader(*, remember: bool) -> Reader:
    """The line editor, or something simpler for a dumb terminal or a redirected standard output."""
    is_dumb = os.environ.get("TERM", "").lower() in ("", "dumb", "unknown")
    return PlainReader() if is_dumb or not sys.stdout.isatty() else LineEditor(remember=remember)


class PlainReader:
    """Lines as the terminal itself edits and shows them. The prompt is talk, so it goes to stderr."""

    def __init__(self) -> None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")

    def read(self, begun: str = "") -> str:
        """See `Reader`. Here what stands there can only be replaced as a whole; an empty line keeps it.

        A line that ends with a backslash goes on in the next one. Lines that come faster than hands can type are
        pasted: they stay together, are no command, and another Enter sends them.
        """
        try:
            self._show(f"{begun}\n{_PROMPT}" if begun else _PROMPT)
            is_typed_ahead = _is_line_waiting(0)
            lines = [self._line()]
            if not is_typed_ahead and _is_line_waiting(_PASTED_WITHIN_S):
                return escape(self._rest_of_paste(lines[0]))
            while lines[-1].endswith("\\"):
                self._show(" " * len(_PROMPT))
                lines[-1:] = [lines[-1][:-1], self._line()]
            return "\n".join(lines) or begun
        except (EOFError, KeyboardInterrupt):
            sys.stderr.write("\n")
            raise

    def _rest_of_paste(self, first: str) -> str:
        """With what is typed behind it."""
        lines = [first]
        while _is_line_waiting(_PASTED_WITHIN_S):
            lines.append(self._line())
        self._show("\n(pasted; Enter sends)\n" + " " * len(_PROMPT))
        lines.append(self._line())
        return "\n".join(lines)

    def _line(self) -> str:
        """A line that is whole: the terminal drops without a word what it has no room for."""
        while len((line := input()).encode("utf-8", "replace")) >= _LONGEST_LINE_BYTES:
            self._show(
                f"(The terminal has cut this line after {_LONGEST_LINE_BYTES:,} bytes; it is left out. "
                f"Put the text into a file, and give /file PATH.)\n" + " " * len(_PROMPT)
            )
        return line

    @staticmethod
    def _show(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    def read_ahead(self, what: str, is_done: Callable[[], bool]) -> None:  # noqa: ARG002
        """See `Reader`; here the terminal itself keeps what is typed."""
        while not is_done():
            time.sleep(_POLL_S)

    def attach(self, **_: object) -> None:
        """See `Reader`; here is nothing to show it on."""

    def hold_keys(self) -> AbstractContextManager[None]:
        """See `Reader`; here the terminal shows keys when they come."""
        return nullcontext()

    def allow_interrupt(self) -> AbstractContextManager[None]:
        """See `Reader`; here Ctrl-C always is one."""
        return nullcontext()


def _is_line_waiting(within_s: float) -> bool:
    """Whether the terminal has another line that was ended with Enter."""
    return bool(select.select([sys.stdin], [], [], within_s)[0])


class LineEditor:
    """prompt-toolkit: editing, history on disk, completion; the lines of a paste stay together, many of them folded."""

    def __init__(self, *, remember: bool) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.shortcuts import CompleteStyle

        from llamachat.cli.terminal.completion import ChatCompleter

        chips = self._chips = Chips()
        self._ahead: TypedAhead | None = None
        self._editing: set[Task[None]] = set()
        self._session: PromptSession[str] = PromptSession(
            [("bold", _PROMPT)],
            prompt_continuation=lambda width, _line, is_wrapped: "" if is_wrapped else " " * width,
            history=_expanded(_open_history(remember=remember), chips),
            completer=ChatCompleter(),
            complete_style=CompleteStyle.READLINE_LIKE,  # a menu would reserve eight empty lines below the prompt
            complete_while_typing=False,
            enable_history_search=True,
            enable_suspend=True,
            key_bindings=_key_bindings(chips, self._editing),
            input_processors=[show_chips(chips)],
            tempfile_suffix=".md",
        )

    def read(self, begun: str = "") -> str:
        """See `Reader`."""
        ahead, self._ahead = self._ahead or TypedAhead(begun, len(begun)), None
        try:
            return self._chips.expand(ahead.prompt(self._session))
        except KeyboardInterrupt:
            if self._session.default_buffer.text:
                return ""
            raise
        finally:
            self._chips.begin_line()

    def read_ahead(self, what: str, is_done: Callable[[], bool]) -> None:
        """See `Reader`. A line that is in an editor is waited for."""
        self._ahead = type_ahead(self._session, what, lambda: is_done() and not self._editing)

    def attach(
        self,
        *,
        toolbar: Callable[[], str],
        count_tokens: Callable[[str], int | None],
        words: Mapping[str, Words] | None = None,
    ) -> None:
        """See `Reader`."""
        from llamachat.cli.terminal.completion import ChatCompleter

        self._chips.count_tokens = count_tokens
        self._session.bottom_toolbar = lambda: visible(toolbar())
        self._session.completer = ChatCompleter(words)

    def hold_keys(self) -> AbstractContextManager[None]:
        """See `Reader`."""
        return keys_held()

    def allow_interrupt(self) -> AbstractContextManager[None]:
        """See `Reader`."""
        return interrupt_allowed()


def _key_bindings(chips: Chips, editing: set[Task[None]]) -> KeyBindings:
    """`editing` is not empty while a line is in an editor."""
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys

    bindings = KeyBindings()

    @bindings.add(Keys.BracketedPaste)
    def _paste(event: KeyPressEvent) -> None:
        """Insert a paste with its lines, escaped for all to see, so that it is never a command and names no file."""
        pasted = event.data.replace("\r\n", "\n").replace("\r", "\n")
        text = chips.fold(pasted)
        buffer = event.current_buffer
        before = buffer.document.text_before_cursor
        if not is_command(before):
            text = escape_mentions(text, before)
        buffer.insert_text(text if before else escape(text))

    @bindings.add(Keys.Escape, Keys.Enter)
    @bindings.add(Keys.ControlJ)
    def _break_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add(Keys.ControlX, Keys.ControlE)
    def _edit(event: KeyPressEvent) -> None:
        """Go on with the line in $VISUAL or $EDITOR, which gets what is behind the chips."""
        buffer = event.current_buffer
        buffer.text = chips.expand(buffer.text)
        buffer.cursor_position = len(buffer.text)
        task = buffer.open_in_editor()
        editing.add(task)
        task.add_done_callback(editing.discard)

    return bindings


def _expanded(history: History, chips: Chips) -> History:
    """The same history, which remembers the text of chips."""
    from prompt_toolkit.history import History as AnyHistory

    class Expanded(AnyHistory):
        def load_history_strings(self) -> Iterable[str]:
            return history.load_history_strings()

        def append_string(self, string: str) -> None:
            super().append_string(chips.expand(string))

        def store_string(self, string: str) -> None:
            with suppress(OSError):  # a disk that is full now costs the line's memory, not the line
                history.store_string(string)

    return Expanded()


def _open_history(*, remember: bool) -> History:
    """What was typed before, in a file that only its owner can read; in memory if there is none to be had."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if not remember:
        return InMemoryHistory()
    path = input_history_path()
    try:
        _make_private(path)
    except OSError as error:
        out.warning(f"What you type cannot be remembered: {path}: {describe_os_error(error)}.")
        return InMemoryHistory()
    return FileHistory(str(path))


def _make_private(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)
