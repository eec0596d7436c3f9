"""Asking before something is lost."""

from __future__ import annotations

import sys

import typer

from llamachat.cli.output import out
from llamachat.cli.terminal.escapes import visible
from llamachat.errors import NobodyToAsk


def confirm(question: str, *, yes: bool) -> None:
    """Ask on stderr, unless `yes`; a no ends the command with 1. Raises `NobodyToAsk` away from a terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise NobodyToAsk(question)
    if not typer.confirm(visible(question), err=True):
        out.note("Nothing was removed.")
        raise typer.Exit(1)
