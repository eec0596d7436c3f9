"""The prompt line and the answers below it: the real program in a pseudo-terminal, an engine that keeps to a script."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from llamachat.cli.terminal.chips import Chips
from llamachat.paths import input_history_path
from support.terminal import CTRL_C, ENTER, TAB, Terminal

BACKSPACE, CTRL_A, CTRL_E, CTRL_J, CTRL_R, CTRL_X, ALT_ENTER = "\x7f", "\x01", "\x05", "\n", "\x12", "\x18", "\x1b\r"
TESTS = Path(__file__).parent
COLOURS = {*range(30, 50), *range(90, 108)}

Answers = list[list[str | float | None]]
StartChat = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartChat]:
    """Run `llamachat chat …` with these answers, in a terminal of its own."""
    with ExitStack() as stack:

        def start_chat(answers: Answers, *arguments: object, ready: str | None = "\n>", **terminal: Any) -> Terminal:
            script = tmp_path / "script.json"
            script.write_text(json.dumps(answers))
            environment = {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), **terminal.pop("env", {})}
            command = [sys.executable, "-m", "support.scripted_chat", script, *arguments]
            started = stack.enter_context(Terminal(command, env=environment, **terminal))
            if ready:
                started.wait_for(ready)
            return started

        yield start_chat


def pieces(text: str, n: int = 3) -> list[str | float | None]:
    return [text[i : i + n] for i in range(0, len(text), n)]


def echo(n: int) -> Answers:
    """Answers that only say which one they are."""
    return [[f"Answer {i}."] for i in range(1, n + 1)]


def remembered() -> str:
    """What was typed and sent, as it is on the disk."""
    return input_history_path().read_text(encoding="utf-8")


def test_an_answer_that_fails_in_the_middle_goes_on(start: StartChat) -> None:
    chat = start([["One,", None], [" two"], []])
    chat.enter("Count")
    chat.wait_for("One,\nError: ")
    chat.wait_for("(what there is of the answer is kept; /continue goes on)\n\n>")
    chat.enter("/continue")
    chat.wait_for("two\n\n>")
    chat.enter("/continue")
    chat.wait_for("(the model has nothing to add)")


# --- answers ------------------------------------------------------------------------------------------------

RICH = (
    "# Cities\n\nThe **capital** of France is *Paris*; this line is longer than the forty columns that there are.\n\n"
    "- one\n- 二：中文的项目也会在四十列处换行，因为它实在是太长了，对吧？\n\n"
    "| city | 人口 |\n|---|--:|\n| Paris | 2 |\n\n"
    "```python\ndef f():\n    return 1\n```\nThe end 👩‍👩‍👧.\n"
)
RENDERED = """\
Cities

The capital of France is Paris; this
line is longer than the forty columns
that there are.

• one
• 二：中文的项目也会在四十列处换行，因为
  它实在是太长了，对吧？

 city   人口
 ───────────
 Paris     2

  def f():
      return 1

