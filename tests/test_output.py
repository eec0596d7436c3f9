"""What the program says of names and texts from elsewhere: shown on a terminal, never obeyed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from llamachat.cli import progress
from llamachat.cli.output import Output

HOSTILE = "a\x1b]0;mine\x07\x9b31m\u202e[/red][bold]b"
SHOWN = "a␛]0;mine␇<9B>31m<U+202E>[/red][bold]b"


def test_file_names_and_notices_do_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    talk = Console(file=screen, force_terminal=True, width=200, color_system=None, _environ={})
    out = Output()
    monkeypatch.setitem(out.__dict__, "talk", talk)
    monkeypatch.setattr(progress, "out", out)
    with progress.pull_progress() as shown:
        shown.file(HOSTILE, 1, 2)
        shown.arrived(HOSTILE + "1", 2)
        shown.notice(HOSTILE + "2")
    with out.status(HOSTILE + "3") as change:
        change(HOSTILE + "4")
    text = screen.getvalue()
    for sign in ("", "1", "2", "4"):
        assert SHOWN + sign in text
    assert not any(steering in text for steering in ("\x1b]", "\x07", "\x9b", "\u202e"))
