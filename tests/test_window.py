"""Which turns stay in the context window, what is said about the others, and what the KV cache is spared."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.chat.events import Answer, LeftOut
from llamachat.chat.message import Conversation, Message
from llamachat.chat.prompt import Prompt
from llamachat.chat.session import Overflow, Session
from llamachat.chat.templates import ChatML, Llama2, PromptTemplate
from llamachat.chat.window import Window, fit, make_window
from llamachat.engine.base import EngineOptions
from llamachat.engine.llamacpp import LlamaEngine
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import PromptTooLong, WindowFull
from support.fake_engine import FakeEngine, FakeTokenizer

TOKENIZER = FakeTokenizer()
GREEDY = SamplingParams(temperature=0.0)


def render(conversation: Conversation) -> Prompt:
    return ChatML().render(conversation, TOKENIZER)


def talk(*lengths: int, pinned: frozenset[int] = frozenset(), system: str | None = "Be brief.") -> Conversation:
    """Turns of so many characters a message, and an open one of ten."""
    messages = [
        Message(role, chr(ord("a") + i % 26) * length, is_pinned=role == "user" and i in pinned)
        for i, length in enumerate(lengths)
        for role in ("user", "assistant")
    ]
    return Conversation(system, (*messages, Message("user", "what now? ")))


@given(
    lengths=st.lists(st.integers(0, 120), max_size=12),
    pinned=st.frozensets(st.integers(0, 11)),
    before=st.frozensets(st.integers(0, 11)),
    n_ctx=st.integers(100, 1500),
    can_shift=st.booleans(),
)
def test_what_fits(
    lengths: list[int], pinned: frozenset[int], before: frozenset[int], n_ctx: int, can_shift: bool
) -> None:
    conversation = talk(*lengths, pinned=pinned)
    before = frozenset(i for i in before if i < len(lengths) and i not in pinned)
    window = make_window(n_ctx, None)
    closed = range(len(lengths))
    must_stay = conversation.with_turns(
        turn for i, turn in enumerate(conversation.turns) if i in pinned or i == len(lengths)
    )
    n_must_stay = len(render(must_stay).ids)
    if n_must_stay > window.n_prompt_max:
        with pytest.raises(PromptTooLong) as refused:
            fit(conversation, window, render, before, can_shift=can_shift)
        assert refused.value.n_prompt == n_must_stay
        return
    found = fit(conversation, window, render, before, can_shift=can_shift)
    assert len(found.prompt.ids) <= window.n_prompt_max
    rest = conversation.with_turns(turn for i, turn in enumerate(conversation.turns) if i not in found.left_out)
    assert found.prompt == render(rest), "the system prompt, whole turns, and nothing else"
    assert before <= found.left_out
    assert not found.left_out & pinned
    gone = found.left_out - before
    assert found.n_turns == len(gone)
    stayed = [i for i in closed if i not in found.left_out and i not in pinned]
    assert not gone or not stayed or max(gone) < min(i for i in stayed if i not in before), "the oldest go first"
    earlier = conversation.with_turns(turn for i, turn in enumerate(conversation.turns) if i not in before)
    assert found.n_tokens == len(render(earlier).ids) - len(found.prompt.ids)
    if found.cut:
        ids = render(earlier).ids
        assert ids[: found.cut.start] + ids[found.cut.stop :] == found.prompt.ids


def test_no_more_goes_than_needed_where_the_cache_can_be_shifted() -> None:
    conversation = talk(*[40] * 20)
    window = Window(1500, 100)
    shifted = fit(conversation, window, render, frozenset(), can_shift=True)
    evaluated = fit(conversation, window, render, frozenset(), can_shift=False)
    size = len(render(talk(40, 40)).ids) - len(render(talk(40)).ids)
    assert window.n_prompt_max - size < len(shifted.prompt.ids) <= window.n_prompt_max
    assert 1500 * 3 // 4 - size < len(evaluated.prompt.ids) <= 1500 * 3 // 4
    assert shifted.cut is not None
    assert evaluated.cut is None


def test_a_system_prompt_inside_the_first_turn_moves_to_the_first_that_remains() -> None:
    session, _ = open_session(2000, template=Llama2(), n_answers=40)
    left_out: frozenset[int] = frozenset()
    for i in range(40):
        list(session.send(f"Question {i} " + "x" * 60, threading.Event()))
        engine = session.engine
        assert isinstance(engine, FakeEngine)
        remaining = [n for n in range(i + 1) if n not in session.left_out]
        shown = engine.prompts[-1]
        assert shown.startswith(f"<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nQuestion {remaining[0]} "), shown[:80]
        assert shown.count("<<SYS>>") == 1
        assert left_out <= session.left_out
        left_out = session.left_out
    assert len(left_out) > 20


def open_session(
    n_ctx: int, *, template: PromptTemplate | None = None, overflow: Overflow = "drop", n_answers: int = 9
) -> tuple[Session, FakeEngine]:
    engine = FakeEngine(*[[b"Yes. "]] * n_answers, n_ctx=n_ctx)
    return Session(engine, template or ChatML(), GREEDY, system="Be brief.", overflow=overflow), engine


def test_the_user_is_told_once_with_numbers_and_nothing_is_forgotten() -> None:
    session, engine = open_session(600)
    told = [
        [event for event in session.send(f"{i}" + "x" * 99, threading.Event()) if isinstance(event, LeftOut)]
        for i in range(6)
    ]
    assert [len(events) for events in told].count(1) >= 1
    (first,) = next(events for events in told if events)
    assert (first.n_turns, first.n_ctx, first.is_shifted) == (2, 600, False)
    assert first.n_tokens == 2 * (len(render(talk(7, 8)).ids) - len(render(talk(7)).ids) + 100 + 5 - 16)
    assert len(session.conversation.turns) == 6, "left out of the prompt, not of the conversation"
    assert all(len(request.prompt_ids) <= 600 - 75 for request in engine.requests)


def test_whether_the_rest_was_read_again_is_told_with_the_answer() -> None:
    session, _ = open_session(600)
    for i in range(6):
        events = list(session.send(f"{i}" + "x" * 99, threading.Event()))
        assert isinstance(events[-1], Answer)
        assert events[-1].is_rest_read_again == any(isinstance(event, LeftOut) for event in events)


def test_a_shift_that_found_another_cache_is_no_shift() -> None:
    session, engine = open_session(600, template=Llama2())
    engine.can_shift = True  # but it has nothing in its cache
    session.start_over(None)
    told = []
    for i in range(6):
        *events, answer = session.send(f"{i}" + "x" * 99, threading.Event())
        assert isinstance(answer, Answer)
        told += [(event.is_shifted, answer.is_rest_read_again) for event in events if isinstance(event, LeftOut)]
    assert told
    assert set(told) == {(True, True)}


def test_how_long_the_rest_took_is_said(run: Any, tmp_path: Path) -> None:
    turns = [{"user": f"Is {i} even? " + "Think. " * 20, "assistant": "No."} for i in range(9)]
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join(map(json.dumps, turns)), encoding="utf-8")
    done = run("chat", "-p", "Hi", "--examples", path, "--ctx", 256, "--max-tokens", 2, "--no-save")
    assert "Left out the " in done.stderr
    assert re.search(r"\(The rest took \d+\.\d s to read: 2\d\d tokens\)\n", done.stderr)


def test_pinned_turns_stay() -> None:
    session, engine = open_session(600)
    for i in range(6):
        list(session.send(f"{i}" + "x" * 99, threading.Event()))
        if i == 0:
            session.pin(0, is_pinned=True)
    assert "user\n0xx" in engine.prompts[-1]
    assert "user\n1xx" not in engine.prompts[-1]
    session.pin(0, is_pinned=False)
    list(session.send("z" * 99, threading.Event()))
    list(session.send("z" * 99, threading.Event()))
    assert "user\n0xx" not in engine.prompts[-1]
    session.pin(1, is_pinned=True)
    assert "user\n1xx" in session.prompt_for("and now?").text, "a pin brings a turn back"


def test_a_window_that_is_not_to_lose_anything() -> None:
    session, engine = open_session(600, overflow="stop")
    for i in range(4):
        list(session.send(f"{i}" + "x" * 99, threading.Event()))
    before = session.conversation
    with pytest.raises(WindowFull, match=r"has [56]\d\d tokens now.* holds 600, of which 75 are kept"):
        list(session.send("3" + "x" * 99, threading.Event()))
    assert session.conversation == before
    assert len(engine.requests) == 4
    session.undo()
    list(session.send("short", threading.Event()))
    assert len(session.conversation.turns) == 4


def test_a_message_that_cannot_fit_is_refused_whole() -> None:
    session, engine = open_session(600)
    list(session.send("Hi", threading.Event()))
    before = session.conversation
    with pytest.raises(PromptTooLong) as caught:
        list(session.send("x" * 600, threading.Event()))
    assert caught.value.n_prompt == len(render(Conversation("Be brief.", (Message("user", "x" * 600),))).ids)
    n_needed = caught.value.n_needed
    assert f"at least {n_needed:,} tokens with --ctx" in caught.value.next_step
    assert make_window(n_needed, None).n_prompt_max >= caught.value.n_prompt, "what is advised does help"
    assert session.conversation == before
    assert len(engine.requests) == 1


@given(
    n_prompt=st.integers(1, 10**6),
    n_ctx=st.integers(256, 10**6),
    max_tokens=st.none() | st.integers(1, 9999),
    thinks=st.booleans(),
)
def test_the_window_that_is_advised_is_large_enough(
    n_prompt: int, n_ctx: int, max_tokens: int | None, thinks: bool
) -> None:
    advised = make_window(n_ctx, max_tokens, thinks=thinks).n_ctx_for(n_prompt)
    assert n_prompt <= make_window(advised, max_tokens, thinks=thinks).n_prompt_max
    assert advised <= n_prompt + (2048 if thinks else 512)


def test_a_question_that_is_too_long_tells_what_a_larger_window_costs(run: Any) -> None:
    done = run("chat", "-p", "hello there friend " * 330, "--ctx", 256, "--no-save")
    assert done.returncode == 1
    assert "The prompt has 1,0" in done.stderr
    assert "--ctx 2048, which takes 41.3 MB more memory." in done.stderr


def test_room_for_the_answer() -> None:
    assert make_window(8192, None) == Window(8192, 512)
    assert make_window(8192, 100) == Window(8192, 100)
    assert make_window(8192, 4000) == Window(8192, 512)
    assert make_window(1024, None) == Window(1024, 128)
    thinks = [
        make_window(n_ctx, n, thinks=True) for n_ctx, n in ((32768, None), (4096, None), (4096, 600), (4096, 100))
    ]
    assert [window.n_reserved for window in thinks] == [2048, 1024, 600, 100]
    assert all(window.n_filled_again <= window.n_prompt_max - window.n_ctx // 8 for window in thinks), "not every turn"


# --- on a real model ----------------------------------------------------------------------------------------


def test_the_cache_is_shifted_instead_of_evaluated_again(demo_model: Path) -> None:
    engine = LlamaEngine(demo_model, EngineOptions(n_ctx=256, n_threads=2))
    try:
        assert engine.can_shift
        session = Session(engine, ChatML(), GREEDY, system="You answer in one word.", max_tokens=4)
        n_shifted = 0
        for i in range(11):
            events = list(session.send(f"Is {i} an even number? Think of what it means to be even.", threading.Event()))
            answer = events[-1]
            assert isinstance(answer, Answer)
            told = [event for event in events if isinstance(event, LeftOut)]
            n_shifted += sum(event.is_shifted for event in told)
            assert not answer.is_rest_read_again
            assert answer.stats.n_evaluated < 80, "the question, never the conversation"
        assert n_shifted >= 2
        assert answer.content.strip()
    finally:
        engine.close()
