"""Slash commands without a terminal: what they say, what they do to the conversation, and what the history keeps."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from llamachat.chat.events import Answer, TextPiece
from llamachat.chat.export import read_export
from llamachat.chat.history import History, SessionFacts
from llamachat.chat.history_record import HistoryRecord
from llamachat.chat.message import Message
from llamachat.chat.reasoning import ReasoningTags
from llamachat.chat.record import NoRecord
from llamachat.chat.session import Session
from llamachat.chat.templates import ChatML, Jinja, TemplateChoice
from llamachat.cli import loading, local_model
from llamachat.cli.chat_options import ChatArguments, chat_options
from llamachat.cli.chat_wishes import ChatOptions
from llamachat.cli.live_chat import OpenChat
from llamachat.cli.local_model import LocalModel
from llamachat.cli.opening import open_chat
from llamachat.cli.terminal.commands import COMMANDS, Reply, run_command
from llamachat.cli.terminal.screen import run_screen
from llamachat.engine.base import EngineOptions, LoraAdapter
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import EngineFailed, LlamachatError
from llamachat.models.store import StoredModel
from llamachat.paths import history_path
from support.fake_engine import FakeEngine, Step


class Talk:
    """A chat with a scripted engine, and a history in a home of its own."""

    def __init__(self) -> None:
        self.engine = FakeEngine(n_ctx=600)
        session = Session(self.engine, ChatML(), SamplingParams(temperature=0.5), system="Be brief.")
        options = ChatOptions(EngineOptions(), {}, template="chatml")
        self.chat = OpenChat(
            options,
            LocalModel(StoredModel("fake", "q8_0", Path("/nowhere.gguf"))),
            session,
            TemplateChoice(ChatML(), "asked for"),
        )
        self.troubles: list[LlamachatError] = []
        self.history = History(history_path())
        self.chat.record = session.record = HistoryRecord(self.history, self.chat.facts, self.troubles.append)

    def say(self, text: str, *answer: Step) -> Answer:
        """A message and what the model says to it."""
        self.engine.answers.append(answer)
        *_, last = self.chat.session.send(text, threading.Event())
        assert isinstance(last, Answer)
        self.chat.last_answer = last
        return last

    def do(self, line: str, *answer: Step) -> Reply:
        """A command, and the model's answer where it asks for one."""
        reply = run_command(line, self.chat)
        if reply.answer:
            self.engine.answers.append(answer)
            list(reply.answer(threading.Event()))
        return reply

    def contents(self) -> list[str]:
        return [message.content for message in self.chat.session.conversation.messages]

    def stored(self) -> list[str]:
        """What would be there after a restart."""
        assert self.chat.record is not None
        assert self.chat.record.session_id is not None
        with History(history_path()) as again:
            conversation = again.load(self.chat.record.session_id).conversation
        return [message.content for message in conversation.messages]


@pytest.fixture
def talk(home: Path) -> Iterator[Talk]:
    home.mkdir()
    talk = Talk()
    yield talk
    talk.history.close()


def test_undo_retry_edit_and_continue_are_kept(talk: Talk) -> None:
    talk.say("One", b"1")
    talk.say("Two", b"2")
    talk.say("Three", b"3")
    assert talk.do("/undo 2").text == "Took back 2 turns, from: Two"
    assert talk.contents() == talk.stored() == ["One", "1"]
    talk.do("/retry temperature=1.5 top-k=7", b"uno")
    assert talk.contents() == talk.stored() == ["One", "uno"]
    sampling = talk.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_k) == (1.5, 7)
    assert talk.chat.session.sampling.temperature == 0.5, "for this answer only"
    talk.do("/edit Eins", b"one ")
    assert talk.contents() == talk.stored() == ["Eins", "one "]
    talk.do("/continue", b"more")
    assert talk.contents() == talk.stored() == ["Eins", "one more"]
    assert talk.engine.prompts[-1].endswith("assistant\none ")
    tree = talk.history.tree(1)
    assert {stored.message.content for stored in tree.messages} >= {"1", "uno", "Two", "2", "Three", "3", "one more"}
    assert not talk.troubles


class ThinkingChatML(ChatML):
    """A family that thinks and has a switch for it."""

    reasoning = ReasoningTags("<think>", "</think>")
    can_switch_thinking = True


def test_thoughts_go_with_their_answers_wherever_these_go(talk: Talk) -> None:
    talk.chat.session.template = ThinkingChatML()
    talk.say("One", b"<think>eins</think>1")
    talk.say("Two", b"<think>zwei</think>2")
    thoughts = [message.reasoning for message in talk.chat.session.conversation.messages]
    assert thoughts == ["", "eins", "", "zwei"]
    talk.do("/retry", b"<think>deux</think>II")
    talk.do("/fork copy")
    copied = talk.history.load(2).conversation
    assert copied == talk.chat.session.conversation
    assert [message.reasoning for message in copied.messages] == ["", "eins", "", "deux"]
    assert talk.do("/undo").text.startswith("Took back 1 turn")
    talk.do("/edit Eins", b"<think>again</think>uno")
    assert talk.chat.session.conversation.messages[-1] == Message("assistant", "uno", reasoning="again")
    assert talk.do("/copy").copy == "uno"
    assert not talk.troubles


