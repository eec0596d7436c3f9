"""Tools in a conversation: what is remembered, stored and shown, and who is asked; engines keep to a script."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from llamachat.chat.events import Answer, Notice, SessionEvent, TextPiece, ToolCalled, ToolReturned
from llamachat.chat.export import export_session, read_export
from llamachat.chat.history import History
from llamachat.chat.history_record import HistoryRecord
from llamachat.chat.message import Conversation
from llamachat.chat.session import Session
from llamachat.chat.templates import Qwen25
from llamachat.chat.tools.use import MAX_STEPS
from llamachat.chat.tools.values import LOST, Tool, ToolCall, ToolResult, ToolStep
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import EngineFailed, PromptTooLong
from llamachat.paths import history_path
from support.fake_engine import FakeEngine, Step
from support.stored_sessions import FACTS
from support.terminal import CTRL_C, ENTER, Terminal

TESTS = Path(__file__).parent
ADD_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"]}


def calling(name: str, text: str = "", **arguments: Any) -> str:
    """What a model of Hermes' form writes to call a tool."""
    return f'{text}<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def written(text: str) -> list[Step]:
    """In small pieces."""
    return [text[i : i + 5].encode() for i in range(0, len(text), 5)]


# --- a session ----------------------------------------------------------------------------------------------


class Box:
    """One tool that adds; `run` may do something else besides."""

    tools = (Tool("add", "Add.", ADD_SCHEMA),)

    def __init__(self) -> None:
        self.ran: list[ToolCall] = []
        self.before: Callable[[threading.Event], object] = lambda _: None
        self.text: str | None = None

    def run(self, call: ToolCall, cancel: threading.Event) -> ToolResult:
        self.before(cancel)
        self.ran.append(call)
        numbers = call.parsed()
        return ToolResult(self.text or str(numbers["a"] + numbers.get("b", 1)))


class Talk:
    """A session with a history; `answers` are what the engine says."""

    def __init__(self, *answers: Sequence[Step], n_ctx: int = 4096) -> None:
        self.engine = FakeEngine(*answers, n_ctx=n_ctx)
        self.box = Box()
        self.history = History(history_path())
        record = HistoryRecord(self.history, lambda _: FACTS, pytest.fail)
        self.session = Session(
            self.engine, Qwen25(), SamplingParams(seed=1), system="S", toolbox=self.box, record=record
        )
        self.record = record

    def ask(self, text: str = "2+3?", cancel: threading.Event | None = None) -> list[SessionEvent]:
        return list(self.session.send(text, cancel or threading.Event()))

    @property
    def stored(self) -> Conversation:
        """What would be there after a kill at this moment."""
        assert self.record.session_id is not None
        with History(history_path()) as again:
            return again.load(self.record.session_id).conversation

    @property
    def steps(self) -> tuple[ToolStep, ...]:
        return self.session.conversation.messages[-1].steps


@pytest.fixture(autouse=True)
def _home(home: Path) -> None:
    home.mkdir()


def told(events: Sequence[SessionEvent]) -> list[str]:
    """Pieces of text as one, calls and results, in order."""
    lines: list[str] = []
    for event in events:
        match event:
            case TextPiece(text) if lines and lines[-1][0] not in "→←":
                lines[-1] += text
            case TextPiece(text):
                lines.append(text)
            case ToolCalled(call):
                lines.append(f"→ {call}")
            case ToolReturned(_, result):
                lines.append(f"← {result}")
    return lines


