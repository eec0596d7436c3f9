"""What a model thinks, as a person sees it: the real program in a pseudo-terminal, an engine that keeps to a script."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.terminal import CTRL_C, Terminal

TESTS = Path(__file__).parent
QWEN3 = (TESTS / "golden" / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
ANSWERS = [
    ["<th", "ink>\n", 0.3, "I *wonder*", " about\x1b[31m it.\n", "\n</think>\n\n", "**Y", "es.**"],
    ["<think>\nAgain.\n</think>\n\nNo."],
]
DIM = re.compile(r"\x1b\[2m(.*?)\x1b\[0m", re.DOTALL)

StartChat = Callable[..., Terminal]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartChat]:
    """Run `llamachat chat …` with answers of a model that has the template of Qwen3."""
    with ExitStack() as stack:

        def start_chat(answers: list[list[str | float]], *arguments: object, **terminal: Any) -> Terminal:
            script = tmp_path / "script.json"
            script.write_text(json.dumps(answers))
            path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
            environment = {"PYTHONPATH": path, "SCRIPTED_TEMPLATE": QWEN3, **terminal.pop("env", {})}
            command = [sys.executable, "-m", "support.scripted_chat", script, "--template", "jinja", *arguments]
            started = stack.enter_context(Terminal(command, env=environment, **terminal))
            if terminal.get("stdout") is None:
                started.wait_for("\n>")
            return started

        yield start_chat


def ask(chat: Terminal, line: str) -> str:
    """What stands below a line that was typed, when the next may be."""
    chat.enter(line)
    chat.wait_until(lambda: f"> {line}\n" in chat.text and chat.text.endswith("\n\n>"), f"the answer to {line!r}")
    return chat.text.rpartition(f"> {line}\n")[2].removesuffix("\n\n>")


def test_thoughts_are_dim_above_the_answer(start: StartChat) -> None:
    chat = start(ANSWERS)
    shown = ask(chat, "Is it?")
    assert re.fullmatch(r"I \*wonder\* about\S*\[31m it\.\n\(thought for 0\.\d s, 4 tokens\)\nYes\.", shown), shown
    assert "\x1b[31m" not in chat.raw.decode(), "nothing in it is obeyed"
    dim = "".join(DIM.findall(chat.raw.decode()))
    assert "I *wonder* about" in dim
    assert "Yes." not in dim
    chat.enter("/reasoning hide")
    chat.wait_for("Thinking before answers: as the model does it by itself, not shown.")
    assert re.fullmatch(r"\(thought for 0\.\d s, 1 token\)\nNo\.", ask(chat, "Sure?"))


def test_hidden_thoughts_are_counted_and_then_one_line(start: StartChat) -> None:
    chat = start([["<think>a", "b", 0.4, "c", "</think>Yes."]], "--reasoning", "hide")
    chat.enter("Is it?")
    chat.wait_for("Thinking: 2 tokens")
    chat.wait_for("Yes.\n\n>")
    assert "Thinking:" not in chat.text
    assert re.search(r"> Is it\?\n\(thought for 0\.\d s, \d tokens\)\nYes\.\n\n>$", chat.text)


def test_thoughts_that_were_interrupted_go_on(start: StartChat) -> None:
    chat = start([["<think>\n", "One and", *([0.05] * 200)], [" one.", "\n</think>\n\n", "Two."]])
    chat.enter("1+1?")
    chat.wait_for("One and")
    chat.send(CTRL_C)
    chat.wait_for("(interrupted; /continue goes on)")
    chat.wait_until(lambda: chat.text.endswith("\n\n>"), "the prompt")
    assert ask(chat, "/continue").splitlines()[-1] == "Two."
    chat.enter("/prompt")
    chat.wait_for("One and one.\n</think>\n\nTwo.")


@pytest.mark.parametrize("plain", ["--plain", "NO_COLOR"])
def test_plain_thoughts_move_nothing(start: StartChat, plain: str) -> None:
    if plain == "--plain":
        chat = start(ANSWERS, plain)
        chat.enter("Is it?")
        chat.wait_for("**Yes.**")
        assert "\x1b[2m" not in chat.raw.decode()
    else:
        chat = start(ANSWERS, env={"NO_COLOR": "1"})
        ask(chat, "Is it?")
        assert not chat.sgr_codes() & {*range(30, 50), *range(90, 108)}
    assert "wonder" in chat.text


def test_a_pipe_gets_the_answer_alone(start: StartChat, tmp_path: Path) -> None:
    with (tmp_path / "answer.txt").open("w") as stdout:
        chat = start(ANSWERS, "-p", "Is it?", stdout=stdout)
        assert chat.wait_for_exit() == 0
    assert (tmp_path / "answer.txt").read_text() == "**Yes.**\n"
    assert "I *wonder* about" in chat.text
    assert "(thought for" in chat.text
