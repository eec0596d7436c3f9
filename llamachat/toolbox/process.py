"""The parent's side of a process that runs the functions of one file."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llamachat.chat.tools.values import Tool, ToolCall, ToolResult
from llamachat.errors import UnusableTools, describe_os_error

_POLL_S = 0.05
_MAX_PRINTED = 4000
"""Bytes that are kept of what a tool printed last."""
_MAX_REPLY_BYTES = 16 << 20
_START = (
    "import sys; sys.path[:] = {path!r}; from llamachat.toolbox.child import serve; "
    "serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))"
)
_MIXED_UP = "It wrote into the pipe that tells results, so its own cannot be read."


class _Ended(Exception):
    """The process is gone, or of no more use; the text says how."""


class ToolProcess:
    """Runs until `close`. A process that was killed, or has ended itself, is started again by the next call."""

    def __init__(self, path: Path) -> None:
        """Import the file. Raises `UnusableTools`; KeyboardInterrupt passes, and leaves no process."""
        self.path = path.resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._printed = b""
        if not self.path.is_file():
            raise UnusableTools(path, "there is no such file.", "Give a Python file: --tools my_tools.py")
        try:
            self.tools = self._start(lambda: False)
        except BaseException:
            self.close()
            raise

    def call(self, call: ToolCall, cancel: threading.Event) -> ToolResult:
        """Run a function; `cancel` kills it within a tenth of a second. Whatever goes wrong is a result."""
        try:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._start(cancel.is_set)
            self._send({"name": call.name, "arguments": call.parsed()})
            match self._receive(cancel.is_set):
                case {"text": str(text), "is_error": bool(is_error)}:
                    return ToolResult(text, is_error)
            raise _Ended(_MIXED_UP)
        except (_Ended, UnusableTools) as error:
            self.close()
            return ToolResult(str(error), is_error=True)
        except BaseException:
            self.close()
            raise

    def take_printed(self) -> str:
        """What was printed since the last time, or the end of it."""
        printed, self._printed = self._printed, b""
        return printed.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End the process and all that it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for descriptor in (self._requests, self._replies, self._output):
            os.close(descriptor)

    def _start(self, is_cancelled: Callable[[], bool]) -> tuple[Tool, ...]:
        requests_fd, self._requests = os.pipe()
        self._replies, replies_fd = os.pipe()
        self._output, output_fd = os.pipe()
        self._received, self._is_silent = b"", False
        command = [sys.executable, "-I", "-u", "-c", _START.format(path=sys.path)]
        try:
            self._process = subprocess.Popen(
                [*command, str(self.path), str(requests_fd), str(replies_fd)],
                stdin=subprocess.DEVNULL,
                stdout=output_fd,
                stderr=output_fd,
                pass_fds=(requests_fd, replies_fd),
                start_new_session=True,  # no terminal, and Ctrl-C is for the program
            )
        except OSError as error:
            problem = f"no process could be started for it ({describe_os_error(error)})."
            raise UnusableTools(self.path, problem, "Try again when there is room.") from error
        finally:
            for descriptor in (requests_fd, replies_fd, output_fd):
                os.close(descriptor)
        try:
            reply = self._receive(is_cancelled)
        except _Ended as error:
            raise UnusableTools(self.path, str(error), "Look at what it does when it is imported.") from error
        if "problem" in reply:
            raise UnusableTools(self.path, reply["problem"], reply.get("next_step", "Correct it, and try again."))
        return tuple(Tool(one["name"], one["description"], one["parameters"]) for one in reply["tools"])

    def _send(self, request: dict[str, Any]) -> None:
        data = (json.dumps(request) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._requests, data) :]
        except BrokenPipeError:
            raise _Ended(self._how_it_ended()) from None

    def _receive(self, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
        """The next line of replies; meanwhile, what is printed is taken away. Raises `_Ended`."""
        while b"\n" not in self._received:
            if is_cancelled():
                raise _Ended("It was interrupted by the user.")
            if self._replies in self._wait_for_output(_POLL_S):
                data = os.read(self._replies, 65536)
                if not data or len(self._received) > _MAX_REPLY_BYTES:
                    raise _Ended(self._how_it_ended())
                self._received += data
        self._wait_for_output(0)
        line, _, self._received = self._received.partition(b"\n")
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError:
            raise _Ended(_MIXED_UP) from None
        return reply

    def _wait_for_output(self, timeout_s: float) -> list[int]:
        """Take away what was printed; return which of the pipes can be read."""
        pipes = [self._replies] if self._is_silent else [self._replies, self._output]
        readable, _, _ = select.select(pipes, [], [], timeout_s)
        if self._output in readable:
            printed = os.read(self._output, 65536)
            self._is_silent = not printed
            self._printed = (self._printed + printed)[-_MAX_PRINTED:]
        return readable

    def _how_it_ended(self) -> str:
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(1)
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            return f"The process it ran in ended {how}."
        return "The process it ran in stopped answering."
