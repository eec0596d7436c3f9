"""The chat screen: read a line, run a command or stream an answer, again."""

from __future__ import annotations

import sys
from collections.abc import Callable

from llamachat.chat.session import Answer, TextPiece
from llamachat.cli.opening import OpenChat
from llamachat.cli.output import out
from llamachat.cli.terminal.commands import COMMANDS, is_command, run_command, unescape
from llamachat.cli.terminal.escapes import visible
from llamachat.cli.terminal.interrupt import cancel_on_interrupt
from llamachat.engine.base import Prefill
from llamachat.errors import LlamachatError
from llamachat.paths import input_history_path

_PROMPT = "> "
_LONG_PREFILL = 512
"""Prompts of more tokens than this show how far they have been read."""


def run_screen(chat: OpenChat, *, show_stats: bool, remember: bool, plain: bool) -> None:
    """Talk until the user leaves (/exit, Ctrl-D, or Ctrl-C twice at an empty prompt)."""
    out.note(chat.describe())
    out.note("/help shows the commands, Ctrl-D leaves.")
    read_line = _plain_reader() if plain else _reader(remember)
    while (line := _next_line(read_line)) is not None:
        if is_command(line):
            reply = run_command(line, chat)
            if reply.leave:
                return
            out.text(reply.text)
        elif line.strip():
            _answer(chat, unescape(line), show_stats)


def _answer(chat: OpenChat, text: str, show_stats: bool) -> None:
    """Stream one answer. An error costs this turn only."""
    try:
        with cancel_on_interrupt() as cancel:
            for event in chat.session.send(text, cancel):
                match event:
                    case Prefill(n_done, n_total) if n_total > _LONG_PREFILL:
                        _show_prefill(n_done, n_total)
                    case TextPiece(piece):
                        out.text(piece, end="")
                    case Answer(_, reason):
                        out.text("")
                        if reason != "stop":
                            out.note(_ENDINGS[reason])
                        if show_stats:
                            out.note(chat.describe_stats(event))
    except LlamachatError as error:
        out.error(str(error), error.next_step)


_ENDINGS = {
    "interrupted": "(interrupted)",
    "length": "(the answer reached its token limit or the end of the context window)",
}


def _show_prefill(n_done: int, n_total: int) -> None:
    """A line on a terminal that is overwritten, and wiped when the answer begins."""
    if sys.stderr.isatty():
        text = f"reading {n_done:,} of {n_total:,} tokens" if n_done < n_total else ""
        sys.stderr.write(f"\r\x1b[2K{text}")
        sys.stderr.flush()


def _next_line(read_line: Callable[[], str]) -> str | None:
    """What was typed, or None to leave. Ctrl-C drops the line; at an empty prompt, a second one leaves."""
    interrupted = False
    while True:
        try:
            return read_line()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if interrupted:
                return None
            interrupted = True
            out.note("(Ctrl-C again, or Ctrl-D, leaves)")


def _plain_reader() -> Callable[[], str]:
    return lambda: input(_PROMPT)


def _reader(remember: bool) -> Callable[[], str]:
    """prompt-toolkit: editing, history on disk (private), completion of commands; pasted lines stay together."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if remember:
        path = input_history_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        history: FileHistory | InMemoryHistory = FileHistory(str(path))
    else:
        history = InMemoryHistory()
    names = WordCompleter([visible(name) for name in COMMANDS], sentence=True)
    session: PromptSession[str] = PromptSession(
        history=history, completer=names, complete_while_typing=False, enable_history_search=True
    )
    return lambda: session.prompt(_PROMPT)
