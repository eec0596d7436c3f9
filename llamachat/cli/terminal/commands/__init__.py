"""Slash commands: a table of small functions over a chat, which need no terminal."""

from __future__ import annotations

import difflib
from textwrap import fill

from llamachat.cli.live_chat import OpenChat
from llamachat.cli.terminal.commands.command import PREFIX, BadCommand, Command, Reply, Stream
from llamachat.cli.terminal.commands.keep import KEEP
from llamachat.cli.terminal.commands.look import LOOK
from llamachat.cli.terminal.commands.settings import SETTINGS
from llamachat.cli.terminal.commands.talk import TALK
from llamachat.cli.terminal.size import terminal_size
from llamachat.errors import SystemRefused

__all__ = [
    "COMMANDS",
    "PREFIX",
    "BadCommand",
    "Command",
    "Reply",
    "Stream",
    "escape",
    "is_command",
    "run_command",
    "unescape",
]


def is_command(line: str) -> bool:
    """Whether a typed line is a command; `//` begins an ordinary message that starts with a slash."""
    return line.startswith(PREFIX) and not line.startswith(PREFIX * 2)


def escape(text: str) -> str:
    """Text as it is typed so that it is a message whatever it begins with."""
    return PREFIX + text if text.startswith(PREFIX) else text


def unescape(line: str) -> str:
    """A typed line as a message: `//` stands for one slash."""
    return line[1:] if line.startswith(PREFIX * 2) else line


def run_command(line: str, chat: OpenChat) -> Reply:
    """Run a typed command; an unknown one names the nearest, and nothing is sent to the model.

    Raises `LlamachatError` if it cannot be done; the chat is then as before.
    """
    name, argument = (*line.split(maxsplit=1), "")[:2]
    command = COMMANDS.get(name)
    if command is None:
        word = name.lower()
        near = [_ELSEWHERE[word]] if word in _ELSEWHERE else difflib.get_close_matches(word, COMMANDS, 2, 0.7)
        guess = f"Did you mean {' or '.join(near)}?" if near else "See /help."
        return Reply(f"There is no {name}. {guess} To send it as a message, begin with {PREFIX * 2}")
    try:
        return command.run(chat, argument.strip())
    except OSError as error:  # such as a path that is too long
        raise SystemRefused(error) from error


def _help(_chat: OpenChat, _argument: str) -> Reply:
    rows = {f"{command.name} {command.arguments}": command.help for command in COMMANDS.values()}
    rows |= _KEYS
    width = max(map(len, rows)) + 2
    columns = terminal_size().columns
    if columns < width + _NARROWEST_HELP:
        return Reply("\n".join(f"{name}\n{_indented(text, columns, ' ' * 4)}" for name, text in rows.items()))
    return Reply(
        "\n".join(name.ljust(width) + _indented(text, columns, " " * width).lstrip() for name, text in rows.items())
    )


def _indented(text: str, columns: int, indent: str) -> str:
    return fill(text, max(columns, len(indent) + 1), initial_indent=indent, subsequent_indent=indent)


def _exit(_chat: OpenChat, _argument: str) -> Reply:
    return Reply(leave=True)


_NARROWEST_HELP = 24

_ELSEWHERE = {
    "/bye": "/exit", "/quit": "/exit", "/q": "/exit", "/regen": "/retry", "/forget": "/undo", "/pop": "/undo",
    "/new": "/clear", "/reset": "/clear", "/load": "/resume", "/save": "/export", "/dump": "/export", "/read": "/file",
    "/glob": "/file", "/upload": "/file", "/show": "/context", "/push": "/fork", "/?": "/help",
}  # fmt: skip
"""What other chats call them."""

_KEYS = {
    "Enter": "send; Alt-Enter or Ctrl-J begins a new line",
    "@FILE": "in a message: put the text of that file before it",
    "Ctrl-X Ctrl-E": "write in your editor",
    "Ctrl-R": "search what you typed before",
    "Ctrl-C": "stop the answer; twice at the prompt: leave",
}

COMMANDS: dict[str, Command] = {
    f"{PREFIX}{command.name}": Command(f"{PREFIX}{command.name}", command.arguments, command.help, command.run)
    for command in (
        Command("help", "", "show this list", _help),
        *TALK,
        *LOOK,
        *SETTINGS,
        *KEEP,
        Command("exit", "", "leave", _exit),
    )
}
