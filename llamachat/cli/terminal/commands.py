"""Slash commands: a table of small functions over a session, which need no terminal."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from shutil import get_terminal_size
from textwrap import fill

from llamachat.cli.opening import OpenChat

PREFIX = "/"


@dataclass(frozen=True)
class Reply:
    """What a command says, and whether the chat goes on."""

    text: str = ""
    leave: bool = False


@dataclass(frozen=True)
class Command:
    """A slash command."""

    name: str
    arguments: str
    help: str
    run: Callable[[OpenChat, str], Reply]


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
    """Run a typed command; an unknown one names the nearest, and nothing is sent to the model."""
    name, argument = (*line.split(maxsplit=1), "")[:2]
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=2)
        guess = f"Did you mean {' or '.join(near)}?" if near else "See /help."
        return Reply(f"There is no {name}. {guess} To send it as a message, begin with {PREFIX * 2}")
    return command.run(chat, argument.strip())


def _help(_chat: OpenChat, _argument: str) -> Reply:
    rows = {f"{command.name} {command.arguments}": command.help for command in COMMANDS.values()}
    rows["Ctrl-C"] = "stop the answer; twice at the prompt: leave"
    width = max(map(len, rows)) + 2
    columns = max(get_terminal_size().columns, 2 * width)
    return Reply("\n".join(
        fill(text, columns, initial_indent=name.ljust(width), subsequent_indent=" " * width)
        for name, text in rows.items()
    ))  # fmt: skip


def _clear(chat: OpenChat, _argument: str) -> Reply:
    chat.session.start_over(chat.session.conversation.system)
    return Reply("The conversation starts over.")


def _system(chat: OpenChat, argument: str) -> Reply:
    if not argument:
        system = chat.session.conversation.system
        return Reply(f"System prompt: {system}" if system else "There is no system prompt.")
    chat.session.start_over(None if argument == "-" else argument)
    return Reply("System prompt removed; the conversation starts over." if argument == "-" else
                 "System prompt set; the conversation starts over.")  # fmt: skip


def _exit(_chat: OpenChat, _argument: str) -> Reply:
    return Reply(leave=True)


COMMANDS: dict[str, Command] = {
    f"{PREFIX}{command.name}": Command(f"{PREFIX}{command.name}", command.arguments, command.help, command.run)
    for command in (
        Command("help", "", "show this list", _help),
        Command("clear", "", "start over, keeping the system prompt", _clear),
        Command("system", "[TEXT|-]", "show, set or remove the system prompt; starts over", _system),
        Command("exit", "", "leave", _exit),
    )
}