def test_calls_are_made_and_the_answer_goes_on() -> None:
    script = [
        written(calling("add", "Let me see.\n", a=2, b=3) + "\n" + calling("add", a=1)),
        written(calling("add", a=5)),
        written("It is **5**."),
    ]
    talk = Talk(*script)
    events = talk.ask()
    assert told(events) == [
        "Let me see.\n", '→ add({"a": 2, "b": 3})', "← 5", '→ add({"a": 1})', "← 2", '→ add({"a": 5})', "← 6",
        "It is **5**.",
    ]  # fmt: skip
    answer = events[-1]
    assert isinstance(answer, Answer)
    assert (answer.content, answer.finish_reason) == ("It is **5**.", "stop")
    assert [step.text for step in answer.steps] == ["Let me see.", ""]
    assert answer.stats.n_generated == sum(map(len, script))
    assert answer.stats.n_prompt == sum(len(request.prompt_ids) for request in talk.engine.requests)
    assert talk.session.conversation.messages[-1].steps == answer.steps
    assert talk.stored == Conversation("S", talk.session.conversation.messages)
    assert "<tools>\n" in talk.engine.prompts[0]
    second = talk.engine.prompts[1].removeprefix(talk.engine.prompts[0].removesuffix("<|im_start|>assistant\n"))
    assert second == (
        "<|im_start|>assistant\nLet me see."
        '\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n5\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (calling("sub", a=1), "Error: There is no tool of that name. There are: add."),
        (calling("add", b=1), "Error: add was not called. a is missing."),
        (calling("add", a="2"), 'Error: add was not called. a must be integer, but is "2".'),
    ],
)
def test_a_bad_call_is_told_to_the_model_and_not_run(call: str, result: str) -> None:
    talk = Talk(written(call), written("Sorry."))
    assert told(talk.ask())[1:] == [f"← {result}", "Sorry."]
    assert not talk.box.ran
    assert f"<tool_response>\n{result}\n</tool_response>" in talk.engine.prompts[1]


def test_a_call_that_cannot_be_read_is_text() -> None:
    text = '<tool_call>\n{"name": add}\n</tool_call>'
    talk = Talk(written(f"Hm. {text}"))
    events = talk.ask()
    assert told(events) == [f"Hm. {text}"]
    assert any(isinstance(event, Notice) for event in events)
    assert (talk.session.conversation.messages[-1].content, talk.steps) == (f"Hm. {text}", ())


def test_a_step_is_on_the_disk_before_its_tool_runs_and_with_each_result() -> None:
    talk = Talk(written(calling("add", "Wait. ", a=2) + calling("add", a=3)), written("Done."))
    seen: list[Conversation] = []
    talk.box.before = lambda _: seen.append(talk.stored)
    talk.ask()
    first, second = (conversation.messages[-1].steps[0] for conversation in seen)
    assert (first.text, [call.arguments for call in first.calls]) == ("Wait.", ['{"a": 2}', '{"a": 3}'])
    assert (first.results, second.results) == ((), (ToolResult("3"),))
    assert [result for _, result in second.outcomes] == [ToolResult("3"), LOST]
    text = Qwen25().render(seen[1], talk.engine.tokenizer).text  # goes on after a kill
    assert text.endswith(f"\n<tool_response>\n{LOST}\n</tool_response><|im_end|>\n<|im_start|>assistant\n")


def test_what_is_interrupted_in_a_tool_stays_and_goes_on() -> None:
    talk = Talk(written(calling("add", a=2) + calling("add", a=3)), written("It is 3."))
    talk.box.before = lambda cancel: cancel.set()  # type: ignore[attr-defined]
    events = talk.ask()
    answer = events[-1]
    assert isinstance(answer, Answer)
    assert (answer.content, answer.finish_reason) == ("", "interrupted")
    assert told(events)[-1] == "← Error: It was not run: the user interrupted."
    assert len(talk.box.ran) == 1
    assert talk.stored.messages == talk.session.conversation.messages
    *_, last = talk.session.go_on(threading.Event())
    assert isinstance(last, Answer)
    assert (last.content, last.steps) == ("It is 3.", answer.steps)
    assert len(talk.stored.messages) == 2
    assert talk.stored.messages[-1].steps == answer.steps


def test_a_call_that_is_interrupted_while_it_is_written_is_not_made() -> None:
    cancel = threading.Event()
    talk = Talk([*written("So: " + calling("add", a=2)), cancel.set], written(calling("add", a=2)), written("3"))
    assert told(talk.ask(cancel=cancel)) == ["So: "]
    assert not talk.box.ran
    assert told(list(talk.session.go_on(threading.Event()))) == ['→ add({"a": 2})', "← 3", "3"]
    assert (talk.steps[0].text, talk.session.conversation.messages[-1].content) == ("So:", "3")


