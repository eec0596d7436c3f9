"""A program in a real pseudo-terminal, and what a person would see on its screen.

The child gets a terminal of its own as its controlling terminal, so that Ctrl-C is a signal as in life. Its output
goes through pyte, a terminal emulator, which also answers the program's questions about the cursor. Output is only
read while a test waits, and the child never outlives the `with` block.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyte

ENTER, CTRL_C, CTRL_D, ESCAPE, TAB, UP = "\r", "\x03", "\x04", "\x1b", "\t", "\x1b[A"

_LINGER_S = 0.005
_SGR = re.compile(rb"\x1b\[([0-9;:]*)m")


class _Screen(pyte.HistoryScreen):
    """A pyte screen with scrollback that collects its answers to the program's questions."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__(columns, lines, history=10_000)
        self.answers = ""

    def write_process_input(self, data: str) -> None:
        self.answers += data


class Terminal:
    """Runs `command` in a terminal of `columns` × `lines`; `env` adds to the environment (None takes away)."""

    def __init__(
        self,
        command: Sequence[object],
        *,
        columns: int = 80,
        lines: int = 50,
        env: Mapping[str, str | None] | None = None,
        stdout: Any = None,
    ) -> None:
        self.raw = b""
        self._text: str | None = None
        self._master, slave = pty.openpty()
        self._size(columns, lines)
        self._initial_modes = termios.tcgetattr(slave)
        self._screen = _Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        changes = {"TERM": "xterm-256color", "NO_COLOR": None, "COLUMNS": None, "LINES": None, **(env or {})}
        environment = {k: v for k, v in {**os.environ, **changes}.items() if v is not None}
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=slave,
            stdout=slave if stdout is None else stdout,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        self._slave = slave  # kept open, so that the terminal's modes can be read after the child's end

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)

    # what a person does

    def send(self, keys: str | bytes) -> None:
        """Type: text, or control characters."""
        data = keys.encode() if isinstance(keys, str) else keys
        while data:
            self._pump(0)  # a terminal whose output is not read takes no more input
            _, writable, _ = select.select([], [self._master], [], 1)
            if writable:
                data = data[os.write(self._master, data[:512]) :]

    def enter(self, line: str) -> None:
        """Type a line and Enter."""
        self.send(line + ENTER)

    def paste(self, text: str) -> None:
        """Paste as a terminal in bracketed-paste mode does."""
        self.send(f"\x1b[200~{text}\x1b[201~")

    def resize(self, columns: int, lines: int) -> None:
        """Make the window another size; the program gets SIGWINCH."""
        n_gone = max(self._screen.lines - lines, 0)  # at the top; pyte leaves the cursor where it was
        row = max(self._screen.cursor.y - n_gone, 0)
        self._screen.resize(lines, columns)
        self._screen.cursor.y = row
        self._text = None
        self._size(columns, lines)

    # what a person sees

    @property
    def text(self) -> str:
        """The screen as lines, without the blanks on the right and without the toolbar."""
        if self._text is None:
            self._text = "\n".join(self._lines(toolbar=False)).rstrip("\n")
        return self._text

    @property
    def scrollback(self) -> list[str]:
        """The lines that have left the screen at its top."""
        rows = self._screen.history.top
        return ["".join(row[i].data for i in range(max(row, default=0) + 1)).rstrip() for row in rows]

    @property
    def toolbar(self) -> str:
        """What stands in reverse at the bottom of the screen."""
        return "\n".join(self._lines(toolbar=True))

    def _lines(self, *, toolbar: bool) -> list[str]:
        lines = list(enumerate(self._screen.display))
        while lines and not lines[-1][1].strip():
            lines.pop()
        n = len(lines)
        while n and self._screen.buffer[n - 1][0].reverse:
            n -= 1
        return [line.rstrip() for _, line in (lines[n:] if toolbar else lines[:n])]

    @property
    def cursor_line(self) -> str:
        """The line the cursor is on."""
        return self._screen.display[self._screen.cursor.y].rstrip()

    @property
    def cursor_is_visible(self) -> bool:
        """Whether the program has left the cursor on."""
        return not self._screen.cursor.hidden

    def sgr_codes(self) -> set[int]:
        """Every SGR code (colour, bold, …) in the output so far."""
        return {int(code) for codes in _SGR.findall(self.raw) for code in re.split(rb"[;:]", codes) if code}

    def is_as_found(self) -> bool:
        """Whether the terminal's modes (echo, line editing, signals) are what they were at the start."""
        return termios.tcgetattr(self._slave) == self._initial_modes

    # waiting

    def wait_for(self, text: str, timeout_s: float = 20) -> float:
        """Wait until `text` is on the screen; return how long that took in seconds."""
        return self.wait_until(lambda: text in self.text, repr(text), timeout_s)

    def wait_until(self, condition: Callable[[], bool], what: str = "the condition", timeout_s: float = 20) -> float:
        """Wait until `condition` holds; fail with the screen's content otherwise."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > timeout_s:
                raise AssertionError(f"waited {timeout_s} s for {what}; the screen:\n{self.text}")
            if not self._pump(_LINGER_S) and self.process.poll() is not None and not condition():
                raise AssertionError(f"the program ended while waiting for {what}; the screen:\n{self.text}")
        return time.monotonic() - started

    def wait_for_exit(self, timeout_s: float = 20) -> int:
        """Wait until the program ends and return its exit status; minus the signal's number if one ended it."""
        started = time.monotonic()
        while self.process.poll() is None:
            if time.monotonic() - started > timeout_s:
                raise AssertionError(f"the program goes on after {timeout_s} s; the screen:\n{self.text}")
            self._pump(_LINGER_S)
        while self._pump(0):
            pass
        return self.process.returncode

    def watch(self, duration_s: float) -> None:
        """Look on for a while."""
        until = time.monotonic() + duration_s
        while (left := until - time.monotonic()) > 0:
            self._pump(min(left, _LINGER_S))

    def _pump(self, timeout_s: float) -> bool:
        """Read what the program has written, waiting up to `timeout_s` for some; whether there was any."""
        readable, _, _ = select.select([self._master], [], [], timeout_s)
        if not readable:
            return False
        data = os.read(self._master, 65536)
        self.raw += data
        self._text = None
        self._stream.feed(data)
        answers, self._screen.answers = self._screen.answers, ""
        if answers:
            self.send(answers)
        return True

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