def test_context_counts_thoughts_of_the_last_answer_alone(talk: Talk) -> None:
    talk.chat.session.template = ThinkingChatML()
    talk.say("One", b"<think>" + b"x" * 90 + b"</think>1")
    alone = int(talk.do("/context").text.splitlines()[1].split()[1])
    talk.say("Two", b"<think>" + b"y" * 50 + b"</think>2")
    one, two = (int(line.split()[1]) for line in talk.do("/context").text.splitlines()[1:3])
    assert one < 90 < alone
    assert 50 < two < 90 + 50
    in_use = int(talk.do("/context").text.splitlines()[-1].split()[0])
    seen = talk.chat.session.seen()
    assert seen
    assert in_use == len(seen.ids)


def test_reasoning_is_switched_by_a_command(talk: Talk) -> None:
    assert talk.do("/reasoning").text == "Thinking before answers: as the model does it by itself."
    assert "cannot be switched on" in talk.do("/reasoning on").text, "the template does not know of it"
    template = talk.chat.session.template = ThinkingChatML()
    for word, thinking, shows in (
        ("off", False, False),
        ("ON", True, True),
        ("hide", None, False),
        ("auto", None, True),
    ):
        assert talk.do(f"/reasoning {word}").text.startswith("Thinking before answers: ")
        assert (template.thinking, talk.chat.shows_thoughts) == (thinking, shows)
    with pytest.raises(LlamachatError, match="There is no /reasoning loud"):
        talk.do("/reasoning loud")


def test_edit_without_words_gives_the_last_message_to_the_line_editor(talk: Talk) -> None:
    talk.say("One", b"1")
    assert talk.do("/edit").edit == "One"


def test_an_answer_that_never_began_can_be_asked_for_again(talk: Talk) -> None:
    talk.say("One", b"1")
    cancel = threading.Event()
    talk.engine.answers.append([cancel.set])
    *_, last = talk.chat.session.send("Two", cancel)
    assert isinstance(last, Answer)
    assert (last.content, last.finish_reason) == ("", "interrupted")
    assert talk.contents() == talk.stored() == ["One", "1"]
    assert talk.do("/edit").edit == "Two"
    talk.do("/retry", b"2")
    assert talk.contents() == talk.stored() == ["One", "1", "Two", "2"]
    talk.do("/retry", b"two")
    assert talk.contents() == ["One", "1", "Two", "two"]


def never_begun(talk: Talk, line: str) -> None:
    """A command or a message whose answer is interrupted before its first word."""
    cancel = threading.Event()
    talk.engine.answers.append([cancel.set])
    answer = run_command(line, talk.chat).answer if line.startswith("/") else None
    *_, last = answer(cancel) if answer else talk.chat.session.send(line, cancel)
    assert isinstance(last, Answer)
    assert last.finish_reason == "interrupted"


@pytest.mark.parametrize(
    ("line", "asked", "undone"),
    [("/retry", "Two", ["One", "1", "Two", "2"]), ("/edit Three", "Three", ["One", "1", "Two", "2"])],
)
def test_an_answer_anew_that_never_began(talk: Talk, line: str, asked: str, undone: list[str]) -> None:
    talk.say("One", b"1")
    talk.say("Two", b"2")
    for _ in range(2):
        never_begun(talk, line)
        assert talk.contents() == talk.stored() == ["One", "1", "Two", "2"]
    assert talk.do("/undo").text == f"Took back 1 turn, from: {asked}"
    assert talk.contents() == talk.stored() == undone
    never_begun(talk, line)
    talk.do("/continue", b"new")
    assert talk.contents() == talk.stored() == ["One", "1", asked, "new"], "the question is not asked twice"


@pytest.mark.parametrize("before", [[], ["One"]])
def test_a_question_that_was_never_answered_is_there_after_a_restart(talk: Talk, before: list[str]) -> None:
    for text in before:
        talk.say(text, b"1")
    question = "Two " * 60
    never_begun(talk, question)
    for _ in range(2):
        said = talk.do("/resume 1").text
        assert "Your last message was not answered; /retry asks it again: Two Two " in said
        assert question.strip() not in said
        assert talk.chat.session.conversation.system == "Be brief."
    talk.do("/retry", b"2")
    assert talk.contents() == talk.stored() == [*(["One", "1"] if before else []), question, "2"]
    never_begun(talk, "Three")
    assert talk.do("/undo").text == "Took back 1 turn, from: Three"
    assert "not answered" not in talk.do("/resume 1").text


