"""What the program says of names and texts from elsewhere: shown on a terminal, never obeyed."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from llamachat.cli import progress
from llamachat.cli.output import Output
from llamachat.cli.terminal.escapes import visible

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


def test_json_does_not_steer_the_terminal_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x2100)])) + HOSTILE + "\x7f\x85湖"
    Output().json({everything: [everything]})
    document = capsys.readouterr().out
    assert json.loads(document) == {everything: [everything]}
    assert "湖" in document
    assert visible(document) == document


@pytest.mark.parametrize("width", [40, 60, 80])
def test_however_narrow_the_terminal_how_far_it_is_can_be_read(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    out = Output()
    talk = Console(file=screen, force_terminal=True, width=width, color_system=None, _environ={})
    monkeypatch.setitem(out.__dict__, "talk", talk)
    monkeypatch.setattr(progress, "out", out)
    with progress.pull_progress() as shown:
        shown("download", 3 * 10**9, 4 * 10**9)
        shown("quantize", 1, 2)
        shown.file("model-00001-of-00003.safetensors", 10**9, 2 * 10**9)
    rows = [line for line in screen.getvalue().splitlines() if "%" in line]
    total, _, file = rows[-3:]
    assert " 75% " in total
    assert " 50% " in file
    assert "  model-00001" in file
    assert total.rstrip().endswith(" --:--" if width < 60 else " -:--:--")
