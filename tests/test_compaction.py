"""A summary in the place of older turns: the tree, the prompt and the numbers, and nothing lost on the way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import RunCommand
from hypothesis import given
from hypothesis import strategies as st

from llamachat.chat.compaction import Compacted, Compacting, NotCompacted
from llamachat.chat.events import Answer, LeftOut, SessionEvent, TextPiece
from llamachat.chat.history import History
from llamachat.chat.history_record import HistoryRecord
from llamachat.chat.message import Conversation, Message
from llamachat.chat.session import Session
from llamachat.chat.templates import ChatML
from llamachat.chat.window import fit, make_window, places_shown
from llamachat.engine.base import EngineOptions, Prefill
from llamachat.engine.llamacpp import LlamaEngine
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import BadConversation, EngineFailed, LlamachatError
from support.fake_engine import FakeEngine, FakeTokenizer, Step
from support.stored_sessions import FACTS, answer, say
from support.terminal import CTRL_C, Terminal

N_CTX = 3200
SYSTEM = "Be brief."
SUMMARY = "They count."
MODEL = "smollm2-135m-instruct"

Scripted = Callable[..., list[object]]


class Talk:
    """A session with a scripted engine and a history."""

    def __init__(self, path: Path) -> None:
        self.engine = FakeEngine(n_ctx=N_CTX)
        self.history = History(path)
        self.record = HistoryRecord(self.history, lambda _: FACTS, pytest.fail)
        self.session = Session(self.engine, ChatML(), SamplingParams(), system=SYSTEM, record=self.record)

    def say(self, text: str, *answers: Sequence[Step], cancel: threading.Event | None = None) -> list[SessionEvent]:
        self.engine.answers.extend(answers)
        return list(self.session.send(text, cancel or threading.Event()))

    def count(self, *numbers: int, length: int = 300) -> None:
        """Turns with a number each."""
        for number in numbers:
            self.say(question(number, length), [f"{number}.".encode()])

    def compact(self, *answer: Step, focus: str = "", cancel: threading.Event | None = None) -> list[SessionEvent]:
        self.engine.answers.append(answer)
        return list(self.session.compact(cancel or threading.Event(), focus))

    def contents(self) -> list[str]:
        messages = self.session.conversation.messages
        assert all(a.role != b.role for a, b in pairwise(messages))
        return [message.content for message in messages]

    def stored(self) -> Conversation:
        assert self.record.session_id is not None
        return self.history.load(self.record.session_id).conversation


def question(number: int, length: int = 300) -> str:
    return f"{number}?".ljust(length, "x")


def chatml(*turns: tuple[str, str]) -> str:
    said = "".join(
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n" for asked, answer in turns
    )
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{said}"


def turn(number: int) -> tuple[str, str]:
    return question(number), f"{number}."


@pytest.fixture
def talk(home: Path) -> Iterator[Talk]:
    home.mkdir()
    talk = Talk(home / "history.db")
    yield talk
    talk.history.close()


def test_a_summary_takes_the_place_of_older_turns_in_the_prompt_alone(talk: Talk) -> None:
    talk.count(0, 1, 2, 3)
    before = talk.session.seen()
    assert before
    begun, *pieces, done = [
        event for event in talk.compact(b" They", b" count.\n", focus="the {sum}") if not hasattr(event, "n_total")
    ]
    assert begun == Compacting(2, len(before.ids), N_CTX)
    assert "".join(event.text for event in pieces if isinstance(event, TextPiece)) == " They count.\n"
    request = talk.contents()[-2]
    assert request.startswith("Summarize our conversation")
    assert request.endswith(" at most 200 words. Above all keep in mind: the {sum}")
    assert talk.engine.prompts[-1] == (
        chatml(*map(turn, range(4))) + f"<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n"
    ), "on top of the conversation as it stands, so that the KV cache is used"
    assert talk.engine.requests[-1].max_tokens == 400, "an eighth of the window, of which it is kept free"

    assert isinstance(done, Compacted)
    assert (done.n_turns, done.n_unread, done.n_before, done.is_cut) == (2, 0, len(before.ids), False)
    after = talk.session.seen()
    assert after
    assert (len(after.ids), done.elapsed_s > 0) == (done.n_after, True)
    talk.count(4)
    assert talk.engine.prompts[-1] == (
        chatml((request, SUMMARY), turn(2), turn(3)) + f"<|im_start|>user\n{question(4)}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    whole = [text for i in range(4) for text in turn(i)] + [request, SUMMARY, *turn(4)]
    assert talk.contents() == whole, "nothing is moved or written over"
    assert talk.stored() == talk.session.conversation
    assert len(talk.history.tree(1).messages) == 1 + len(whole), "and nothing is there twice"
    assert len(talk.history.search("0?")) == 1


def test_undo_brings_the_turns_back(talk: Talk) -> None:
    talk.count(0, 1, 2, 3)
    before = talk.session.conversation
    talk.compact(SUMMARY.encode())
    (gone,) = talk.session.undo()
    assert gone[1].content == SUMMARY
    assert talk.session.conversation == talk.stored() == before
    talk.count(4)
    assert talk.engine.prompts[-1].startswith(chatml(*map(turn, range(4))))


def test_it_goes_on_after_a_restart_as_it_did(talk: Talk) -> None:
    talk.count(0, 1, 2, 3)
    talk.compact(SUMMARY.encode())
    again = Session(talk.engine, ChatML(), SamplingParams(), record=talk.record)
    stored = talk.history.load(1)
    talk.record.adopt(stored)
    again.resume(stored.conversation, stored.unanswered)
    assert again.prompt_for("next") == talk.session.prompt_for("next")
    copied = talk.history.load(talk.history.add_tree(stored.tree)).conversation
    assert copied == stored.conversation


def test_a_second_summary_sums_up_the_first_one_too(talk: Talk) -> None:
    talk.count(0, 1, 2, 3)
    talk.session.pin(0, is_pinned=True)
    talk.compact(SUMMARY.encode())
    first = talk.contents()[-2]
    with pytest.raises(BadConversation, match="nothing to sum up"):
        talk.compact(b"never")
    talk.engine.answers.clear()
    talk.count(4, 5)
    assert talk.engine.prompts[-1].startswith(chatml(turn(0), (first, SUMMARY), *map(turn, (2, 3, 4))))
    talk.compact(b"More.")
    second = talk.contents()[-2]
    assert talk.engine.prompts[-1].startswith(chatml(turn(0), (first, SUMMARY), *map(turn, (2, 3, 4, 5))))
    assert talk.session.prompt_for("6").text.startswith(chatml(turn(0), (second, "More."), turn(4), turn(5)))
    talk.session.pin(1, is_pinned=True)
    assert chatml(turn(0), turn(1), (second, "More.")) in talk.session.prompt_for("6").text, "a pin brings a turn back"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([b" \n"], "The summary is empty."),
        ([b"x" * 900], r"The summary is longer than what it sums up: 1,\d\d\d tokens for 1,\d\d\d."),
    ],
)
def test_a_summary_that_is_of_no_use(talk: Talk, answer: list[Step], reason: str) -> None:
    talk.count(0, 1, 2, 3)
    before = talk.session.conversation
    *_, done = talk.compact(*answer)
    assert isinstance(done, NotCompacted)
    assert re.fullmatch(reason, done.reason)
    assert talk.session.conversation == talk.stored() == before


def test_an_interrupted_or_failed_summary_changes_nothing(talk: Talk) -> None:
    talk.count(0, 1, 2, 3)
    before, tree = talk.session.conversation, talk.history.tree(1)
    cancel = threading.Event()
    *_, done = talk.compact(b"They", cancel.set, cancel=cancel)
    assert done == NotCompacted("The summary was interrupted.")
    with pytest.raises(EngineFailed):
        talk.compact(b"They", EngineFailed("out of memory"))
    events = talk.session.compact(threading.Event())
    talk.engine.answers.append([b"They"])
    while not isinstance(next(events), TextPiece):
        pass
    events.close()  # type: ignore[attr-defined]
    assert talk.session.conversation == before
    assert talk.history.tree(1) == tree, "not even a branch"
    assert talk.session.unanswered is None


def test_what_cannot_be_summed_up(talk: Talk) -> None:
    for _ in range(2):
        with pytest.raises(BadConversation, match="nothing to sum up"):
            talk.compact(b"never")
        talk.engine.answers.clear()
        talk.count(0)
    cancel = threading.Event()
    cancel.set()
    talk.say("never answered", [b"x"], cancel=cancel)
    with pytest.raises(BadConversation, match="not answered yet"):
        talk.compact(b"never")


def test_a_single_turn_that_fills_the_window_can_be_summed_up(talk: Talk) -> None:
    talk.say("x" * 700, [b"y" * 700])
    talk.compact(b"Letters.")
    assert len(talk.contents()) == 4
    assert "xxx" not in talk.session.prompt_for("and?").text


def test_a_summary_is_not_gone_on_with_but_can_be_written_anew(talk: Talk) -> None:
    talk.count(0, 1, 2, 3)
    talk.compact(SUMMARY.encode())
    with pytest.raises(BadConversation, match="summary"):
        talk.session.go_on(threading.Event())
    talk.engine.answers.append([b"Other."])
    list(talk.session.retry(threading.Event()))
    assert talk.engine.prompts[-1].startswith(chatml(*map(turn, range(4)))), "from the turns, not from the summary"
    assert "Other." in talk.session.prompt_for("4").text
    assert question(0) not in talk.session.prompt_for("4").text


def test_the_request_is_in_the_language_of_the_conversation(talk: Talk) -> None:
    for text in ("湖水为什么结冰？" * 20, "什么时候？", "在哪里 (Celsius)？"):
        talk.say(text, ["因为冷。".encode()])
    talk.compact("他们谈湖。".encode(), focus="湖")
    assert talk.contents()[-2].startswith("请总结")
    assert talk.contents()[-2].endswith("不超过200字。尤其要记住：湖")
    talk.session.start_over(SYSTEM)
    for text in ("湖の水はなぜ凍るのですか" * 20, "いつですか", "どこですか"):
        talk.say(text, ["寒いから。".encode()])
    talk.compact(b"Cold")
    assert "in our language" in talk.contents()[-2]


# --- by itself ----------------------------------------------------------------------------------------------


@pytest.fixture
def auto(talk: Talk) -> Talk:
    talk.session.overflow = "compact"
    return talk


def fill(talk: Talk) -> None:
    """So many turns that the next question is beyond four fifths of the window, with room for all of them."""
    talk.count(*range(7))
    prompt = talk.session.prompt_for(question(7))
    assert N_CTX * 0.8 < len(prompt.ids) <= N_CTX * 7 // 8
    assert not talk.session.left_out


def test_a_full_window_is_made_room_in(auto: Talk) -> None:
    fill(auto)
    n_before = len(auto.session.seen().ids)  # type: ignore[union-attr]
    events = auto.say(question(7), [SUMMARY.encode()], [b"7."])
    told = [event for event in events if isinstance(event, (Compacting, Compacted, LeftOut, TextPiece, Answer))]
    begun, done, piece, answer = told
    assert begun == Compacting(5, n_before, N_CTX)
    assert isinstance(done, Compacted)
    assert (done.n_turns, done.n_unread, done.n_before) == (5, 0, n_before)
    assert piece == TextPiece("7."), "the summary is not the answer"
    assert isinstance(answer, Answer)
    request = auto.contents()[-4]
    assert auto.contents()[-4:] == [request, SUMMARY, question(7), "7."]
    assert auto.engine.prompts[-1].startswith(chatml((request, SUMMARY), turn(5), turn(6)))
    assert auto.stored() == auto.session.conversation
    n_requests = len(auto.engine.requests)
    auto.count(8, 9)
    assert len(auto.engine.requests) == n_requests + 2, "there is room now"


def test_ctrl_c_while_summing_up_leaves_the_question_for_retry(auto: Talk) -> None:
    fill(auto)
    before = auto.session.conversation
    cancel = threading.Event()
    *_, answer = auto.say(question(7), [b"They", cancel.set, b" count"], [b"never"], cancel=cancel)
    assert isinstance(answer, Answer)
    assert (answer.content, answer.finish_reason) == ("", "interrupted")
    assert auto.session.conversation == auto.stored() == before
    assert auto.session.unanswered == Message("user", question(7))
    auto.engine.answers.extend([[SUMMARY.encode()], [b"7."]])
    events = list(auto.session.retry(threading.Event()))
    assert any(isinstance(event, Compacted) for event in events)
    assert auto.contents()[-3:] == [SUMMARY, question(7), "7."]
    assert auto.stored() == auto.session.conversation


@pytest.mark.parametrize("answer", [[b""], [b"They", EngineFailed("out of memory")]])
def test_a_failed_summary_costs_no_answer(auto: Talk, answer: list[Step]) -> None:
    fill(auto)
    events = auto.say("y" * 590, answer, [b"Yes."])
    assert sum(isinstance(event, NotCompacted) for event in events) == 1
    assert sum(isinstance(event, LeftOut) for event in events) == 1, "the oldest turns go instead"
    assert auto.contents()[-2:] == ["y" * 590, "Yes."]
    assert not any(message.n_summarized for message in auto.session.conversation.messages)


def test_it_is_not_done_where_it_would_not_help(auto: Talk) -> None:
    auto.count(0, 1, 2)
    events = auto.say("x" * 2000, [b"Letters."])
    assert not any(isinstance(event, Compacting) for event in events), "what is old is short"
    auto.session.start_over(SYSTEM)
    auto.session.overflow = "drop"
    auto.count(*range(20))
    assert auto.session.left_out


def test_what_the_model_cannot_see_any_more_is_told(auto: Talk) -> None:
    auto.session.overflow = "drop"
    auto.count(*range(12))
    n_gone = len(auto.session.left_out)
    assert n_gone
    *_, done = auto.compact(SUMMARY.encode())
    assert isinstance(done, Compacted)
    assert n_gone <= done.n_unread < done.n_turns == 10
    assert auto.engine.prompts[-1].startswith(chatml(*map(turn, range(done.n_unread, 12)))), "those, and no others"
    assert not auto.session.left_out


@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.integers(0, 30)), max_size=14),
    n_ctx=st.integers(200, 1500),
)
def test_a_prompt_with_summaries_fits_whatever_is_stored(lengths: list[tuple[int, bool, int]], n_ctx: int) -> None:
    messages = [
        Message(role, "x" * length, is_pinned=is_pinned and not n, n_summarized=n if n < 9 and role == "user" else 0)
        for length, is_pinned, n in lengths
        for role in ("user", "assistant")
    ]
    asked = Conversation(SYSTEM, (*messages, Message("user", "now?")))
    tokenizer = FakeTokenizer()
    places = places_shown(asked, ())
    assert len(set(places)) == len(places)
    assert places[-1:] == [len(asked.turns) - 1]
    n_shown = [i for i in places if asked.turns[i][0].n_summarized]
    assert len(n_shown) <= 1
    try:
        found = fit(
            asked, make_window(n_ctx, None), lambda c: ChatML().render(c, tokenizer), frozenset(), can_shift=False
        )
    except LlamachatError:
        return
    assert found.left_out <= set(places)
    if n_shown and n_shown[0] in found.left_out:
        assert all(asked.turns[i][0].is_pinned or i in found.left_out for i in places[:-1]), "a summary goes last"


# --- on a real model ----------------------------------------------------------------------------------------


def test_a_real_model_sums_up_on_top_of_its_cache(demo_model: Path) -> None:
    engine = LlamaEngine(demo_model, EngineOptions(n_ctx=512, n_threads=1))
    try:
        session = Session(engine, ChatML(), SamplingParams(temperature=0.0), max_tokens=8, overflow="compact")
        said = (Message("user", "My name is Ada and I live in Paris. " * 10), Message("assistant", "Nice to meet you!"))
        session.resume(Conversation("You are helpful.", said * 3))
        list(session.send("And you?", threading.Event()))
        told = list(session.send("What do you do all day long? " * 6, threading.Event()))
        begun, prefill = told[:2]
        assert isinstance(begun, Compacting)
        assert isinstance(prefill, Prefill)
        done = next(event for event in told if isinstance(event, Compacted))
        assert prefill.n_total < 80, "the request, never the conversation"
        assert done.n_after < done.n_before < 512
        assert done.n_unread == 0
        (summary,) = (turn[1].content for turn in session.conversation.turns if turn[0].n_summarized)
        assert len(summary) > 10
        assert isinstance(told[-1], Answer)
    finally:
        engine.close()


# --- as people and scripts meet it --------------------------------------------------------------------------


TESTS = Path(__file__).parent
LONG = "Tell me about lakes. " * 20


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """The command that runs `llamachat chat …` with these answers."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS.parent), str(TESTS)]))
    script = tmp_path / "script.json"

    def command(answers: list[list[str | float]], *arguments: str) -> list[object]:
        script.write_text(json.dumps(answers))
        return [sys.executable, "-m", "support.scripted_chat", script, *arguments]

    return command


