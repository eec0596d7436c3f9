"""A session written into the history as it goes.

What the user said is there before the answer begins, the answer at least once a second and when it ends. Trouble with
the history is told once, and the conversation goes on without it; every message tries again, and what is missing in the
history follows as soon as it can be written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from llamachat.chat.events import Answer
from llamachat.chat.history import History, SessionFacts, StoredSession
from llamachat.chat.history.titles import make_title
from llamachat.chat.message import Conversation, Message
from llamachat.chat.tools.values import ToolStep
from llamachat.engine.sampling import SamplingParams
from llamachat.errors import HistoryFailed, LlamachatError, SessionRemoved, UnknownSession

_WRITE_EVERY_S = 0.5

Describe = Callable[[SamplingParams | None], SessionFacts]


class HistoryRecord:
    """A `Record` in a `History`."""

    def __init__(
        self,
        history: History,
        describe: Describe,
        on_trouble: Callable[[LlamachatError], object],
        on_recovery: Callable[[], object] = lambda: None,
    ) -> None:
        """`describe` tells what answers are made with at the moment, or one that is sampled otherwise.

        `on_trouble` is called when saving begins to fail, `on_recovery` when it works again.
        """
        self.history = history
        self.session_id: int | None = None
        """None until something was said."""
        self.title: str | None = None
        """What a conversation that begins is called, where its first message does not begin with what is asked."""
        self._describe, self._on_trouble, self._on_recovery = describe, on_trouble, on_recovery
        self.is_working = True
        """Whether all that is said is kept: not from trouble with the history to the next message that can be."""
        self._is_removed = False
        """Whether another process removed the session, which is therefore not written anew."""
        self._roots: dict[str, int] = {}
        self._head: int | None = None
        self._without_answer: int | None = None
        """The head if the answer that is being written comes to nothing."""
        self._answer: int | None = None
        self._written_at = 0.0
        self._has_steps = False

    def adopt(self, stored: StoredSession | None) -> None:
        """Go on writing a session that is there already; None: begin a new one with the next message."""
        self.session_id = stored.id if stored else None
        self.is_working, self._is_removed = True, False
        self._head = stored.tip if stored else None
        self._roots = {}
        if stored and stored.system_key is not None and stored.conversation.system is not None:
            self._roots[stored.conversation.system] = stored.system_key

    def begin(self, asked: Conversation, sampling: SamplingParams) -> Conversation:
        """See `Record`."""
        if self._is_removed:
            return asked
        with self._trouble():
            is_new = self.session_id is None
            session = self._begin_session(sampling)
            messages = self._keep(session, asked)
            before = messages[-2].key if len(messages) > 1 else self._root(session, asked.system)
            if self._head is None or not self.is_working:  # what has been said since then is kept by now
                self._head = before
            self._without_answer = messages[-1].key if before == self._head else self._head
            if is_new and (self.title or len(messages) > 1):  # examples are not what it is about
                self.history.set_title(session, make_title(self.title or messages[-1].content))
            if asked.awaits_answer:
                answer = Message("assistant", "")
                self._answer = self.history.add_message(session, messages[-1].key, answer, seed=sampling.seed)
            else:
                self._answer = messages[-1].key
            self._has_steps = bool(messages[-1].steps)
            self._recover()
            self.keep_facts()  # this answer may have sampling of its own
            self._written_at = time.monotonic()
            return replace(asked, messages=tuple(messages))
        return asked

    def catch_up(self, said: Conversation) -> None:
        """The conversation is left: keep now what could not be kept."""
        if self.is_working or self._is_removed or not said.messages:
            return
        with self._trouble():
            session = self._begin_session(None)
            self._head = self._keep(session, said)[-1].key
            self.history.set_head(session, self._head)
            self._recover()

    def _recover(self) -> None:
        if not self.is_working:
            self.is_working = True
            self._on_recovery()

    def _begin_session(self, sampling: SamplingParams | None) -> int:
        facts = self._describe(sampling)
        if self.session_id is None:
            self.session_id = self.history.start_session(facts)
        else:
            self.history.set_facts(self.session_id, facts)
        return self.session_id

    def _keep(self, session: int, asked: Conversation) -> list[Message]:
        """Add what has no key yet; each message follows the one before it."""
        parent = None
        if asked.system is not None and not (asked.messages and asked.messages[0].key):
            parent = self._root(session, asked.system)
        messages = []
        for message in asked.messages:
            is_kept = message.key and (message is not asked.messages[-1] or self._is_unchanged(message))
            key = message.key if is_kept else self._add(session, parent, message)
            messages.append(replace(message, key=key))
            parent = key
        return messages

    def _add(self, session: int, parent: int | None, message: Message) -> int:
        key = self.history.add_message(session, parent, message)
        if message.role == "assistant":  # an example, or it could not be written: no model is still at work on it
            self.history.update_answer(
                key, message.content, reasoning=message.reasoning, finish_reason="stop", steps=message.steps
            )
        return key

    def _is_unchanged(self, message: Message) -> bool:
        """Whether nobody else has gone on with an answer that is to be gone on with, and so written over."""
        return message.role != "assistant" or message.key is None or self.history.message(message.key) == message

    def _root(self, session: int, system: str | None) -> int | None:
        if system is not None and system not in self._roots:
            self._roots[system] = self.history.add_message(session, None, Message("system", system))
        return self._roots[system] if system is not None else None

    def keep_facts(self) -> None:
        """What the next answer would be made with has changed."""
        if self.is_working and self.session_id is not None:
            with self._trouble():
                self.history.set_facts(self.session_id, self._describe(None))

    def write(self, content: str, reasoning: str) -> None:
        """See `Record`."""
        now = time.monotonic()
        if self._answer is not None and now - self._written_at >= _WRITE_EVERY_S:
            with self._trouble():
                self.history.update_answer(self._answer, content, reasoning=reasoning)
            self._written_at = time.monotonic()

    def write_steps(self, steps: tuple[ToolStep, ...]) -> None:
        """See `Record`."""
        self._has_steps = True
        if self._answer is not None:
            with self._trouble():
                self.history.update_answer(self._answer, "", reasoning="", steps=steps)

    def finish(self, answer: Answer) -> int | None:
        """See `Record`."""
        key, self._answer = self._answer, None
        if key is not None:
            with self._trouble():
                self.history.update_answer(
                    key,
                    answer.content,
                    reasoning=answer.reasoning,
                    finish_reason=answer.finish_reason,
                    stats=answer.stats,
                )
                self._head = key
        return key if self.is_working else None  # what the history does not have is added with the next message

    def give_up(self, content: str, reasoning: str) -> int | None:
        """See `Record`."""
        key, self._answer = self._answer, None
        if key is not None and self.session_id is not None:
            with self._trouble():
                self.history.update_answer(key, content, reasoning=reasoning, finish_reason="interrupted")
                is_empty = not (content or reasoning or self._has_steps)
                if is_empty or self._without_answer == self._head:
                    self.history.set_head(self.session_id, self._without_answer)
                else:  # it goes on as one that was cut short
                    self._head = key
        return key if self.is_working else None

    def move(self, conversation: Conversation) -> None:
        """See `Record`."""
        self._head = conversation.messages[-1].key if conversation.messages else None
        if self.is_working and self.session_id is not None:
            with self._trouble():
                if not conversation.messages:
                    self._head = self._root(self.session_id, conversation.system)
                self.history.set_head(self.session_id, self._head)

    def pin(self, message: Message) -> None:
        """See `Record`."""
        if self.is_working and message.key is not None:
            with self._trouble():
                self.history.set_pinned(message.key, message.is_pinned)

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """After a failure nothing more is written until the next message."""
        try:
            yield
        except (HistoryFailed, UnknownSession) as error:
            was_working, self.is_working, self._answer = self.is_working, False, None
            self._is_removed = isinstance(error, UnknownSession)
            if was_working or self._is_removed:
                self._on_trouble(SessionRemoved() if self._is_removed else error)