def test_calls_in_a_row_have_an_end() -> None:
    talk = Talk(*[written(calling("add", a=i)) for i in range(MAX_STEPS + 1)], written("Enough."))
    *_, notice, answer = talk.ask()
    assert isinstance(notice, Notice)
    assert str(MAX_STEPS) in notice.text
    assert isinstance(answer, Answer)
    assert (len(talk.box.ran), answer.finish_reason) == (MAX_STEPS, "length")
    *_, answer = talk.session.go_on(threading.Event())
    assert isinstance(answer, Answer)
    assert (len(talk.box.ran), answer.content) == (MAX_STEPS + 1, "Enough.")


@pytest.mark.parametrize("error", [EngineFailed("out of memory"), PromptTooLong(9, 9)])
def test_what_fails_after_a_tool_has_run_keeps_what_it_did(error: Exception) -> None:
    talk = Talk(written(calling("add", a=2)), [b"It", error], written("It is 3."))
    with pytest.raises(type(error)):
        talk.ask()
    assert [result.text for result in talk.steps[0].results] == ["3"]
    assert talk.session.conversation.messages[-1].content == "It"
    assert talk.stored.messages == talk.session.conversation.messages
    assert told(list(talk.session.retry(threading.Event()))) == ["It is 3."]
    assert talk.steps == ()


def test_a_long_result_is_cut_and_says_so() -> None:
    talk = Talk(written(calling("add", a=2)), written("Long."), n_ctx=4000)
    talk.box.text = "é" * 3000
    talk.ask()
    assert talk.steps[0].results[0].text == "é" * 500 + "\n[cut: 500 of 3,000 characters]"


def test_half_a_character_of_a_result_is_none() -> None:
    talk = Talk(written(calling("add", a=2)), written("Odd."))
    talk.box.text = "a\ud800b"
    talk.ask()
    assert talk.stored.messages[-1].steps[0].results[0].text == "a?b"


def test_turns_are_undone_edited_and_left_out_whole() -> None:
    talk = Talk(
        written(calling("add", a=1)), written("2"), written("Hi"),
        written(calling("add", a=3)), written("4"), written("No."), n_ctx=2600,
    )  # fmt: skip
    talk.ask("1+1?")
    talk.ask("Hello")
    talk.session.undo()
    assert talk.session.conversation.messages[-1].content == "2"
    list(talk.session.edit("3+1?", threading.Event()))
    assert [len(message.steps) for message in talk.session.conversation.messages] == [0, 1]
    assert talk.stored.messages == talk.session.conversation.messages
    talk.ask("word " * 320)
    assert talk.session.left_out == {0}
    assert "tool_response" not in talk.engine.prompts[-1].split("</tool_call>")[-1]


def test_tools_can_be_put_away() -> None:
    talk = Talk(written(calling("add", a=1)), written("2"), written(calling("add", a=1)))
    talk.ask()
    talk.session.offer_tools(is_offered=False)
    assert told(talk.ask("Again?")) == [calling("add", a=1)]
    assert "<tools>" not in talk.engine.prompts[-1]
    assert "<tool_response>\n2\n" in talk.engine.prompts[-1], "what was called is still known"
    talk.session.start_over(None)
    talk.session.offer_tools(is_offered=True)
    assert "<tools>" in talk.session.prompt_for("Hi").text


def test_steps_survive_export_and_import_and_stay_readable(tmp_path: Path) -> None:
    talk = Talk(written(calling("add", "Look:\n```\n", a=1)), written("2"))
    talk.box.text = "<b>1</b>\n```"
    talk.ask()
    assert talk.record.session_id
    tree = talk.history.tree(talk.record.session_id)
    (tmp_path / "talk.json").write_text(export_session(tree, "json"), encoding="utf-8")
    again = talk.history.load(talk.history.add_tree(read_export(tmp_path / "talk.json")))
    assert again.conversation == talk.stored
    assert '    → add({"a": 1})\n\n    ← <b>1</b>\n    ```\n\n2' in export_session(tree, "md")
    assert "← &lt;b&gt;1&lt;/b&gt;" in export_session(tree, "html")
    document = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    for bad in (
        [],
        [{}],
        [{"text": "", "calls": [{"name": "f", "arguments": "[", "id": ""}], "results": []}],
        "x",
        None,
    ):
        document["messages"][-1]["steps"] = bad
        (tmp_path / "talk.json").write_text(json.dumps(document), encoding="utf-8")
        if bad == []:
            assert read_export(tmp_path / "talk.json").messages[-1].message.steps == ()
            continue
        with pytest.raises(Exception, match="steps"):
            read_export(tmp_path / "talk.json")