def test_compact_at_a_terminal(scripted: Scripted) -> None:
    answers: list[list[str | float]] = [
        ["One."],
        ["Two."],
        ["Three."],
        ["They", 2.0, " never"],
        ["They ", "**count**."],
    ]
    with Terminal(scripted(answers), columns=200) as chat:
        chat.wait_for("\n>")
        chat.enter("/compact")
        chat.wait_for("nothing to sum up yet")
        for said in ("One.", "Two.", "Three."):
            chat.enter(LONG)
            chat.wait_for(said)
        chat.enter("/compact")
        chat.wait_for("Summing up 1 turn; 1,3")
        chat.wait_for("\nThey")
        chat.send(CTRL_C)
        chat.wait_for("The summary was interrupted. The conversation stays as it was.")
        chat.wait_until(lambda: chat.cursor_line == ">", "the prompt")
        chat.enter("/compact lakes")
        chat.wait_for("They count.\nSummed up 1 turn in ")
        chat.wait_for("instead of")
        assert re.search(r" in \d\.\d s: 1,1\d\d tokens are in use instead of 1,3\d\d\.", chat.text)
        chat.enter("/context")
        chat.wait_for("are kept for the answer.")
        assert re.search(r"\n   1  summary  Tell me .*\n   2  +4\d\d  Tell .*\n   3  +4\d\d  Tell .*", chat.text)
        assert re.search(r"\n   4  +\d+  \(summary of turns 1 to 1\) They \*\*count\*\*\.\n", chat.text)
        chat.enter("/undo")
        chat.wait_for("Took back 1 turn, from: Summarize")