def test_an_answer_that_nobody_listens_to_any_more_is_kept(talk: Talk) -> None:
    talk.say("One", b"1")
    talk.engine.answers.append([b"Tw", b"o"])
    answer = talk.chat.session.send("Two", threading.Event())
    assert next(event for event in answer if isinstance(event, TextPiece)).text == "Tw"
    del answer  # as when the terminal or the reader of a pipe has gone
    assert talk.stored() == ["One", "1", "Two", "Tw"]
    assert "cut short; /continue" in talk.do("/resume 1").text


def test_a_conversation_that_starts_over_leaves_the_one_before_where_it_was(talk: Talk) -> None:
    assert talk.do("/clear").text == "The conversation starts over.", "nothing was said that could be kept"
    talk.say("One", b"1")
    assert talk.do("/clear").text == "The conversation starts over; the one so far is kept: /resume 1"
    with pytest.raises(LlamachatError, match="Nothing has been said"):
        talk.do("/fork")
    talk.say("Two", b"2")
    assert talk.do("/system Rhyme.").text.endswith("kept: /resume 2")
    talk.say("Three", b"3")
    for id_, system, contents in ((1, "Be brief.", ["One", "1"]), (2, "Be brief.", ["Two", "2"])):
        assert talk.do(f"/resume {id_}").text == f"Conversation {id_} goes on after 1 turn: {contents[0]}"
        assert (talk.chat.session.conversation.system, talk.contents()) == (system, contents)
    talk.do("/resume Three")
    assert (talk.chat.session.conversation.system, talk.contents()) == ("Rhyme.", ["Three", "3"])


def test_the_system_prompt_is_kept_while_all_is_undone(talk: Talk) -> None:
    talk.do("/system Rhyme.")
    talk.say("One", b"1")
    talk.do("/undo")
    talk.do("/resume 1")
    assert (talk.chat.session.conversation.system, talk.contents()) == ("Rhyme.", [])
    with pytest.raises(LlamachatError, match="nothing to copy"):
        talk.do("/fork")


def test_every_branch_can_be_gone_back_to(talk: Talk) -> None:
    talk.say("One", b"1")
    assert talk.do("/branches").text.startswith("There is no other branch")
    talk.do("/retry", b"uno")
    talk.say("Two", b"2")
    talk.do("/undo")
    listed = talk.do("/branches").text
    assert [line.split(", ", 1)[1] for line in listed.splitlines()] == [
        "fake:q8_0: 1 (1 message)",
        "you: Two (2 messages)",
    ]
    assert talk.do("/branches 1").text == "Conversation 1 goes on after 1 turn: One"
    assert talk.stored() == talk.contents() == ["One", "1"]
    assert "you: Two" not in talk.do("/branches").text.splitlines()[0]
    talk.do("/branches 1")
    assert talk.stored() == talk.contents() == ["One", "uno", "Two", "2"]
    talk.say("Three", b"3")
    assert talk.stored() == ["One", "uno", "Two", "2", "Three", "3"]
    for word in ("0", "2", "x", "-1"):
        with pytest.raises(LlamachatError, match="There is no branch"):
            talk.do(f"/branches {word}")


def test_resume_without_another_conversation(talk: Talk) -> None:
    talk.say("One", b"1")
    with pytest.raises(LlamachatError, match="no other conversation"):
        talk.do("/resume")


def test_sessions_says_that_there_are_more(talk: Talk) -> None:
    for i in range(15):
        talk.say(f"Number {i}", b"1")
        talk.do("/clear")
    assert "more" not in talk.do("/sessions").text
    talk.say("One more", b"1")
    assert "There are more: " in talk.do("/sessions").text.splitlines()[-1]
    assert len(talk.do("/sessions").text.splitlines()) == 16


def test_fork_leaves_the_other_conversation_alone(talk: Talk) -> None:
    talk.say("One", b"1")
    talk.say("Two", b"2")
    assert talk.do("/fork elsewhere").text.startswith("Conversation 2 begins as a copy of 1")
    talk.do("/undo")
    talk.say("Drei", b"3")
    assert talk.stored() == ["One", "1", "Drei", "3"]
    assert talk.do("/title").text == "elsewhere"
    assert talk.do("/resume 1").text == "Conversation 1 goes on after 2 turns: One"
    with pytest.raises(LlamachatError, match="no figures"):
        talk.do("/stats")
    assert talk.contents() == ["One", "1", "Two", "2"]
    assert "    1  " in talk.do("/sessions").text
    talk.do("/title Counting")
    assert talk.do("/resume elsewhere").text.startswith("Conversation 2 goes on after 2 turns")
    assert talk.contents() == ["One", "1", "Drei", "3"]


def test_search_export_and_copy(talk: Talk, tmp_path: Path) -> None:
    talk.say("湖水为什么结冰？", "因为冷。".encode())
    assert "因为冷" in talk.do("/search 因为冷").text
    assert talk.do("/search nothing-like-it").text == "Nothing that was said holds 'nothing-like-it'."
    for name in ("a.md", "a.html", "a.json"):
        assert talk.do(f"/export {tmp_path / name}").text == f"Written to {tmp_path / name}."
        assert "因为冷" in (tmp_path / name).read_text("utf-8")
    json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert talk.do("/copy").copy == "因为冷。"