# --- the command --------------------------------------------------------------------------------------------

TOOL_FILE = '''
import time

def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b

def talk() -> str:
    print("\\x1b[31mloud\\x1b[0m")
    return "\\x1b[2Jsaid"

def sleep() -> None:
    time.sleep(1000)
'''

Answers = list[list[str | float]]


@pytest.fixture
def tool_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_tools.py"
    path.write_text(TOOL_FILE, encoding="utf-8")
    return path


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., list[str]]:
    """`llamachat chat …` with these answers."""

    def make(answers: Answers, *arguments: object) -> list[str]:
        script = tmp_path / "script.json"
        script.write_text(json.dumps(answers))
        words = [sys.executable, "-m", "support.scripted_chat", script, "--template", "qwen2.5", *arguments]
        return list(map(str, words))

    return make


@pytest.fixture
def once(command: Callable[..., list[str]]) -> Callable[..., Any]:
    """One answer."""

    def run(answers: Answers, *arguments: object) -> Any:
        words = command(answers, *arguments, "-p", "2+3?")
        return subprocess.run(
            words, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL, env=_environment()
        )

    return run


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}


def test_without_leave_a_script_runs_nothing(once: Callable[..., Any], tool_file: Path) -> None:
    done = once([[calling("add", "So.\n", a=2, b=3)], ["I cannot."]], "--tools", tool_file)
    assert (done.returncode, done.stdout) == (0, "So.\nI cannot.\n")
    assert '→ add({"a": 2, "b": 3})\n' in done.stderr
    assert "add was not run: nobody is there to allow it. --yes-tools" in done.stderr


def test_scripts_get_the_calls(once: Callable[..., Any], tool_file: Path) -> None:
    answers: Answers = [[calling("add", a=2, b=3)], [calling("add", a="x")], ["5"]]
    done = once(answers, "--tools", tool_file, "--yes-tools", "--json")
    document = json.loads(done.stdout)
    first, second = document["tool_calls"]
    assert first == {"name": "add", "arguments": {"a": 2, "b": 3}, "result": "5", "is_error": False}
    assert second["is_error"]
    assert document["content"] == "5"
    assert document["completion_tokens"] == 3
    with History(history_path()) as history:
        assert len(history.load(document["session"]).conversation.messages[-1].steps) == 2


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--yes-tools", "--template", "llama-2"), "llama-2 has no place for tools"),
        (("--grammar", "x.gbnf"), "--tools needs answers that no grammar holds"),
        (("--tools", "TOOLS"), "add() is there already: the file is given twice."),
        (("--tools", "missing.py"), "missing.py: there is no such file."),
    ],
)
def test_what_cannot_be_is_said(
    arguments: tuple[str, str], problem: str, once: Callable[..., Any], tool_file: Path
) -> None:
    words = [str(tool_file) if word == "TOOLS" else word for word in arguments]
    done = once([["5"]], "--tools", tool_file, *words)
    assert done.returncode in (1, 2)
    assert problem in " ".join(re.sub("[│╭╮╰╯─]", " ", done.stderr).split())


StartChat = Callable[..., Terminal]


@pytest.fixture
def start(command: Callable[..., list[str]], tool_file: Path) -> Iterator[StartChat]:
    with ExitStack() as stack:

        def start_chat(answers: Answers, *arguments: object, **terminal: Any) -> Terminal:
            words = command(answers, "--tools", tool_file, *arguments)
            chat = stack.enter_context(Terminal(words, env={"PYTHONPATH": _environment()["PYTHONPATH"]}, **terminal))
            chat.wait_for("\n>")
            return chat

        yield start_chat


ASKED = "Run it? [y]es / [n]o / [a]lways this tool"


def next_prompt(chat: Terminal) -> str:
    """What is on the screen when the chat waits again."""
    chat.wait_until(lambda: chat.text.endswith("\n\n>"), "the prompt")
    return chat.text