def test_one_answer_for_a_script_goes_on_from_a_summary(scripted: Scripted, home: Path, run: RunCommand) -> None:
    with History(home / "history.db") as history:
        session = history.start_session(FACTS)
        parent = None
        for _ in range(7):
            parent = answer(history, session, say(history, session, parent, LONG), "Well.")
    command = scripted([[SUMMARY], ["Yes."]], MODEL, "--resume", "-p", "And now? " * 20, "--overflow", "compact")
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, input="", check=True)
    assert done.stdout == "Yes.\n", "the summary is no part of the answer"
    assert "Summing up 5 turns; 3," in done.stderr
    assert re.search(r"Summed up 5 turns in \d\.\d s: 1,1\d\d tokens are in use instead of 3,1\d\d\.\n", done.stderr)
    with History(home / "history.db") as history:
        stored = history.load(session)
    assert [message.content for message in stored.conversation.messages[-3:]] == [SUMMARY, "And now? " * 20, "Yes."]
    assert len(stored.conversation.turns) == 9
    assert stored.facts.options == {"overflow": "compact"}
    shown = run("sessions", "show").stdout
    assert shown.count(LONG.strip()) == 7, "all of it is still there"
    assert "llamachat:\nSummarize our conversation so far" in shown
    assert "## llamachat\n\nSummarize" in run("sessions", "export", "last").stdout
