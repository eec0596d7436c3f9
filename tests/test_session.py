"""A conversation over a scripted engine: what is remembered, and what is not."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest

from llamachat.chat.events import Answer, SessionEvent, TextPiece
from llamachat.chat.message import Message
from llamachat.chat.session import Session
from llamachat.chat.templates import ChatML, CodeLlama70b, NoTemplate, PromptTemplate
from llamachat.engine.base import Engine, Prefill
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import EngineFailed, PromptTooLong
from support.fake_engine import FakeEngine, FakeTokenizer

SAMPLING = SamplingParams(temperature=0.0, seed=3)


class StoppingChatML(ChatML):
    """A template with a stop string of its own."""

    stop = ("\nUser:",)


def open_session(
    engine: Engine,
    *,
    template: PromptTemplate | None = None,
    system: str | None = None,
    stop: tuple[str, ...] = (),
    max_tokens: int | None = None,
) -> Session:
    return Session(engine, template or ChatML(), SAMPLING, system=system, max_tokens=max_tokens, stop=stop)


def say(session: Session, text: str, cancel: threading.Event | None = None) -> tuple[list[str], Answer]:
    """The pieces of the answer, and the answer."""
    events = list(session.send(text, cancel or threading.Event()))
    assert isinstance(events[0], Prefill)
    answer = events[-1]
    assert isinstance(answer, Answer)
    pieces = [event.text for event in events if isinstance(event, TextPiece)]
    assert "".join(pieces) == answer.content
    assert all(pieces)
    return pieces, answer


def contents(session: Session) -> list[str]:
    messages = session.conversation.messages
    assert all(a.role != b.role for a, b in pairwise(messages)), "never the same role twice in a row"
    return [message.content for message in messages]


# --- memory -------------------------------------------------------------------------------------------------


def test_every_turn_remembers_the_ones_before() -> None:
    engine = FakeEngine([b"Hel", b"lo"], [b"Fine"], [b"Bye"])
    session = open_session(engine, system="Be kind.")
    pieces, answer = say(session, "Hi")
    assert pieces == ["Hel", "lo"]
    assert (answer.content, answer.finish_reason, answer.stats.n_generated) == ("Hello", "stop", 2)
    say(session, "How are you?")
    say(session, "Bye")
    assert contents(session) == ["Hi", "Hello", "How are you?", "Fine", "Bye", "Bye"]
    first, second, third = engine.prompts
    assert first == ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert second == first + "Hello<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    assert third.startswith(second + "Fine<|im_end|>\n")


def test_what_the_engine_is_asked_for() -> None:
    engine = FakeEngine([b"a", b"b", b"c"])
    session = open_session(engine, max_tokens=2)
    prompt = session.prompt_for("Hi")
    _, answer = say(session, "Hi")
    assert engine.requests[0].prompt_ids == prompt.ids
    assert engine.requests[0].sampling == SAMPLING
    assert (answer.content, answer.finish_reason) == ("ab", "length")
    assert contents(session) == ["Hi", "ab"]


def test_asking_what_the_prompt_would_be_says_nothing() -> None:
    engine = FakeEngine()
    session = open_session(engine)
    assert session.prompt_for("Hi").text.startswith("<|im_start|>user\nHi<|im_end|>")
    assert not contents(session)
    assert not engine.requests


def test_starting_over_forgets_all_but_the_new_system_prompt() -> None:
    engine = FakeEngine([b"1"], [b"2"], [b"3"])
    session = open_session(engine, system="Old.")
    say(session, "a")
    session.start_over("New.")
    assert (session.conversation.system, contents(session)) == ("New.", [])
    say(session, "b")
    session.start_over(None)
    say(session, "c")
    assert engine.prompts[1] == engine.prompts[0].replace("Old.", "New.").replace("user\na", "user\nb")
    assert engine.prompts[2] == "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"


def test_a_base_model_continues_the_text() -> None:
    engine = FakeEngine([b" a time"], [b" end"])
    session = open_session(engine, template=NoTemplate())
    say(session, "Once upon")
    say(session, " the")
    assert engine.prompts == ["Once upon", "Once upon a time the"]


def test_an_empty_answer_is_an_answer() -> None:
    session = open_session(FakeEngine([]))
    _, answer = say(session, "Hi")
    assert (answer.content, answer.finish_reason) == ("", "stop")
    assert contents(session) == ["Hi", ""]


def test_a_sentencepiece_answer_loses_its_first_space() -> None:
    session = open_session(FakeEngine([b" Hello", b" you"], tokenizer=FakeTokenizer(adds_space_prefix=True)))
    pieces, _ = say(session, "Hi")
    assert pieces == ["Hello", " you"]


def test_characters_in_several_tokens() -> None:
    session = open_session(FakeEngine([b"\xe4\xbd", b"\xa0", b"\xe5", b"\xa5\xbd", b"\xf0\x9f"]))
    pieces, answer = say(session, "Hi")
    assert pieces == ["你", "好", "\ufffd"]
    assert contents(session) == ["Hi", answer.content]


# --- interruption -------------------------------------------------------------------------------------------


def test_an_interrupted_answer_is_kept() -> None:
    cancel = threading.Event()
    engine = FakeEngine([b"Once", b" upon", cancel.set, b" a time"], [b"ok"])
    session = open_session(engine)
    _, answer = say(session, "Tell", cancel)
    assert (answer.content, answer.finish_reason) == ("Once upon", "interrupted")
    assert contents(session) == ["Tell", "Once upon"]
    say(session, "Go on")
    assert contents(session) == ["Tell", "Once upon", "Go on", "ok"]
    assert "Once upon<|im_end|>" in engine.prompts[1]


@pytest.mark.parametrize("before", [[], [b""]], ids=["no token", "a token without text"])
def test_an_interrupted_turn_without_an_answer_is_dropped(before: list[bytes]) -> None:
    cancel = threading.Event()
    engine = FakeEngine([b"fine"], [*before, cancel.set, b"late"], [b"again"])
    session = open_session(engine)
    say(session, "one")
    _, answer = say(session, "two", cancel)
    assert (answer.content, answer.finish_reason) == ("", "interrupted")
    assert contents(session) == ["one", "fine"]
    say(session, "three")
    assert contents(session) == ["one", "fine", "three", "again"]
    assert "two" not in engine.prompts[2]


@pytest.mark.parametrize("edited", [None, "uno"])
def test_a_question_asked_anew_without_an_answer_still_takes_the_old_one_s_place(edited: str | None) -> None:
    cancel = threading.Event()
    session = open_session(FakeEngine([b"fine"], [cancel.set, b"late"], [b"again"], [b"on"]))
    say(session, "one")
    list(session.edit(edited, cancel) if edited else session.retry(cancel))
    assert contents(session) == ["one", "fine"]
    list(session.retry(threading.Event()))
    assert contents(session) == [edited or "one", "again"]
    say(session, "two")
    assert contents(session) == [edited or "one", "again", "two", "on"]


def test_what_was_held_back_is_kept_on_interruption() -> None:
    cancel = threading.Event()
    session = open_session(FakeEngine([b"a</", cancel.set, b"s>"]), stop=("</s>",))
    assert say(session, "Hi", cancel)[1].content == "a</"
    assert contents(session) == ["Hi", "a</"]


def test_leaving_in_the_middle_leaves_the_conversation_as_it_was() -> None:
    session = open_session(FakeEngine([b"a", b"b"], [b"c"]))
    events = session.send("one", threading.Event())
    while not isinstance(next(events), TextPiece):
        pass
    events.close()  # type: ignore[attr-defined]
    assert not contents(session)
    say(session, "two")
    assert contents(session) == ["two", "c"]


# --- errors -------------------------------------------------------------------------------------------------


def test_an_engine_error_leaves_the_conversation_as_it_was() -> None:
    engine = FakeEngine([b"fine"], [EngineFailed("out of memory")], [b"again"])
    session = open_session(engine, system="S")
    say(session, "one")
    conversation = session.conversation
    with pytest.raises(EngineFailed, match="out of memory"):
        list(session.send("two", threading.Event()))
    assert session.conversation == conversation
    say(session, "three")
    assert contents(session) == ["one", "fine", "three", "again"]


def test_an_engine_error_in_the_middle_of_an_answer_keeps_what_there_is() -> None:
    engine = FakeEngine([b"half an ans<", EngineFailed("gone")], [b"wer", EngineFailed("gone")], [b"."], [b"ok"])
    session = open_session(engine, stop=("<end>",))
    with pytest.raises(EngineFailed):
        list(session.send("one", threading.Event()))
    assert (contents(session), session.unanswered) == (["one", "half an ans<"], None)
    with pytest.raises(EngineFailed):
        list(session.go_on(threading.Event()))
    list(session.go_on(threading.Event()))
    assert contents(session) == ["one", "half an ans<wer."]
    say(session, "two")
    assert contents(session) == ["one", "half an ans<wer.", "two", "ok"]


def test_an_engine_error_in_the_middle_of_another_answer_keeps_the_first_one() -> None:
    engine = FakeEngine([b"fine"], [b"bett", EngineFailed("gone")], [b"better"])
    session = open_session(engine)
    say(session, "one")
    with pytest.raises(EngineFailed):
        list(session.retry(threading.Event()))
    assert contents(session) == ["one", "fine"]
    list(session.retry(threading.Event()))
    assert contents(session) == ["one", "better"]


def test_a_prompt_that_is_too_long_leaves_the_conversation_as_it_was() -> None:
    engine = FakeEngine([b"fine"], [b"again"], n_ctx=200)
    session = open_session(engine)
    say(session, "one")
    with pytest.raises(PromptTooLong) as caught:
        list(session.send("x" * 200, threading.Event()))
    assert caught.value.n_ctx == 200
    assert caught.value.n_prompt > 200
    assert session.conversation.messages == (Message("user", "one"), Message("assistant", "fine"))
    assert len(engine.requests) == 1
    say(session, "two")
    assert contents(session) == ["one", "fine", "two", "again"]


# --- stop strings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens",
    [[b"Yes.\nUser: no", b" never"], [b"Yes", b".", b"\n", b"U", b"se", b"r", b":", b" never"]],
    ids=["in one token", "over many"],
)
@pytest.mark.parametrize("own", [True, False], ids=["the template's", "the user's"])
def test_a_stop_string_ends_the_answer(tokens: list[bytes], own: bool) -> None:
    engine = FakeEngine(tokens, [b"ok"])
    session = open_session(engine, template=StoppingChatML()) if own else open_session(engine, stop=("\nUser:",))
    cancel = threading.Event()
    _, answer = say(session, "Hi", cancel)
    assert (answer.content, answer.finish_reason) == ("Yes.", "stop")
    assert not cancel.is_set(), "the user did not cancel"
    assert engine.n_ended == 1, "the engine came to its end"
    assert answer.stats.n_generated < len(tokens), "and did not go on"
    assert contents(session) == ["Hi", "Yes."]
    say(session, "More")
    assert contents(session) == ["Hi", "Yes.", "More", "ok"]


@pytest.mark.parametrize(
    ("rest", "content", "shown"),
    [
        ([b"er: no"], "Yes.", []),
        ([b"ed it."], "Yes.\nUsed it.", ["ed it."]),
        ([b"e", b"r"], "Yes.\nUser", ["er"]),
        ([], "Yes.\nUs", []),
    ],
    ids=["it is one", "it is none", "it may still be one", "nothing more"],
)
def test_a_stop_string_that_began_before_an_interruption(rest: list[bytes], content: str, shown: list[str]) -> None:
    cancel = threading.Event()
    session = open_session(FakeEngine([b"Yes.\nUs", cancel.set, b"x"], rest), stop=("\nUser:",))
    say(session, "Hi", cancel)
    assert contents(session) == ["Hi", "Yes.\nUs"]
    events = list(session.go_on(threading.Event()))
    assert [event.text for event in events if isinstance(event, TextPiece)] == shown
    assert isinstance(events[-1], Answer)
    assert events[-1].content == content
    assert contents(session) == ["Hi", content]


def test_a_stop_string_that_is_a_control_token_stops() -> None:
    """Code Llama 70b ends its answers with <step>, which llama.cpp does not count among the tokens that end one."""
    tokenizer = FakeTokenizer({"<s>": 256, "</s>": 257, "<step>": 258})
    engine = FakeEngine([b"done", b"", b" and more"], tokenizer=tokenizer)
    engine.ids = {b"": 258}
    session = Session(engine, CodeLlama70b(), SamplingParams())
    _, answer = say(session, "one")
    assert (answer.content, answer.finish_reason) == ("done", "stop")


def test_a_stop_string_at_the_limit_is_a_stop() -> None:
    session = open_session(FakeEngine([b"a", b"END", b"b"]), stop=("END",), max_tokens=2)
    assert say(session, "Hi")[1].finish_reason == "stop"
    assert contents(session) == ["Hi", "a"]


def test_events_come_in_order() -> None:
    session = open_session(FakeEngine([b"a", b"b"]))
    kinds: list[type[SessionEvent]] = [type(event) for event in session.send("Hi", threading.Event())]
    assert kinds == [Prefill, TextPiece, TextPiece, Answer]
