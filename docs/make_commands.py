"""Writes commands.md: the help of every command, as the program itself prints it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from llamachat.cli.app import app

PAGE = Path(__file__).with_name("commands.md")
_COLUMNS = 100


def render_page() -> str:
    """The whole page."""
    sections = "\n".join(f"## {path}\n\n```\n{text}\n```\n" for path, text in _helps(typer.main.get_command(app)))
    return f"# Commands\n\nWhat `--help` prints, of every command. Made by `make docs`.\n\n{sections}"


def _helps(command: Any, parent: Any = None) -> Iterator[tuple[str, str]]:
    """The full name and the help of a command and those below it."""
    name = command.name if parent else "llamachat"
    context = command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=_COLUMNS)
    yield context.command_path, command.get_help(context)
    for below in getattr(command, "commands", {}).values():
        yield from _helps(below, context)


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
