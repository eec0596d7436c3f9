"""A summary is asked for and takes the place of older turns: when the user says so, or as the window gets full."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from llamachat.chat.compaction import (
    FULL_SHARE,
    Compacted,
    Compacting,
    NotCompacted,
    n_in_turns,
    n_to_sum_up,
    summary_request,
)
from llamachat.chat.events import Answer, AnswerEvents, LeftOut, ReasoningPiece, SessionEvent, TextPiece, Thought
from llamachat.chat.message import Conversation, Message
from llamachat.chat.window import Fit, make_window, places_shown, shown
from llamachat.errors import LlamachatError

if TYPE_CHECKING:
    from llamachat.chat.session import Session

_WORTH_IT = 2
"""Older turns are summed up by themselves if they are so many times as long as a summary may get."""


def sum_up(session: Session, n_turns: int, cancel: threading.Event, focus: str = "") -> AnswerEvents:
    """Have the first `n_turns` turns summed up. See `Session.compact`."""
    started = time.monotonic()
    n_ctx = session.engine.info.n_ctx
    conversation, left_out = session.conversation, session.left_out
    before = session.render(shown(conversation, left_out))
    yield Compacting(n_turns, len(before.ids), n_ctx)
    answer = None
    with session.aside(make_window(n_ctx, None).n_reserved) as aside:
        request = summary_request(conversation, aside.max_tokens or 0, focus)
        for event in aside.send(request, cancel):
            if isinstance(event, Answer):
                answer = replace(event, content=event.content.strip())
            elif not isinstance(event, LeftOut):  # which is told when it is known what came of it
                yield event
    if answer is None or answer.finish_reason == "interrupted":
        yield NotCompacted("The summary was interrupted.")
        return
    question = Message("user", request, n_summarized=n_turns)
    asked = replace(conversation, messages=(*conversation.messages, question))
    still_out = frozenset(i for i in left_out if i >= n_turns)
    after = session.render(shown(asked.with_message("assistant", answer.content), still_out))
    if not answer.content:
        yield NotCompacted("The summary is empty.")
    elif after.size >= before.size:
        numbers = f": {len(after.ids):,} tokens for {len(before.ids):,}" if before.is_counted else ""
        yield NotCompacted(f"The summary is longer than what it sums up{numbers}.")
    else:
        unread = [i for i in places_shown(conversation, ()) if i < n_turns and i in aside.left_out]
        session.keep(asked, answer, aside.sampling, still_out)
        elapsed_s, is_cut = time.monotonic() - started, answer.finish_reason == "length"
        yield Compacted(n_turns, len(unread), len(before.ids), len(after.ids), elapsed_s, is_cut)


def n_to_make_room(session: Session, asked: Conversation, fitted: Fit) -> int:
    """How many turns to sum up before a question that goes on from the conversation, as the window gets full."""
    n_ctx = session.engine.info.n_ctx
    is_full = fitted.n_turns or len(fitted.prompt.ids) > FULL_SHARE * n_ctx
    goes_on = asked.turns[:-1] == session.conversation.turns and not asked.messages[-1].n_summarized
    if session.overflow != "compact" or not (is_full and goes_on and session.conversation.messages):
        return 0
    n_turns = n_to_sum_up(session.conversation, n_ctx, session.render)
    least = _WORTH_IT * make_window(n_ctx, None).n_reserved
    return n_turns if n_turns and n_in_turns(asked, n_turns, session.left_out, session.render) >= least else 0


def make_room(
    session: Session, asked: Conversation, n_turns: int, cancel: threading.Event
) -> Generator[SessionEvent, None, Conversation]:
    """Sum up the first turns; return what is asked then. If that fails it is asked as it was."""
    try:
        for event in sum_up(session, n_turns, cancel):
            if not isinstance(event, (TextPiece, ReasoningPiece, Thought)):
                yield event
    except LlamachatError as error:
        yield NotCompacted(str(error))
    if session.conversation.turns == asked.turns[:-1]:
        return asked
    question = replace(asked.messages[-1], key=None)  # where it was kept, if it was, it follows something else
    return replace(session.conversation, messages=(*session.conversation.messages, question))
