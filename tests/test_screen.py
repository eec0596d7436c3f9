"""The chat screen as a person meets it: the real program and the real demo model in a real pseudo-terminal.

One thread, because a second one makes llama.cpp very slow where other work shares the cores.
"""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCommand

from support.terminal import CTRL_C, CTRL_D, ENTER, TAB, UP, Terminal

CHAT = [sys.executable, "-m", "llamachat", "chat", "--threads", "1", "--temperature", "0"]
STORY = "Tell me a very long story about a dragon."
LONG_TEXT = "The cat sat on the mat and looked at the moon.\n" * 300
CUT = "(the answer reached its token limit"
INTERRUPTED_WITHIN_S = 0.2
COLOURS = {*range(30, 50), *range(90, 108)}

StartChat = Callable[..., Terminal]


@pytest.fixture
def start() -> Iterator[StartChat]:
    """Run `llamachat chat …` in a terminal of its own."""
    with ExitStack() as stack:

        def start_chat(*arguments: object, ready: str | None = "\n>", **terminal: Any) -> Terminal:
            started = stack.enter_context(Terminal([*CHAT, *arguments], **terminal))
            if ready:
                started.wait_for(ready)
            return started

        yield start_chat


def ask(chat: Terminal, text: str) -> str:
    """Type a message and return what follows it on the screen, once the next prompt is there."""
    return _type_and_read(chat, text, "\n\n>")


def tell(chat: Terminal, command: str) -> str:
    """Type a command and return what it says."""
    return _type_and_read(chat, command, "\n>")


def _type_and_read(chat: Terminal, line: str, end: str) -> str:
    typed = f"> {line}\n"
    n_before = chat.text.count(typed)
    chat.enter(line)
    chat.wait_until(lambda: chat.text.count(typed) > n_before and chat.text.endswith(end), f"what follows {line!r}")
    return chat.text.rpartition(typed)[2].removesuffix(end)


def n_prompt(text: str) -> int:
    """Prompt tokens, from the line of --stats."""
    return int(re.findall(r"prompt (\d+) tokens", text)[-1])


def wait_for_story(chat: Terminal) -> None:
    chat.wait_until(lambda: chat.text.count("dragon") > 2, "the story to be on its way")


# --- a conversation -----------------------------------------------------------------------------------------


def test_a_full_window(start: StartChat, tmp_path: Path) -> None:
    turns = [{"user": f"Is {i} even? " + "Think. " * 20, "assistant": "No."} for i in range(9)]
    (tmp_path / "turns.jsonl").write_text("\n".join(map(json.dumps, turns)), encoding="utf-8")
    chat = start("--examples", tmp_path / "turns.jsonl", "--ctx", 256, "--max-tokens", 2)
    reply = ask(chat, "Hi")
    assert re.search(r"Left out the \d oldest turns, \d+ tokens; 2\d\d of 256 in use", reply)
    assert re.search(r"\(The rest took \d+\.\d s to read: 2\d\d tokens\)", reply)
    tell(chat, "/pin")
    chat.enter("word " * 300)
    chat.wait_until(lambda: "which takes 17.7 MB more memory." in " ".join(chat.text.split()), "a refusal")
    assert "let pinned turns go with /pin off" in " ".join(chat.text.split())


def test_a_conversation(start: StartChat) -> None:
    chat = start("--stats", lines=80)
    assert re.match(r"smollm2-135m-instruct:\S+ · 8,192 tokens · 1 thread · template chatml\n/help", chat.text)

    first = ask(chat, "What is the capital of France?")
    assert "Paris" in first
    second = ask(chat, "And of Italy?")
    assert "Rome" in second  # it knows what was asked before
    assert n_prompt(second) > n_prompt(first)

    assert tell(chat, "/clear") == "The conversation starts over; the one so far is kept: /resume 1"
    assert n_prompt(ask(chat, "What is the capital of France?")) == n_prompt(first)

    assert tell(chat, "/system") == "There is no system prompt."
    assert "set" in tell(chat, "/system You answer in French.")
    assert tell(chat, "/system") == "System prompt: You answer in French."
    assert n_prompt(ask(chat, "What is the capital of France?")) > n_prompt(first)
    assert "removed" in tell(chat, "/system -")
    assert n_prompt(ask(chat, "What is the capital of France?")) == n_prompt(first)

    chat.enter("/exit")
    assert chat.wait_for_exit() == 0
    assert chat.is_as_found()