def test_an_export_replaces_no_file_unasked(talk: Talk, tmp_path: Path) -> None:
    talk.say("One", b"1")
    path = tmp_path / "my talk.md"
    path.write_text("dear diary", "utf-8")
    with pytest.raises(LlamachatError, match="is not replaced") as refused:
        talk.do(f"/export {path}")
    assert path.read_text("utf-8") == "dear diary"
    talk.do(refused.value.next_step.partition(": ")[2])
    assert "One" in path.read_text("utf-8")
    with pytest.raises(LlamachatError, match="cannot be written") as refused:
        talk.do(f"/export {tmp_path / 'nowhere' / 'a.md'}")
    assert "LLAMACHAT_HOME" not in refused.value.next_step, "it is not where the program keeps things"


def test_a_conversation_that_is_not_kept_can_be_exported(talk: Talk, tmp_path: Path) -> None:
    talk.chat.record = None
    talk.chat.session.record = NoRecord()
    with pytest.raises(LlamachatError, match="Nothing has been said"):
        talk.do(f"/export {tmp_path / 'a.json'}")
    talk.say("One", b"1")
    cancel = threading.Event()
    talk.engine.answers.append([b"2", cancel.set, b"!"])
    *_, talk.chat.last_answer = talk.chat.session.send("Two", cancel)  # type: ignore[assignment]
    talk.do(f"/export {tmp_path / 'a.json'}")
    tree = read_export(tmp_path / "a.json")
    assert tree.at_head().conversation == talk.chat.session.conversation
    assert (tree.title, tree.facts) == ("One", talk.chat.facts())
    talk.do(f"/export {tmp_path / 'a.md'}")
    assert (tmp_path / "a.md").read_text("utf-8").rstrip().endswith("2\n\n*(interrupted)*")
    stored = talk.history.load(talk.history.add_tree(tree))
    assert (stored.finish_reason, stored.conversation.system) == ("interrupted", "Be brief.")


def test_what_fails_in_the_middle_of_an_answer_can_be_gone_on_with(talk: Talk) -> None:
    talk.engine.answers.append([b"1, ", EngineFailed("out of memory")])
    with pytest.raises(LlamachatError):
        list(talk.chat.session.send("Count", threading.Event()))
    assert talk.contents() == talk.stored() == ["Count", "1, "]
    talk.do("/continue", b"2")
    assert talk.contents() == talk.stored() == ["Count", "1, 2"]
    talk.say("More", b"3")
    talk.engine.answers.append([b"three", EngineFailed("out of memory")])
    with pytest.raises(LlamachatError):
        list(talk.chat.session.retry(threading.Event()))
    assert talk.contents() == talk.stored() == ["Count", "1, 2", "More", "3"], "another answer was to take its place"


def test_context_shows_the_system_prompt_before_anything_was_said(talk: Talk) -> None:
    n_system = len("|system\nBe brief.|\n")  # with a control token at each end
    shown = talk.do("/context").text.splitlines()
    assert shown == [f"system{n_system:>7}", f"{n_system} of 600 tokens in use; 75 are kept for the answer."]


def test_context_shows_a_summary_as_what_it_is(talk: Talk) -> None:
    for i in range(4):
        talk.say(f"{i}" + "x" * 90, b"y")
    talk.do("/compact", b"Letters.")
    shown = talk.do("/context").text.splitlines()
    assert [line[:15] for line in shown[1:4]] == [f"{i:>4}  summary  " for i in (1, 2, 3)]
    assert shown[5].endswith("(summary of turns 1 to 3) Letters.")
    sizes = [int(line[6:13]) for line in shown[:-1] if "  summary " not in line]
    assert sum(sizes) == len(talk.chat.session.seen().ids)  # type: ignore[union-attr]
    talk.do("/undo")
    assert "summary" not in talk.do("/context").text
    assert not talk.troubles


def test_context_and_pin(talk: Talk) -> None:
    for i in range(6):
        talk.say(f"{i}" + "x" * 90, b"y")
        if i == 0:
            assert talk.do("/pin").text == "Turn 1 stays in the window."
    shown = talk.do("/context").text.splitlines()
    assert shown[0].startswith("system ")
    assert shown[1].startswith("   1 *")
    assert "left out" in shown[2]
    n_used = len(talk.chat.session.seen().ids)  # type: ignore[union-attr]
    assert shown[-2] == f"{n_used} of 600 tokens in use; 75 are kept for the answer."
    sizes = [int(line[6:13]) for line in shown[:-2] if "left out" not in line]
    assert sum(sizes) == n_used
    assert talk.do("/pin off 1").text == "Turn 1 may leave the window."
    with pytest.raises(LlamachatError, match="no turn 9"):
        talk.do("/pin 9")
    assert str(n_used) in talk.do("/prompt").text.splitlines()[-1]
    talk.do("/pin")
    talk.do("/edit something else", b"z")
    assert talk.chat.session.conversation.turns[-1][0].is_pinned, "what takes its place stays, too"


