"""The tools of a chat: files with functions, and who is asked before one is run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llamachat.cli.output import out
from llamachat.errors import UnusableTools

if TYPE_CHECKING:
    from llamachat.chat.tools.values import Tool, ToolCall, ToolResult
    from llamachat.toolbox import ToolProcess

Refuse = Callable[["ToolCall", threading.Event], "str | None"]
"""Why a call is not to be run, in a sentence for the model; None: it is."""


class FileTools:
    """A `Toolbox` of the functions in files. What they print is told as it is."""

    def __init__(self, processes: Sequence[ToolProcess], refuse: Refuse) -> None:
        self._refuse = refuse
        self._process_of = {tool.name: process for process in processes for tool in process.tools}
        self.tools: tuple[Tool, ...] = tuple(tool for process in processes for tool in process.tools)

    def run(self, call: ToolCall, cancel: threading.Event) -> ToolResult:
        """See `Toolbox`."""
        from llamachat.chat.tools.values import ToolResult

        if refusal := self._refuse(call, cancel):
            return ToolResult(refusal, is_error=True)
        process = self._process_of[call.name]
        with out.status(f"Running {call.name}; Ctrl-C stops it"):
            result = process.call(call, cancel)
        if printed := process.take_printed():
            out.note(f"{call.name} printed:\n{printed}")
        return result


@contextmanager
def open_toolbox(paths: Sequence[Path], *, is_asked: bool, yes: bool) -> Iterator[FileTools | None]:
    """The functions of these files, which run until the end; None if there are none.

    `is_asked` tells that somebody sits at the terminal; `yes`, that all calls may be run. Raises `UnusableTools`.
    """
    if not paths:
        yield None
        return
    from llamachat.toolbox import ToolProcess

    with ExitStack() as open_files:
        processes: list[ToolProcess] = []
        for path in paths:
            with out.status(f"Importing {path.name}"):
                process = ToolProcess(path)
            open_files.callback(process.close)
            _check_names(process, processes)
            processes.append(process)
        yield FileTools(processes, _allow if yes else (Approval() if is_asked else _refuse_unasked))


def _check_names(process: ToolProcess, others: Sequence[ToolProcess]) -> None:
    if not process.tools:
        next_step = "Write one with type hints; a name that begins with _ is private, and imported ones do not count."
        raise UnusableTools(process.path, "it defines no public function.", next_step)
    known = {tool.name: other.path for other in others for tool in other.tools}
    for tool in process.tools:
        if tool.name in known:
            where = "the file is given twice" if known[tool.name] == process.path else f"{known[tool.name]} has it, too"
            raise UnusableTools(process.path, f"{tool.name}() is there already: {where}.", "Rename or leave out one.")


def _allow(_call: ToolCall, _cancel: threading.Event) -> None:
    return None


def _refuse_unasked(call: ToolCall, _cancel: threading.Event) -> str:
    out.warning(f"{call.name} was not run: nobody is there to allow it. --yes-tools runs calls without asking.")
    return "It was not run: nobody is there to allow it."


class Approval:
    """Asks before a tool is run, with one key; remembers which ones need no more asking."""

    def __init__(self) -> None:
        self._always: set[str] = set()

    def __call__(self, call: ToolCall, cancel: threading.Event) -> str | None:
        """See `Refuse`. The call itself is on the screen already."""
        if call.name in self._always:
            return None
        from llamachat.cli.terminal.keyboard import read_key

        key = read_key(lambda: out.question("Run it? [y]es / [n]o / [a]lways this tool"), _WORDS, cancel)
        out.question(_WORDS.get(key, "no"), end="\n")
        if key == "a":
            self._always.add(call.name)
        if key in ("y", "a"):
            return None
        return "It was not run: the user did not allow it." if key else "It was not run: the user interrupted."


_WORDS = {"y": "yes", "n": "no", "a": "always"}