def test_commands_and_messages_are_told_apart(start: StartChat) -> None:
    chat = start("--max-tokens", 8)
    help_text = tell(chat, "/help")
    assert all(re.search(rf"^{name} ", help_text, re.M) for name in ("/help", "/clear", "/system", "/exit", "Ctrl-C"))
    assert tell(chat, "/hlep").startswith("There is no /hlep. Did you mean /help?")
    chat.enter("")
    chat.enter("   ")
    chat.watch(0.2)
    assert chat.text.endswith(">\n>\n>")  # nothing was sent
    assert CUT in ask(chat, "//help")  # a message

    chat.send("/sy" + TAB)
    chat.wait_for("> /system")


def test_the_answer_is_seen_while_it_comes(start: StartChat) -> None:
    chat = start()
    chat.enter(STORY)
    lengths = set()
    while len(lengths) < 10:
        chat.wait_until(lambda: len(chat.text) not in lengths, "more of the answer")
        lengths.add(len(chat.text))
    assert chat.cursor_line != ">"


def test_chinese(start: StartChat) -> None:
    chat = start("--max-tokens", 20, columns=40)
    question = "你好，请用中文回答我的问题。你是谁？今天天气怎么样？我想知道很多事情。"
    chat.enter(question)
    chat.wait_for(CUT[:30])
    typed, _, answer = chat.text.partition("很多事情。\n")
    assert question[:-5] in typed.replace("\n", "")
    assert re.search("[\u4e00-\u9fff]{2}", answer)
    assert "\ufffd" not in answer


# --- stopping and leaving -----------------------------------------------------------------------------------


def test_ctrl_c_stops_the_answer_and_keeps_it(start: StartChat, tmp_path: Path) -> None:
    endless = tmp_path / "endless.gbnf"
    endless.write_text('root ::= [a-zA-Z ,.]+ "END"', encoding="utf-8")  # an answer that is not over before Ctrl-C
    chat = start("--stats", "--max-tokens", 400, "--grammar", endless)
    took_s = []
    for n_answers in range(1, 4):
        chat.enter(STORY)
        shown = len(chat.text)
        chat.wait_until(lambda shown=shown: len(chat.text) > shown + 100)  # type: ignore[misc]
        chat.send(CTRL_C)
        took_s.append(chat.wait_until(lambda n=n_answers: chat.text.count("(interrupted;") == n))  # type: ignore[misc]
        chat.send(CTRL_C * 3)  # an impatient hand does not leave the program
        chat.wait_until(lambda: chat.cursor_line == ">", "the prompt")
    assert min(took_s) < INTERRUPTED_WITHIN_S
    n_kept = [int(n) for n in re.findall(r"interrupted · prompt (\d+) tokens", chat.text)]
    assert n_kept[0] + 20 < n_kept[1] < n_kept[2] - 20  # each answer, as far as it came, is in the next prompt
    assert chat.process.poll() is None


def test_ctrl_c_stops_the_reading_of_a_long_prompt(start: StartChat) -> None:
    chat = start("--stats")
    chat.paste(LONG_TEXT)
    chat.wait_for("[pasted 300 lines, ")
    chat.send(ENTER)
    chat.wait_for("Reading: ")
    chat.send(CTRL_C)
    assert chat.wait_for("/retry asks again") < INTERRUPTED_WITHIN_S
    assert "Reading" not in chat.text
    assert n_prompt(ask(chat, "What is the capital of France?")) < 30
    assert "Paris" in chat.text