The end 👩"""  # the emulator draws no joined emoji


def test_an_answer_is_rendered_while_it_comes(start: StartChat) -> None:
    streamed = [step for piece in pieces(RICH) for step in (piece, 0.004)]
    chat = start([streamed, pieces(RICH)], columns=40)
    for n in (1, 2):
        chat.enter("你好")
        chat.wait_until(lambda n=n: chat.text.count("The end") == n and chat.text.endswith("\n\n>"))  # type: ignore[misc]
    first, second = chat.text.split("> 你好\n")[1:]
    assert first.replace(" ", "").rstrip("\n") == RENDERED.replace(" ", "")
    assert first.rstrip("\n") == second.removesuffix(">").rstrip("\n")
    assert "👩\u200d👩\u200d👧.".encode() in chat.raw
    assert chat.sgr_codes() & COLOURS


def test_a_long_answer_stays_in_the_scrollback_through_resizes(start: StartChat) -> None:
    words = [f"word{i}" for i in range(300)]
    text = "".join(f"{word}{'.' if i % 30 else '.' + chr(10) * 2} " for i, word in enumerate(words))
    answer = [step for piece in pieces(text, 8) for step in (piece, 0.002)]
    chat = start([answer], columns=45, lines=12, env={"XTERM_VERSION": "like this emulator"})
    chat.enter("Go")
    for n_seen, columns in ((60, 60), (120, 80), (200, 100)):
        chat.wait_for(f"word{n_seen}.")
        chat.resize(columns, 12)
    chat.wait_for("word299.")
    assert re.findall(r"word\d+", "\n".join([*chat.scrollback, chat.text])) == words


def test_no_color_and_plain(start: StartChat) -> None:
    chat = start([pieces(RICH)], env={"NO_COLOR": "1"}, columns=40)
    chat.enter("Hi")
    chat.wait_for("The end")
    assert "The capital of France is Paris;" in chat.text
    assert not chat.sgr_codes() & COLOURS

    for arguments, environment in ((("--plain",), {}), ((), {"TERM": "dumb"})):
        plain = start([pieces(RICH)], "-p", "Hi", *arguments, ready=None, env=environment, columns=100)
        assert plain.wait_for_exit() == 0
        assert "The **capital** of France is *Paris*;" in plain.text
        assert "```python\ndef f():" in plain.text
        assert b"\x1b" not in plain.raw


def test_one_answer_on_a_terminal_is_rendered(start: StartChat) -> None:
    chat = start([pieces(RICH)], "-p", "Hi", ready=None, columns=40)
    assert chat.wait_for_exit() == 0
    assert "Cities\n\nThe capital of France is Paris; this\n" in chat.text


def test_sighup_leaves_in_order(start: StartChat) -> None:
    chat = start([["Some **bold", " words and", 1.5, " more"]])
    chat.enter("Hi")
    chat.wait_for("Some bold words and")
    assert "*" not in chat.text
    chat.process.send_signal(signal.SIGHUP)
    assert chat.wait_for_exit() == 128 + signal.SIGHUP
    assert chat.is_as_found()


# --- typing -------------------------------------------------------------------------------------------------


def test_keys_that_break_the_line(start: StartChat) -> None:
    chat = start(echo(1))
    chat.send("one" + ALT_ENTER + "two" + CTRL_J + "three")
    chat.wait_for("> one\n  two\n  three")
    chat.send(ENTER)
    chat.wait_for("Answer 1.\n\n>")
    assert "\n+one\n+two\n+three\n" in remembered()
    chat.wait_until(
        lambda: re.fullmatch(r"\d+ of 4,096 tokens · [\d.]+ tok/s · one two three", chat.toolbar.strip()) is not None
    )


def test_a_long_paste_is_one_chip(start: StartChat) -> None:
    chat = start(echo(3), columns=120)
    commands = "\n".join(f"/exit {i}" for i in range(200))
    chat.paste(commands)
    chat.wait_for(f"> [pasted 200 lines, {len(commands):,} tokens]")
    chat.send(ENTER)
    chat.wait_for("Answer 1.\n\n>")

    chat.send("Compare ")
    chat.paste("first\n" * 30)
    chat.send(" with ")
    chat.paste("second\n" * 40)
    chat.paste("third\n" * 50)
    chat.wait_for("> Compare [pasted 30 lines, 180 tokens] with [pasted 40 lines, 280 tokens][pasted 50 lines,")
    chat.send(BACKSPACE + "!" + CTRL_A + "Please: " + CTRL_E + "?" + ENTER)
    chat.wait_for(
        "> Please: Compare [pasted 30 lines, 180 tokens] with [pasted 40 lines, 280 tokens]!?\nAnswer 2.\n\n>"
    )
    assert "\n+//exit 0\n+/exit 1\n" in remembered()
    assert "\n+Please: Compare first\n+first\n" in remembered()
    assert "third" not in remembered()

    chat.paste("short\nof two lines")
    chat.wait_for("> short\n  of two lines")
    chat.send(CTRL_C)

    chat.send("x")
    chat.paste("/exit")
    chat.send(CTRL_A + "\x1b[3~" + ENTER)  # what was typed before it is deleted
    chat.wait_for("> /exit\nAnswer 3.\n\n>")
    assert "\n+//exit\n" in remembered()
    chat.enter("/exit")
    assert chat.wait_for_exit() == 0


def test_a_paste_into_a_plain_prompt_is_one_message(start: StartChat) -> None:
    chat = start(echo(2), "--plain", "--no-save")
    chat.send("/exit\r/clear\rthird")  # as terminals paste where nobody has asked for brackets
    chat.wait_for("(pasted; Enter sends)")
    chat.send(" line" + ENTER)
    chat.wait_for("Answer 1.\n\n>")
    chat.enter("/prompt")
    chat.wait_for("/exit\n/clear\nthird line<|im_end|>")
    chat.enter("/exit")
    assert chat.wait_for_exit() == 0


def test_a_line_that_the_terminal_has_cut_is_not_sent(start: StartChat) -> None:
    chat = start(echo(1), "--plain", "--no-save")
    chat.send("x" * 5000 + ENTER)
    chat.wait_until(lambda: "has cut this line after 4,095 bytes" in " ".join(chat.text.split()), "a notice")
    chat.enter("short")
    chat.wait_for("Answer 1.\n\n>")
    chat.enter("/prompt")
    chat.wait_for("user\nshort<|im_end|>")
    assert "Answer 2" not in chat.text


def test_the_editor(start: StartChat, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nwc -l < "$1" > "$0.lines"\necho "from the editor" >> "$1"\n')
    editor.chmod(0o700)
    chat = start(echo(1), env={"VISUAL": str(editor), "EDITOR": "/bin/false"})
    chat.send("typed ")
    chat.paste("x\n" * 25)
    chat.wait_for("[pasted 25 lines")
    chat.send(CTRL_X + CTRL_E)
    chat.wait_for("from the editor")
    assert int((tmp_path / "editor.lines").read_text()) >= 25
    chat.send(ENTER)
    chat.wait_for("Answer 1.")


def test_history_can_be_searched(start: StartChat) -> None:
    chat = start(echo(3))
    for n, text in enumerate(("the first question", "另一个问题", "the last question"), 1):
        chat.enter(text)
        chat.wait_for(f"Answer {n}.\n\n>")
    chat.send(CTRL_R + "first")
    chat.wait_until(lambda: "first" in chat.cursor_line)
    chat.send(ENTER)
    chat.wait_until(lambda: chat.text.count("> the first question") == 2)


def test_a_line_that_cannot_be_remembered_is_sent_all_the_same(start: StartChat) -> None:
    chat = start(echo(1))
    input_history_path().unlink()
    input_history_path().mkdir()
    chat.enter("Hi")
    chat.wait_for("Answer 1.")
    assert "xception" not in chat.text


def test_ctrl_c_ends_a_command_that_loads_a_model(start: StartChat, tmp_path: Path) -> None:
    chat = start(echo(1), env={"SCRIPTED_LOAD_S": "1.2"})
    chat.enter("/set ctx 512")
    chat.watch(0.3)
    chat.send(CTRL_C)
    chat.wait_for("(interrupted)", 0.8)
    os.mkfifo(tmp_path / "pipe")
    chat.enter(f"/file {tmp_path / 'pipe'}")
    chat.wait_for("Next: A pipe")
    chat.enter("Hi")
    chat.wait_for("Answer 1.")


def test_a_typed_mention_puts_a_file_before_the_message_and_a_pasted_one_does_not(
    start: StartChat, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("Ice is cold.")
    (tmp_path / "b.dat").write_bytes(b"\0")
    notes = os.path.relpath(tmp_path / "notes.txt")
    chat = start(echo(4), "--no-save", columns=200, lines=150)
    chat.send(f"What is in @{notes[:-2]}" + TAB)
    chat.wait_until(lambda: chat.cursor_line == f"> What is in @{notes}")
    chat.enter(", me@home, @nothing?")
    chat.wait_for("notes.txt (12 tokens) goes before it.\nAnswer 1.\n\n>")
    chat.enter("/prompt")
    chat.wait_for(f"Ice is cold.\n\nWhat is in @{notes}, me@home, @nothing?<|im_end|>")
    chat.paste(f"@{notes} and @nothing")
    chat.wait_for(f"> @@{notes} and @nothing")
    chat.paste("\n@@x\n" * 20 + f"@{notes}")
    chat.enter("")
    chat.wait_for("Answer 2.\n\n>")
    chat.enter("/prompt")
    chat.wait_for(f"user\n@{notes} and @nothing\n@@x\n\n@@x")
    chat.wait_for(f"@@x\n@{notes}<|im_end|>")
    assert chat.text.count("goes before it") == 1
    chat.enter(f"Look at @{tmp_path / 'b.dat'}")
    chat.wait_for("is a binary file")


def test_completion(start: StartChat, tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a folder" / "notes.txt").touch()
    (tmp_path / "a folder" / "\x1b]0;x\x07").touch()
    chat = start([])
    chat.send("/sy" + TAB)
    chat.wait_for("> /system")
    chat.send(CTRL_C)
    chat.wait_until(lambda: chat.text.endswith("\n>"))
    chat.send(f"see {tmp_path}/a" + TAB)
    chat.wait_until(lambda: "/a folder" in chat.text.replace("\n", ""))
    assert b"]0;x" not in chat.raw


def test_what_commands_take_is_completed(start: StartChat) -> None:
    chat = start(echo(2))
    chat.enter("Hi")
    chat.wait_for("Answer 1.\n\n>")
    for typed, completed in (
        ("/resume ", "/resume 1"),
        ("/set ct", "/set ctx"),
        ("/retry see", "/retry seed="),
        ("/model smollm2-135m-in", "/model smollm2-135m-instruct:q4_1"),
    ):
        chat.send(typed + TAB)
        chat.wait_until(lambda completed=completed: chat.cursor_line == f"> {completed}")  # type: ignore[misc]
        chat.send(CTRL_C)
        chat.wait_until(lambda: chat.cursor_line == ">")

    again = start(echo(2), "--resume")
    assert "Conversation 1 goes on after 1 turn: Hi" in again.text


# --- while the model loads ----------------------------------------------------------------------------------


def test_a_message_can_be_typed_while_the_model_loads(start: StartChat) -> None:
    chat = start(echo(2), ready=None, env={"SCRIPTED_LOAD_S": "1.5"})
    chat.wait_until(lambda: chat.toolbar.startswith("Loading smollm2-135m-instruct"))
    assert chat.text == ">"
    chat.paste("one\n" * 30)
    chat.wait_for("> [pasted 30 lines]")
    chat.send(" and" + ENTER)
    chat.wait_until(lambda: chat.toolbar.endswith(" · what you sent waits for it"))
    chat.wait_for("Answer 1.\n\n>")
    assert chat.text.startswith("smollm2-135m-instruct:q4_1 · 4,096 tokens")
    assert "\n> [pasted 30 lines, 120 tokens] and\nAnswer 1.\n\n>" in chat.text
    chat.enter("next")
    chat.wait_for("> next\nAnswer 2.\n\n>")


def test_a_line_that_is_not_sent_yet_stays_as_it_is(start: StartChat) -> None:
    chat = start(echo(1), ready=None, env={"SCRIPTED_LOAD_S": "1.2"})
    chat.wait_until(lambda: chat.toolbar.startswith("Loading"))
    chat.send("dropped" + CTRL_C + "a question" + ENTER + " more" + CTRL_A)
    chat.wait_for("> a question more")
    chat.wait_for("template chatml")
    chat.wait_for("\n> a question more")
    chat.send("Really " + ENTER)
    chat.wait_for("\n> Really a question more\nAnswer 1.")
    assert "dropped" not in chat.text


def test_a_line_that_is_in_an_editor_or_being_searched_when_the_model_is_there(
    start: StartChat, tmp_path: Path
) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsleep 0.6\necho " and more" >> "$1"\n')
    editor.chmod(0o700)
    for keys, line in ((CTRL_X + CTRL_E, "> begun and more"), (CTRL_R + "gun", "> begun")):
        chat = start(echo(1), ready=None, env={"SCRIPTED_LOAD_S": "0.8", "VISUAL": str(editor)})
        chat.wait_until(lambda chat=chat: chat.toolbar.startswith("Loading"))  # type: ignore[misc]
        chat.send("begun" + keys)
        chat.wait_until(lambda chat=chat, line=line: chat.cursor_line == line and "/help" in chat.text)  # type: ignore[misc]
        chat.send("." + ENTER)
        chat.wait_for(f"{line}.\nAnswer 1.")


@pytest.mark.parametrize(("leave", "status"), [(CTRL_C, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_leaving_while_the_model_loads(start: StartChat, leave: str | signal.Signals, status: int) -> None:
    chat = start(echo(1), ready=None, env={"SCRIPTED_LOAD_S": "60"})
    chat.wait_until(lambda: chat.toolbar.startswith("Loading"))
    if isinstance(leave, str):
        chat.send(leave)
    else:
        chat.process.send_signal(leave)
    assert chat.wait_for_exit(timeout_s=5) == status
    assert chat.is_as_found()


# --- chips --------------------------------------------------------------------------------------------------


def test_chips_stand_for_their_text() -> None:
    chips = Chips(len)
    assert chips.fold("a\n" * 20) == "a\n" * 20
    one, two = chips.fold("/b\n" * 21), chips.fold("c\n" * 30)
    assert len(one) == len(two) == 1
    assert chips.label(one) == "[pasted 21 lines, 63 tokens]"
    assert chips.fold("x" * 4000) == "x" * 4000
    assert chips.label(chips.fold("x" * 200_000)) == "[pasted 1 line, 200,000 tokens]"
    assert chips.label("x") is None
    assert chips.expand(f"x{one}y{two}") == "x" + "/b\n" * 21 + "y" + "c\n" * 30
    assert chips.expand(one) == "//b\n" + "/b\n" * 20  # at the start of a line it would be a command
    assert chips.fold(f"typed {one}") == "typed \ufffd"  # nobody can paste what stands for something else
    assert Chips().label(Chips().fold("z")) is None