def test_figures_of_an_answer_without_a_token_tell_no_speed_of_it(talk: Talk) -> None:
    talk.say("One")
    shown = " ".join(talk.do("/stats").text.split())
    assert "answer 0 tokens · template" in shown
    assert "first token" not in shown
    talk.say("Two", b"2", b"3")
    assert "answer 2 tokens, " in talk.do("/stats").text


def test_a_file_goes_before_the_next_message(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Facts. 冰", "utf-8")
    assert talk.do(f"/file {path}").text == f"a.txt ({len('Facts. 冰'.encode())} tokens) goes before your next message."
    assert talk.chat.attached == ["Facts. 冰"]
    path.write_bytes(b"\0\1")
    with pytest.raises(LlamachatError, match="binary"):
        talk.do(f"/file {path}")


@pytest.mark.parametrize("form", ["{}", '"{}"', "'{}'"])
def test_a_file_with_blanks_in_its_name(talk: Talk, tmp_path: Path, form: str) -> None:
    path = tmp_path / "my notes.txt"
    path.write_text("Facts.", encoding="utf-8")
    assert talk.do(f"/file {form.format(path)}").text.startswith("my notes.txt (")
    assert talk.do("/file " + str(path).replace(" ", "\\ ")).text.startswith("my notes.txt (")


def test_several_files_by_wildcards(talk: Talk, tmp_path: Path) -> None:
    for name in ("b.md", "a.md", "[1].md", "c.txt"):
        (tmp_path / name).write_text(name)
    assert talk.do(f"/file {tmp_path}/[1].md").text == "[1].md (6 tokens) goes before your next message."
    assert talk.do(f"/file {tmp_path}/?.md").text == "a.md (4 tokens), b.md (4 tokens) go before your next message."
    assert talk.chat.attached == ["[1].md", "a.md:\na.md", "b.md:\nb.md"], "which is which"
    (tmp_path / "d.md").write_bytes(b"\0")
    for pattern in ("?.md", "*.py"):
        with pytest.raises(LlamachatError):
            talk.do(f"/file {tmp_path}/{pattern}")
    assert len(talk.chat.attached) == 3


@pytest.mark.parametrize(
    "line",
    [
        "/file ~nobody.at.all/x",
        f"/file {'x' * 300}",
        "/file **x",
        "/export ~nobody.at.all/x.md",
        f"/export {'x' * 300}.md",
        f"/adapter {'x' * 300}",
        "/model ~nobody.at.all/x",
        f"/model ./{'x' * 300}",
    ],
)
def test_a_path_that_cannot_be_costs_no_chat(talk: Talk, line: str) -> None:
    talk.say("One", b"1")
    before = talk.chat.session.conversation
    with pytest.raises(LlamachatError):
        talk.do(line)
    assert talk.chat.session.conversation == before
    assert not talk.chat.attached


def test_set(talk: Talk) -> None:
    talk.do("/set temperature 0.1")
    talk.do("/set top-p=0.3")
    talk.do("/set max_tokens 1")
    assert talk.chat.session.sampling == SamplingParams(temperature=0.1, top_p=0.3)
    assert talk.say("One", b"1", b"2").content == "1"
    assert "temperature     0.1" in talk.do("/set").text
    for bad in ("/set temperature hot", "/set top_p 2", "/set nothing 1", "/set seed -1", "/retry temperature"):
        with pytest.raises(LlamachatError):
            talk.do(bad)


def test_set_max_tokens_and_overflow(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    talk.say("One", b"1")
    talk.do("/set max_tokens 1")
    assert talk.do("/set overflow compact").text == "overflow is compact now."
    assert (talk.chat.session.overflow, kept_facts().options) == ("compact", {"max_tokens": 1, "overflow": "compact"})
    talk.do("/set max_tokens off")
    talk.do("/set overflow drop")
    assert (talk.chat.session.max_tokens, kept_facts().options) == (None, {})
    with pytest.raises(LlamachatError, match="drop, stop, compact"):
        talk.do("/set overflow never")
    monkeypatch.setattr(loading, "open_engine", lambda *_: FakeEngine([b"2"], n_ctx=512))
    assert talk.do("/set ctx 300").text == "ctx is 512 now.", "what is in force, not what was asked for"


def test_a_conversation_that_goes_on_has_the_date_of_its_beginning(talk: Talk) -> None:
    talk.chat.session.template = Jinja("{{ strftime_now('%Y-%m-%d') }}{{ messages[-1]['content'] }}")
    talk.say("One", b"1")
    tree = talk.history.tree(1)
    talk.chat.adopt(talk.history.load(talk.history.add_tree(replace(tree, created="2025-01-02T12:00:00+00:00"))))
    talk.say("Two", b"2")
    assert talk.engine.prompts[-1] == "2025-01-02Two"


def test_examples_are_kept_as_finished_turns_and_are_not_the_title(talk: Talk) -> None:
    turns = (Message("user", "2+2?"), Message("assistant", "4"))
    session = talk.chat.session = Session(talk.engine, ChatML(), SamplingParams(), examples=turns)
    session.record = talk.chat.record or session.record
    talk.say("3+3?", b"6")
    stored = talk.history.load(1)
    assert stored.title == "3+3?"
    assert talk.stored() == ["2+2?", "4", "3+3?", "6"]
    assert [answer.finish_reason for answer in stored.tree.messages if answer.message.role == "assistant"] == [
        "stop"
    ] * 2


def kept_facts() -> SessionFacts:
    """What a restart would go on with."""
    with History(history_path()) as again:
        return again.load(again.find("last")).facts


def test_settings_outlive_other_settings_and_a_restart(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "open_engine", lambda *_: FakeEngine([b"2"], n_ctx=500))
    talk.say("One", b"1")
    talk.do("/set temperature 0.1")
    assert kept_facts().sampling["temperature"] == 0.1
    talk.do("/set ctx 500")
    assert (kept_facts().n_ctx, talk.chat.session.sampling.temperature) == (500, 0.1)
    list(run_command("/retry temperature=1.5", talk.chat).answer(threading.Event()))  # type: ignore[misc]
    assert kept_facts().sampling["temperature"] == 0.1, "that was for one answer"
    with History(history_path()) as again:
        last = again.load(1).last
    assert last
    assert last.facts
    assert last.facts.sampling["temperature"] == 1.5


def test_another_model_brings_its_own_template(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[FakeEngine] = []

    def open_fake(*_: object) -> FakeEngine:
        engine = FakeEngine([b"2"])
        engine.info = replace(engine.info, metadata={"tokenizer.chat_template": "{{ raise_exception('no system') }}"})
        engines.append(engine)
        return engine

    monkeypatch.setattr(loading, "open_engine", open_fake)
    models = {name: StoredModel(name, "q8_0", Path(f"/{name}.gguf"), template=name) for name in ("llama-2", "jinja")}
    monkeypatch.setattr(local_model, "resolve", models.get)
    talk.say("One", b"1")
    assert "template llama-2" in talk.do("/model llama-2").text
    with pytest.raises(LlamachatError, match="no system"):
        talk.do("/model jinja")
    assert talk.chat.model == LocalModel(models["llama-2"]), "it goes on with the one it had"
    assert not engines[-1].answers, "closed"


def test_another_conversation_goes_on_as_it_stopped(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "open_engine", lambda _, options, *__: FakeEngine([b"2"], n_ctx=options.n_ctx))
    talk.do("/set temperature 0.1")
    talk.say("One", b"1")
    talk.do("/fork")
    talk.do("/set temperature 0.9")
    talk.do("/set ctx 500")
    talk.do("/resume")
    assert talk.chat.record
    assert talk.chat.record.session_id == 1, "the newest other one"
    assert (talk.chat.session.sampling.temperature, talk.chat.session.engine.info.n_ctx) == (0.1, 600)
    talk.do("/resume")
    assert (talk.chat.session.sampling.temperature, talk.chat.session.engine.info.n_ctx) == (0.9, 500)
    talk.chat.model = LocalModel(StoredModel("other", "q8_0", Path("/nowhere.gguf")))
    assert talk.do("/resume 1").text.endswith("/model fake:q8_0")
    assert talk.chat.session.sampling.temperature == 0.9


def test_a_named_model_goes_on_as_before_if_it_is_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    monkeypatch.setattr(loading, "open_engine", lambda *_: FakeEngine([b"1"]))
    name = "smollm2-135m-instruct"
    with open_chat(name, ChatOptions(EngineOptions(), {"seed": 7}, template="zephyr")) as chat:
        list(chat.session.send("One", threading.Event()))
    with open_chat(name, ChatOptions(EngineOptions(), {"seed": None}), resume="last") as chat:
        assert (chat.choice.template.name, chat.session.sampling.seed) == ("zephyr", 7)


NO_OPTIONS = ChatOptions(EngineOptions(), {})
OPTIONS = {
    "max_tokens": 9, "stop": ["END"], "overflow": "stop", "reasoning": "off", "kv_type": "q8_0", "rope_scaling": "yarn",
}  # fmt: skip


def held_with(options: ChatOptions) -> dict[str, object]:
    engine = options.engine
    return {
        "max_tokens": options.max_tokens,
        "stop": list(options.stop),
        "overflow": options.overflow,
        "reasoning": options.reasoning,
        "kv_type": engine.kv_type,
        "rope_scaling": engine.rope_scaling,
    }


def test_a_conversation_goes_on_with_the_options_it_was_held_with(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    opened: list[EngineOptions] = []

    def open_fake(_: Path, options: EngineOptions, *__: object) -> FakeEngine:
        opened.append(options)
        return FakeEngine([b"1"], [b"2"])

    monkeypatch.setattr(loading, "open_engine", open_fake)
    name = "smollm2-135m-instruct"
    engine = EngineOptions(kv_type="q8_0", rope_scaling="yarn")
    first = ChatOptions(
        engine,
        {},
        max_tokens=9,
        stop=("END",),
        overflow="stop",
        reasoning="off",
        grammar='root ::= "1"',
        strict_tags=True,
    )
    with open_chat(name, first) as chat:
        list(chat.session.send("One", threading.Event()))
    assert kept_facts().options == {**OPTIONS, "grammar": True, "strict_tags": True}
    with open_chat(None, ChatOptions(EngineOptions(), {}), resume="last") as chat:
        assert held_with(chat.options) == OPTIONS
        session = chat.session
        assert (session.max_tokens, session.own_stop, session.overflow, session.grammar) == (9, ("END",), "stop", None)
        assert session.template.thinking is False
        assert session.strict_tags
        assert (opened[-1].kv_type, opened[-1].rope_scaling) == ("q8_0", "yarn")
    assert "now they do only with --grammar" in capsys.readouterr().err
    mine = ChatOptions(EngineOptions(kv_type="f16"), {}, max_tokens=5, stop=("",), overflow="drop", reasoning="auto")
    with open_chat(None, mine, resume="last") as chat:
        assert (chat.session.max_tokens, chat.session.overflow, opened[-1].kv_type) == (5, "drop", "f16")
        list(chat.session.send("Two", threading.Event()))
    kept = {"max_tokens": 5, "rope_scaling": "yarn", "strict_tags": True}
    assert kept_facts().options == kept, "what was given wins, and lasts"


def test_resume_in_the_chat_brings_the_options_along(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[EngineOptions] = []

    def open_fake(_: Path, options: EngineOptions, *__: object) -> FakeEngine:
        opened.append(options)
        return FakeEngine([b"2"], n_ctx=600)

    monkeypatch.setattr(loading, "open_engine", open_fake)
    talk.say("One", b"1")
    tree = talk.history.tree(1)
    other = talk.history.add_tree(replace(tree, facts=replace(tree.facts, options=OPTIONS)))
    strange = {"overflow": "sideways", "reasoning": ["on"], "kv_type": "q1", "rope_scaling": 3, "of_later": [1]}
    talk.do(f"/resume {other}")
    assert held_with(talk.chat.options) == OPTIONS
    assert (talk.chat.session.max_tokens, talk.chat.session.own_stop) == (9, ("END",))
    assert talk.chat.session.template.thinking is False
    assert len(opened) == 1
    assert not talk.chat.shows_thoughts
    talk.do("/resume 1")
    assert talk.chat.shows_thoughts
    assert talk.chat.session.template.thinking is None
    assert held_with(talk.chat.options) == {
        "max_tokens": None, "stop": [], "overflow": None, "reasoning": None, "kv_type": None, "rope_scaling": None
    }  # fmt: skip
    assert talk.chat.session.overflow == "drop"
    assert talk.chat.session.template.thinking is None
    strange_id = talk.history.add_tree(replace(tree, facts=replace(tree.facts, options=strange)))
    talk.do(f"/resume {strange_id}")
    assert talk.chat.session.overflow == "drop", "a word of a later version means nothing here"


def test_a_conversation_whose_model_is_gone(talk: Talk) -> None:
    talk.say("One", b"1")
    with (
        pytest.raises(LlamachatError, match="no model named 'fake'") as refused,
        open_chat(None, ChatOptions(EngineOptions(), {}), resume="1"),
    ):
        pass
    assert refused.value.next_step.endswith(", or go on with another model: llamachat chat MODEL --resume 1")


def test_a_conversation_whose_adapter_is_gone(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    opened: list[EngineOptions] = []

    def open_fake(_: Path, options: EngineOptions, *__: object) -> FakeEngine:
        opened.append(options)
        return FakeEngine([b"1"])

    monkeypatch.setattr(loading, "open_engine", open_fake)
    monkeypatch.setattr(loading, "check_adapter", lambda *_: ())
    monkeypatch.chdir(tmp_path)
    Path("my.gguf").touch()
    held = ChatOptions(EngineOptions(adapters=[LoraAdapter(Path("my.gguf"), 0.5)]), {})
    with open_chat("smollm2-135m-instruct", held) as chat:
        list(chat.session.send("One", threading.Event()))
    monkeypatch.chdir("/")
    with open_chat(None, NO_OPTIONS, resume="1"):
        assert opened[-1].adapters == [LoraAdapter(tmp_path / "my.gguf", 0.5)], "wherever one goes on from"
    (tmp_path / "my.gguf").unlink()
    with pytest.raises(LlamachatError, match="is gone") as refused, open_chat(None, NO_OPTIONS, resume="1"):
        pass
    assert refused.value.next_step.endswith("--adapter off")
    with open_chat(None, chat_options(ChatArguments(adapter=["off"])), resume="1") as chat:
        assert not chat.adapters


def test_an_adapter_that_is_not_there(talk: Talk) -> None:
    with pytest.raises(LlamachatError, match="no file, and no adapter of fake"):
        talk.do("/adapter nowhere.gguf")


@pytest.mark.parametrize(
    "line", ["/undo", "/retry", "/edit", "/edit x", "/continue", "/pin", "/prompt", "/copy", "/stats"]
)
def test_before_anything_was_said(line: str, talk: Talk) -> None:
    with pytest.raises(LlamachatError) as refused:
        talk.do(line, b"never")
    assert refused.value.next_step
    assert not talk.engine.requests


def test_an_unknown_command_is_not_sent(talk: Talk) -> None:
    assert "Did you mean /retry" in talk.do("/rety").text
    assert "Did you mean /exit" in talk.do("/bye").text
    assert not talk.engine.requests


def test_help_names_every_command(talk: Talk) -> None:
    shown = talk.do("/help").text
    assert all(name in shown for name in COMMANDS)


def test_a_history_that_fails_costs_only_the_saving(talk: Talk) -> None:
    talk.say("One", b"1")
    history_path().unlink()
    talk.history._database._connection.execute("PRAGMA query_only = ON")  # the disk refuses
    talk.say("Two", b"2")
    talk.say("Three", b"3")
    assert talk.contents() == ["One", "1", "Two", "2", "Three", "3"]
    assert len(talk.troubles) == 1, "told once"


def test_what_could_not_be_saved_is_saved_with_the_next_message_that_can_be(talk: Talk) -> None:
    talk.say("One", b"1")
    refuse = talk.history._database._connection.execute
    refuse("PRAGMA query_only = ON")
    talk.say("Two", b"2")
    talk.say("Undone", b"-")
    talk.do("/undo")
    refuse("PRAGMA query_only = OFF")
    talk.say("Three", b"3")
    assert talk.stored() == talk.contents() == ["One", "1", "Two", "2", "Three", "3"]
    refuse("PRAGMA query_only = ON")
    talk.say("Left at once", b"4")
    refuse("PRAGMA query_only = OFF")
    talk.chat.record.catch_up(talk.chat.session.said)  # type: ignore[union-attr]
    assert talk.stored() == talk.contents() == ["One", "1", "Two", "2", "Three", "3", "Left at once", "4"]
    talk.do("/undo")
    talk.engine.answers.append([EngineFailed("no memory")])
    with pytest.raises(EngineFailed):
        list(talk.chat.session.send("Four", threading.Event()))
    assert talk.stored() == ["One", "1", "Two", "2", "Three", "3"], "the last answer stays the last one"
    assert len(talk.troubles) == 2


def test_an_answer_whose_end_could_not_be_saved_is_saved_with_the_next_message(talk: Talk) -> None:
    refuse = talk.history._database._connection.execute
    talk.engine.answers.append([b"The ", b"end."])
    for event in talk.chat.session.send("One", threading.Event()):
        if isinstance(event, TextPiece):
            refuse("PRAGMA query_only = ON")
    refuse("PRAGMA query_only = OFF")
    talk.say("Two", b"2")
    assert talk.stored() == talk.contents() == ["One", "The end.", "Two", "2"]


def test_a_conversation_that_another_process_removed_is_not_written_anew(talk: Talk) -> None:
    talk.say("One", b"1")
    with History(history_path()) as other:
        other.remove(1)
    talk.say("Two", b"2")
    talk.say("Three", b"3")
    assert "removed" in str(talk.troubles[0])
    assert len(talk.troubles) == 1
    assert talk.history.sessions() == []


def test_two_chats_that_go_on_with_one_answer_do_not_write_over_each_other(talk: Talk) -> None:
    talk.say("Count", b"One,")
    other = Talk()
    other.chat.adopt(other.history.load(1))
    other.do("/continue", b" two")
    talk.do("/continue", b" deux")
    assert talk.stored() == talk.contents() == ["Count", "One, deux"]
    other.say("And?", b"three")
    assert other.stored() == other.contents() == ["Count", "One, two", "And?", "three"]
    assert len(talk.history.tree(1).messages) == 6, "a system prompt, and one question with two answers"
    other.history.close()


# --- Ctrl-C at the edges of an answer -------------------------------------------------------------------------


class LateInterrupts:
    """A reader of these lines; Ctrl-C is pressed just after it has become a signal, and just before it ceases to be."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    def read(self, begun: str = "") -> str:  # noqa: ARG002
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def read_ahead(self, what: str, is_done: Callable[[], bool]) -> None:
        raise NotImplementedError

    def attach(self, **_: object) -> None:
        pass

    def hold_keys(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def allow_interrupt(self) -> Iterator[None]:
        os.kill(os.getpid(), signal.SIGINT)
        yield
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_just_before_or_after_an_answer_ends_that_at_most(talk: Talk) -> None:
    talk.engine.answers += [[b"One."], [b"Two."]]
    reader = LateInterrupts("first", "second")
    run_screen(talk.chat, reader, show_stats=False)
    assert not reader.lines
    assert "second" in [*talk.contents(), talk.chat.session.unanswered and talk.chat.session.unanswered.content]