def test_leaving_with_ctrl_c(start: StartChat) -> None:
    chat = start()
    for text in ("one", "two", "three"):  # on a line with text, Ctrl-C only drops the line
        chat.send(text + CTRL_C)
        chat.wait_until(lambda text=text: f"> {text}\n>" in chat.text)  # type: ignore[misc]
    chat.send(CTRL_C)
    chat.wait_for("(Ctrl-C again, or Ctrl-D, leaves)\n>")
    tell(chat, "/clear")
    chat.send(CTRL_C)  # the first one again
    chat.wait_until(lambda: chat.text.count("(Ctrl-C again") == 2 and chat.cursor_line == ">")
    chat.send(CTRL_C)
    assert chat.wait_for_exit() == 0
    assert chat.is_as_found()


def test_sigterm_leaves_the_terminal_sane(start: StartChat) -> None:
    for is_answering in (False, True):
        chat = start()
        if is_answering:
            chat.enter(STORY)
            wait_for_story(chat)
        chat.process.send_signal(signal.SIGTERM)
        assert chat.wait_for_exit(timeout_s=5) == 128 + signal.SIGTERM
        assert chat.is_as_found()
        assert chat.cursor_is_visible
        assert chat.raw.rfind(b"\x1b[?2004l") > chat.raw.rfind(b"\x1b[?2004h")


# --- typing -------------------------------------------------------------------------------------------------


def test_a_paste_is_one_message(start: StartChat) -> None:
    chat = start("--max-tokens", 8)
    chat.paste("/exit\r/clear\r\n// a comment")
    chat.wait_for("> //exit\n  /clear\n  // a comment")  # escaped for all to see
    chat.send(ENTER)
    chat.wait_for(CUT)
    assert chat.process.poll() is None
    assert "starts over" not in chat.text
    chat.wait_until(lambda: chat.cursor_line == ">")
    chat.paste("one\ntwo")
    chat.send(CTRL_C)
    chat.wait_for("> one\n  two\n>")


def test_keys_wait_while_the_model_answers(start: StartChat) -> None:
    chat = start("--max-tokens", 150, lines=70)
    chat.enter(STORY)
    wait_for_story(chat)
    chat.enter("/help")
    chat.paste("/exit\n/clear")
    chat.wait_for("> //exit\n  /clear")
    before, _, after = chat.text.partition(CUT)
    assert "/help\n" not in before.partition(STORY)[2]
    assert "> /help\n/help  " in after
    chat.send(CTRL_C + CTRL_D)
    assert chat.wait_for_exit() == 0


def test_narrow_and_resized(start: StartChat) -> None:
    chat = start(columns=40, lines=99)
    assert "8,192\ntokens" in chat.text
    assert "/system [TEXT|-]\n    show, set or remove the system\n    prompt;" in tell(chat, "/help")
    chat.send("a question that is longer than forty columns")
    chat.wait_for("longer than forty c\nolumns")
    chat.resize(70, 30)
    chat.wait_for("> a question that is longer than forty columns")


def test_what_was_typed_is_remembered_privately(start: StartChat, home: Path) -> None:
    start("--no-save").enter("/system")
    assert not home.exists()

    chat = start("--max-tokens", 4)
    tell(chat, "/system Never mind.")
    ask(chat, "你好")
    chat.send(CTRL_D)
    assert chat.wait_for_exit() == 0
    assert [stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()] == [0o600] * 3
    again = start()
    again.send(UP)
    again.wait_for("> 你好")


def test_a_home_that_cannot_be_written_costs_only_the_memory(start: StartChat, home: Path) -> None:
    home.write_text("not a directory")
    chat = start("--max-tokens", 4)
    assert "Warning: What you type cannot be remembered" in chat.text
    ask(chat, "Hi")


# --- other terminals ----------------------------------------------------------------------------------------


def test_no_color(start: StartChat) -> None:
    chat = start("--max-tokens", 4, env={"NO_COLOR": "1"})
    ask(chat, "Hi")
    assert not chat.sgr_codes() & COLOURS


