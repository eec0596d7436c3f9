"""The chat screen: read a line, run a command or stream an answer, again."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from llamachat.chat.events import Answer, AnswerEvents
from llamachat.cli.chat_wishes import ChatOptions
from llamachat.cli.context import keeping_context, restore_context
from llamachat.cli.describing import describe_length, describe_read_again, describe_resumed
from llamachat.cli.live_chat import OpenChat
from llamachat.cli.opening import open_chat
from llamachat.cli.output import out
from llamachat.cli.question import read_text
from llamachat.cli.terminal.commands import Reply, Stream, escape, is_command, run_command, unescape
from llamachat.cli.terminal.commands.keep import session_words
from llamachat.cli.terminal.commands.settings import model_words
from llamachat.cli.terminal.interrupt import SAME_WISH_S, cancel_on_interrupt, leave_on_termination
from llamachat.cli.terminal.mentions import mentioned_files, unescape_mentions
from llamachat.cli.terminal.reader import Reader, open_reader
from llamachat.cli.terminal.showing import Showing
from llamachat.cli.terminal.size import wrapped
from llamachat.cli.terminal.toolbar import Toolbar
from llamachat.errors import LlamachatError, PromptTooLong

if TYPE_CHECKING:
    from llamachat.cli.terminal.completion import Words


def open_screen(
    model: str | None, options: ChatOptions, *, server: str | None, resume: str | None, save: bool, show_stats: bool
) -> None:
    """Load a model, while the first message may be typed already, and talk with it."""
    reader = open_reader(remember=save)
    with (
        leave_on_termination(),
        reader.hold_keys(),
        open_chat(model, options, server=server, resume=resume, save=save, meanwhile=reader.read_ahead) as chat,
        keeping_context(chat, reader.allow_interrupt),
    ):
        run_screen(chat, reader, show_stats=show_stats)


def run_screen(chat: OpenChat, reader: Reader, *, show_stats: bool) -> None:
    """Talk until the user leaves (/exit, Ctrl-D, or Ctrl-C twice at an empty prompt)."""
    toolbar = Toolbar(chat)
    words: Mapping[str, Words] = {"/resume": lambda: session_words(chat), "/model": lambda: model_words(chat)}
    reader.attach(toolbar=toolbar, count_tokens=toolbar.count_tokens, words=words)
    out.note(wrapped(chat.describe()))
    if chat.resumed:
        out.note(describe_resumed(chat.resumed))
        with reader.allow_interrupt():
            restored = restore_context(chat)
        if restored:
            out.note(restored)
    out.note("/help shows the commands, Ctrl-D leaves.")
    interrupted = False
    while (line := _next_line(reader, toolbar, interrupted=interrupted)) is not None:
        answer = None
        interrupted = False
        if is_command(line):
            reply = _obey(line, chat, reader)
            if reply.leave:
                return
            answer = reply.answer
            if reply.edit is not None:
                answer = _edited(chat, reader, reply.edit)
        elif line.strip():
            answer = _message(chat, unescape(line).strip("\n"))
        if answer:
            interrupted = _answer(chat, reader, answer, show_stats=show_stats)


def _obey(line: str, chat: OpenChat, reader: Reader) -> Reply:
    """Run a command and show what it says. One that cannot be done says why; Ctrl-C ends a model's loading."""
    try:
        with reader.allow_interrupt():
            reply = run_command(line, chat)
    except LlamachatError as error:
        out.error(str(error), error.next_step)
        return Reply()
    except KeyboardInterrupt:
        out.note("(interrupted)")
        return Reply()
    if reply.text:
        out.text(reply.text)
    if reply.copy is not None:
        out.copy(reply.copy)
    return reply


def _message(chat: OpenChat, text: str) -> Stream:
    """What is sent: files that were attached or are named in it, then what was typed."""

    def send(cancel: threading.Event) -> AnswerEvents:
        named = {path: read_text(path) for path in mentioned_files(text)}
        for path, content in named.items():
            out.note(f"{path.name} ({describe_length(content, chat.session.engine.tokenizer)}) goes before it.")
        yield from chat.session.send("\n\n".join([*chat.attached, *named.values(), unescape_mentions(text)]), cancel)
        chat.attached.clear()  # not if the message was refused

    return send


def _edited(chat: OpenChat, reader: Reader, text: str) -> Stream | None:
    """Let the user change a message; None if nothing is to come of it."""
    try:
        changed = reader.read(escape(text))
    except (EOFError, KeyboardInterrupt):
        changed = ""
    message = unescape_mentions(unescape(changed)).strip("\n")
    return (lambda cancel: chat.session.edit(message, cancel)) if message.strip() else None


def _next_line(reader: Reader, toolbar: Toolbar, *, interrupted: bool) -> str | None:
    """What was typed, or None to leave: at Ctrl-D, or at the second Ctrl-C in a row.

    `interrupted` tells that Ctrl-C was pressed during the last answer: again at once, it still means that answer.
    """
    started = time.monotonic()
    asked = False
    while True:
        try:
            toolbar.refresh()
            return reader.read()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if interrupted and time.monotonic() - started < SAME_WISH_S:
                continue
            if asked:
                return None
            asked = True
            out.note("(Ctrl-C again, or Ctrl-D, leaves)")


def _answer(chat: OpenChat, reader: Reader, answer: Stream, *, show_stats: bool) -> bool:
    """Stream one answer and an empty line; return whether Ctrl-C was pressed. An error costs this turn only."""
    before = chat.session.conversation
    showing = Showing(shows_thoughts=chat.shows_thoughts)
    with cancel_on_interrupt() as cancel:  # around all: a Ctrl-C that comes too late must not end the program
        try:
            with reader.allow_interrupt(), showing:
                if given := showing.show_all(answer(cancel)):
                    _finish(chat, given, shown=showing.is_begun, show_stats=show_stats)
        except LlamachatError as error:
            out.error(str(error), chat.window_advice(error) if isinstance(error, PromptTooLong) else error.next_step)
            if showing.is_begun and chat.session.conversation != before:
                out.note("(what there is of the answer is kept; /continue goes on)")
        out.text("")
    return cancel.is_set()


def _finish(chat: OpenChat, answer: Answer, *, shown: bool, show_stats: bool) -> None:
    """What follows an answer; `shown` tells whether anything of it is on the screen now."""
    chat.last_answer = answer
    if answer.content and not shown:
        ending = _NOTHING_MORE[answer.finish_reason]  # of an answer that was to go on
    else:
        ending = _ENDINGS.get((answer.finish_reason, shown or _is_in_thoughts(answer)), "")
    if ending:
        out.note(ending if chat.session.engine.can_continue else ending.replace(_CAN_GO_ON, "/retry asks again"))
    if again := describe_read_again(answer):
        out.note(again)
    if show_stats:
        out.note(wrapped(chat.describe_stats(answer)))


def _is_in_thoughts(answer: Answer) -> bool:
    return bool(answer.reasoning) and answer.finish_reason != "stop"


_CAN_GO_ON = "/continue goes on"
_ENDINGS = {
    ("stop", False): "(the model has nothing to say)",
    ("interrupted", False): "(interrupted before the answer began; /retry asks again)",
    ("interrupted", True): "(interrupted; /continue goes on)",
    ("length", False): "(there was no room for an answer)",
    ("length", True): "(the answer reached its token limit or the end of the context window; /continue goes on)",
}
"""By finish reason and whether anything was shown, or thought before it was cut short."""

_NOTHING_MORE = {
    "stop": "(the model has nothing to add)",
    "interrupted": "(interrupted; /continue goes on)",
    "length": "(there is no room for more of the answer)",
}
