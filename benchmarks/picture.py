"""Draw the picture of a chat that the README shows: a real answer of the demo model, as the screen has it.

python benchmarks/picture.py [docs/chat.svg]
"""

from __future__ import annotations

import io
import sys
import threading

from rich.console import Console
from rich.text import Text

from llamachat.chat.events import Answer, TextPiece
from llamachat.cli.chat_wishes import ChatOptions
from llamachat.cli.live_chat import OpenChat
from llamachat.cli.opening import open_chat
from llamachat.cli.terminal.blocks import BlockSplitter
from llamachat.cli.terminal.markdown import BlockRenderer
from llamachat.engine.base import EngineOptions

_COLUMNS = 84
_QUESTIONS = ("What is the capital of France?", "Write a Python function that adds two numbers.")


def ask(chat: OpenChat, question: str, picture: Console) -> None:
    """One turn, as rows of the screen."""
    picture.print(Text("> ", "bold") + Text(question))
    splitter, renderer = BlockSplitter(), BlockRenderer(picture)
    for event in chat.session.send(question, threading.Event()):
        match event:
            case TextPiece(text):
                _print(renderer.final(splitter.feed(text), _COLUMNS), picture)
            case Answer():
                _print(renderer.final(splitter.finish(), _COLUMNS), picture)
    picture.print()


def _print(rows: list[str], picture: Console) -> None:
    for row in rows:
        picture.print(Text.from_ansi(row))


def main() -> None:
    """Write the SVG file."""
    picture = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    options = ChatOptions(EngineOptions(), {"temperature": 0.0}, max_tokens=220)
    with open_chat(None, options, save=False) as chat:
        picture.print(Text(chat.describe(), "dim"))
        for question in _QUESTIONS:
            ask(chat, question, picture)
    picture.save_svg(sys.argv[1] if len(sys.argv) > 1 else "docs/chat.svg", title="llamachat chat")


if __name__ == "__main__":
    main()
