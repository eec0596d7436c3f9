"""Slash commands: a table of small functions over a session, which need no terminal."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

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


def unescape(line: str) -> str:
    """A typed line as a message: `//` stands for one slash."""
    return line[1:] if line.startswith(PREFIX * 2) else line


def run_command(line: str, chat: OpenChat) -> Reply:
    """Run a typed command; an unknown one names the nearest, and nothing is sent to the model."""
    name, _, argument = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=2)
        guess = f" Did you mean {' or '.join(near)}?" if near else ""
        return Reply(f"There is no {name}.{guess} See /help. To send it as a message, type /{name}")
    return command.run(chat, argument.strip())


def _help(_chat: OpenChat, _argument: str) -> Reply:
    width = max(len(f"{command.name} {command.arguments}") for command in COMMANDS.values())
    lines = [f"{f'{c.name} {c.arguments}':<{width}}  {c.help}" for c in COMMANDS.values()]
    lines.append(f"{'Ctrl-C':<{width}}  stop the answer; twice at the prompt: leave")
    return Reply("\n".join(lines))


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