def test_each_call_is_asked_about(start: StartChat) -> None:
    add = calling("add", a=2, b=3)
    chat = start([["**So.**\n" + add], [add], [add], [add], ["It is *5*."]], lines=60)
    chat.enter("2+3?")
    chat.wait_for(ASKED)
    chat.send(ENTER)  # neither Enter nor an arrow nor a paste is an answer
    chat.send("\x1b[A")
    chat.paste("y")
    chat.watch(0.2)
    assert chat.text.count(ASKED) == 1
    chat.send("n")
    for n, key in ((2, "y"), (3, "a")):
        chat.wait_until(lambda n=n: chat.text.count(ASKED) == n, "the question")  # type: ignore[misc]
        chat.send(key)
    text = next_prompt(chat)
    line = '→ add({"a": 2, "b": 3})'
    assert text.split("> 2+3?\n")[1].splitlines() == [
        "So.",
        line, f"{ASKED} no", "← Error: It was not run: the user did not allow it.",
        line, f"{ASKED} yes", "← 5",
        line, f"{ASKED} always", "← 5",
        line, "← 5",
        "It is 5.", "", ">",
    ]  # fmt: skip
    assert chat.cursor_is_visible


def test_what_was_typed_before_the_question_does_not_answer_it(start: StartChat) -> None:
    chat = start([[0.5, calling("add", a=2, b=3)], ["No."]])
    chat.enter("2+3?")
    chat.watch(0.2)
    chat.send("y")
    chat.wait_for(ASKED)
    chat.watch(0.3)
    assert "← " not in chat.text
    chat.send("n")
    assert "← Error" in next_prompt(chat)


def test_ctrl_c_stops_a_tool_or_the_question_and_the_turn(start: StartChat) -> None:
    chat = start([[calling("sleep")], [calling("sleep")], ["Well."]])
    chat.enter("Sleep.")
    chat.wait_for(ASKED)
    chat.send("a")
    chat.wait_for("Running sleep")
    chat.send(CTRL_C)
    assert chat.wait_for("(interrupted; /continue goes on)") < 0.5
    assert "← Error: It was interrupted by the user." in next_prompt(chat)
    assert "Running" not in chat.text
    chat.enter("/undo")
    chat.wait_for("Took back 1 turn")


def test_ctrl_c_at_the_question(start: StartChat) -> None:
    chat = start([[calling("add", a=2, b=3)], ["Never mind."]])
    chat.enter("2+3?")
    chat.wait_for(ASKED)
    chat.send(CTRL_C)
    assert f"{ASKED} no\n← Error: It was not run: the user interrupted.\n(interrupted; /continue" in next_prompt(chat)
    chat.enter("/continue")
    chat.wait_for("Never mind.")


def test_a_tool_cannot_steer_the_terminal_and_commands_show_what_there_is(start: StartChat) -> None:
    chat = start([[calling("talk")], ["Done."]], "--yes-tools", lines=60)
    chat.enter("Talk.")
    text = next_prompt(chat)
    assert "talk printed:\n␛[31mloud␛[0m\n← ␛[2Jsaid\nDone.\n" in text
    chat.enter("/tools")
    chat.wait_for("add(a, b)  Add two numbers.\ntalk()\nsleep()\n")
    chat.enter("/context")
    chat.wait_until(lambda: re.search(r"tools +\d{3}\n   1 +\d+  Talk\.", chat.text) is not None)
    chat.enter("/tools off")
    chat.wait_for("Tools are off; /tools on")
    chat.enter("/prompt")
    chat.wait_until(lambda: "<tool_response>" in chat.text and chat.text.endswith("tokens\n>"))
    assert "<tools>" not in chat.text
    chat.enter("/tools on")
    chat.wait_until(lambda: chat.text.count("add(a, b)") == 2)
    shown = subprocess.run(
        [sys.executable, "-m", "llamachat", "sessions", "show"],
        capture_output=True, text=True, timeout=60, check=True, env=_environment(),
    ).stdout  # fmt: skip
    assert "\n→ talk({})\n← \x1b[2Jsaid\nDone.\n" in shown
