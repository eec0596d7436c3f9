"""What a slash command is, and what it answers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from llamachat.chat.events import AnswerEvents
from llamachat.cli.live_chat import OpenChat
from llamachat.errors import LlamachatError

PREFIX = "/"

Stream = Callable[[threading.Event], AnswerEvents]
"""Given the event that ends it early: an answer, as it comes."""


@dataclass(frozen=True)
class Reply:
    """What a command says, and what is to happen then."""

    text: str = ""
    leave: bool = False
    answer: Stream | None = None
    """An answer to be shown."""
    edit: str | None = None
    """A message to be changed in the line editor; what comes of it takes the last message's place."""
    copy: str | None = None
    """A text for the terminal's clipboard."""


Run = Callable[[OpenChat, str], Reply]


@dataclass(frozen=True)
class Command:
    """A slash command."""

    name: str
    arguments: str
    help: str
    run: Run


class BadCommand(LlamachatError):
    """A command that cannot be done as it was typed; nothing has changed."""
