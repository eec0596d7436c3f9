"""Commands that change what has been said."""

from __future__ import annotations

import shlex
from itertools import islice
from pathlib import Path

from llamachat.cli.context import keep_context
from llamachat.cli.describing import describe_length
from llamachat.cli.format import count
from llamachat.cli.live_chat import OpenChat
from llamachat.cli.question import read_text
from llamachat.cli.terminal.commands.command import BadCommand, Command, Reply
from llamachat.cli.terminal.commands.settings import parse_settings
from llamachat.paths import expand_user

_SHOWN_CHARACTERS = 60
_MAX_FILES = 100


def _clear(chat: OpenChat, _argument: str) -> Reply:
    return Reply(_start_over(chat, "The conversation starts over", chat.session.conversation.system))


def _start_over(chat: OpenChat, said: str, system: str | None) -> str:
    keep_context(chat)
    so_far = chat.start_over(system)
    chat.attached.clear()
    return f"{said}; the one so far is kept: /resume {so_far}" if so_far else f"{said}."


def _system(chat: OpenChat, argument: str) -> Reply:
    if not argument:
        system = chat.session.conversation.system
        return Reply(f"System prompt: {system}" if system else "There is no system prompt.")
    change = "removed" if argument == "-" else "set"
    system = chat.session.template.no_system if argument == "-" else argument
    return Reply(_start_over(chat, f"System prompt {change}. The conversation starts over", system))


def _undo(chat: OpenChat, argument: str) -> Reply:
    n_turns = _number(argument or "1", "/undo takes a number of turns.")
    if not (chat.session.conversation.messages or chat.session.unanswered):
        raise BadCommand("There is nothing to take back.", "Nothing has been said yet.")
    gone = chat.session.undo(n_turns)
    return Reply(f"Took back {count(len(gone), 'turn')}, from: {_beginning(gone[0][0].content)}")


def _retry(chat: OpenChat, argument: str) -> Reply:
    chat.session.require_question()
    sampling = parse_settings(chat, argument.split())
    return Reply(answer=lambda cancel: chat.session.retry(cancel, sampling))


def _edit(chat: OpenChat, argument: str) -> Reply:
    question = chat.session.require_question()
    if argument:
        return Reply(answer=lambda cancel: chat.session.edit(argument, cancel))
    return Reply(edit=question.content)


def _continue(chat: OpenChat, _argument: str) -> Reply:
    chat.session.require_question()
    return Reply(answer=chat.session.go_on)


def _compact(chat: OpenChat, argument: str) -> Reply:
    return Reply(answer=lambda cancel: chat.session.compact(cancel, argument))


def _pin(chat: OpenChat, argument: str) -> Reply:
    _require_turn(chat)
    word, *rest = argument.split() or [""]
    is_pinned = word != "off"
    number = " ".join([word, *rest] if is_pinned else rest)
    n_turns = len(chat.session.conversation.turns)
    i_turn = _number(number, "/pin takes the number of a turn, as /context shows it.") if number else n_turns
    if not 1 <= i_turn <= n_turns:
        raise BadCommand(f"There is no turn {i_turn}.", f"There are {n_turns}; /context shows them.")
    chat.session.pin(i_turn - 1, is_pinned=is_pinned)
    return Reply(f"Turn {i_turn} stays in the window." if is_pinned else f"Turn {i_turn} may leave the window.")


def _file(chat: OpenChat, argument: str) -> Reply:
    if not argument:
        raise BadCommand("/file needs the path of a text file.", "For example: /file notes.txt, or /file src/*.py")
    texts = {path: _read(path) for path in _paths(argument)}  # all of them, or none
    chat.attached += [f"{path.name}:\n{text}" for path, text in texts.items()] if len(texts) > 1 else texts.values()
    tokenizer = chat.session.engine.tokenizer
    rows = [f"{path.name} ({describe_length(text, tokenizer)})" for path, text in texts.items()]
    return Reply(f"{', '.join(rows)} {'go' if len(rows) > 1 else 'goes'} before your next message.")


def _unquoted(argument: str) -> str:
    """A path as a shell would take it, if it is one."""
    try:
        words = shlex.split(argument)
    except ValueError:  # a quote that is never closed
        return argument
    return words[0] if len(words) == 1 else argument


def _paths(argument: str) -> list[Path]:
    """The file of that name; or else, by its wildcards, several."""
    path = expand_user(argument)
    if not path.exists():
        path = expand_user(argument := _unquoted(argument))
    if path.exists() or not set("*?[") & set(argument):
        return [path]
    matches = (match for match in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if match.is_file())
    try:
        found = sorted(islice(matches, _MAX_FILES + 1))
    except ValueError as error:  # as Python has it for **x
        raise BadCommand(f"{argument} is no pattern of file names.", "Write ** between slashes only.") from error
    if not found:
        raise BadCommand(f"No file is called like {argument}.", "Tab completes file names.")
    if len(found) > _MAX_FILES:
        raise BadCommand(f"More than {_MAX_FILES} files are called like {argument}.", "Take fewer at once.")
    return found


def _read(path: Path) -> str:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise BadCommand(f"{path} is not a file.", "A pipe or a device might never end; save what it gives first.")
    return read_text(path)


def _require_turn(chat: OpenChat) -> None:
    if not chat.session.conversation.messages:
        raise BadCommand("Nothing has been said yet.", "Ask something first.")


def _number(text: str, problem: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0):
        raise BadCommand(problem, "Give a number above 0.")
    return int(text[:9])


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"


TALK = (
    Command("clear", "", "start over, keeping the system prompt", _clear),
    Command("undo", "[N]", "take back the last turn, or the last N", _undo),
    Command("retry", "[NAME=VALUE …]", "answer the last message again, perhaps with other sampling", _retry),
    Command("edit", "[TEXT]", "change the last message, and have it answered anew", _edit),
    Command("continue", "", "go on with an answer that was cut short", _continue),
    Command("compact", "[WHAT MATTERS]", "put a summary in the place of older turns; /undo brings them back", _compact),
    Command("system", "[TEXT|-]", "show, set or remove the system prompt; starts over", _system),
    Command("pin", "[off] [N]", "keep the last turn, or turn N, in the window however full that gets", _pin),
    Command("file", "PATH", "put a text file, or several (*.py), before your next message", _file),
)