@pytest.mark.parametrize("arguments", [(), ("--plain",)], ids=["TERM=dumb", "--plain"])
def test_a_dumb_terminal_gets_no_escape_sequences(start: StartChat, arguments: tuple[str, ...]) -> None:
    chat = start(*arguments, env={} if arguments else {"TERM": "dumb"})
    chat.enter(STORY)
    wait_for_story(chat)
    chat.send(CTRL_C)
    chat.wait_for("(interrupted; /continue goes on)\n\n>")
    chat.watch(0.1)
    tell(chat, "/system")
    chat.send(b"two \\\r")
    chat.wait_until(lambda: chat.text.endswith("> two \\"))
    chat.watch(0.1)
    chat.send(b"lines\r")
    chat.wait_until(lambda: "> two \\\n  lines\n" in chat.text)
    chat.send(CTRL_C)
    chat.wait_until(lambda: chat.text.endswith("\n\n>"))
    chat.send(b"caf\xe9 is not UTF-8\r")
    chat.wait_until(lambda: "not UTF-8\n" in chat.text)
    chat.send(CTRL_C)
    chat.wait_until(lambda: chat.text.endswith("\n\n>"))
    chat.watch(0.1)
    chat.send(CTRL_D)
    assert chat.wait_for_exit() == 0
    assert b"\x1b" not in chat.raw


def test_escape_sequences_are_shown_and_not_obeyed(start: StartChat, demo_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "\x1b]0;mine\x07\x1b[35m.gguf"
    model.symlink_to(demo_model)
    chat = start(model, "--template", "none", "--max-tokens", 24)
    assert "␛]0;mine␇␛[35m.gguf" in chat.text.replace("\n", "")
    chat.paste(" ".join(f"{letter}\x1b[0m" for letter in "abcdef"))
    chat.send(ENTER)
    chat.wait_for("h␛[0m i␛[0m")  # the model goes on like this
    assert b"i\x1b[0m" not in chat.raw
    assert b"\x1b[35m" not in chat.raw
    assert b"\x1b]0;" not in chat.raw


def test_only_data_goes_to_a_redirected_standard_output(start: StartChat, tmp_path: Path) -> None:
    with (tmp_path / "answers").open("wb") as answers:
        chat = start(stdout=answers)
        chat.enter("What is the capital of France?")
        chat.wait_until(lambda: chat.text.endswith("\n>") and (tmp_path / "answers").read_text().endswith("\n\n"))
        chat.send(CTRL_D)
        assert chat.wait_for_exit() == 0
    assert (tmp_path / "answers").read_text() == "The capital of France is Paris.\n\n"


# --- one answer ---------------------------------------------------------------------------------------------


def test_ctrl_c_during_one_answer(start: StartChat) -> None:
    chat = start("-p", STORY, ready=None)
    wait_for_story(chat)
    chat.send(CTRL_C)
    assert chat.wait_for_exit() == 130
    assert chat.text.count("dragon") > 2
    assert chat.text.endswith("Interrupted.")


def test_a_broken_pipe_is_quiet() -> None:
    command = [*CHAT, "-p", STORY, "--max-tokens", "60"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as chat:
        assert chat.stdout
        assert chat.stderr
        chat.stdout.read(1)
        chat.stdout.close()
        assert chat.stderr.read() == b""
    assert chat.returncode == 1


def test_nothing_to_answer(run: RunCommand, start: StartChat, tmp_path: Path) -> None:
    assert run("chat").returncode == 2  # standard input is /dev/null
    assert run("chat", text=" \n").returncode == 2
    closed = subprocess.run(["sh", "-c", '"$0" "$@" <&-', *CHAT], capture_output=True, text=True, check=False)
    assert closed.returncode == 2
    assert "standard input is empty" in closed.stderr

    (tmp_path / "text").write_text("Hi")
    on_a_terminal = start("--file", tmp_path / "text", ready=None)
    assert on_a_terminal.wait_for_exit() == 2
    assert "--file needs a question" in on_a_terminal.text
