"""What the history hands out: frozen values. Times are ISO 8601 in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llamachat.chat.message import Conversation, Message
from llamachat.engine.base import FinishReason, GenerationStats
from llamachat.engine.sampling import SAMPLING_NAMES, SamplingParams

FOLLOWS: Mapping[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
}
"""Who may speak after whom; None is the beginning."""


@dataclass(frozen=True)
class SessionFacts:
    """What answers are made with; a session goes on exactly with these."""

    model: str
    """The label, as `list` shows it."""
    model_sha256: str | None
    template: str
    sampling: Mapping[str, Any]
    """As JSON has it: names of `SamplingParams` and their values."""
    n_ctx: int
    adapters: tuple[tuple[str, float], ...] = ()
    """Path and scale of each."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """As JSON has it: what else differs from the defaults, by the names of chat's options."""
    server: str | None = None
    """The address of the server that runs the model; None: it is one of this machine."""

    def sampling_params(self) -> SamplingParams:
        """What `sampling` says, as far as it is known here; the rest as by default, or left to the server."""
        known = {name: value for name, value in self.sampling.items() if name in SAMPLING_NAMES}
        left_open = frozenset(SAMPLING_NAMES) - known.keys() if self.server else frozenset()
        return SamplingParams(**known, left_open=left_open)


@dataclass(frozen=True)
class StoredMessage:
    """A message and how it came about. `finish_reason`, `facts`, `seed` and `stats` are of answers.

    An answer without a finish reason is being written, or was when the program was killed.
    """

    key: int
    parent: int | None
    message: Message
    created: str
    finish_reason: FinishReason | None = None
    facts: SessionFacts | None = None
    seed: int | None = None
    stats: GenerationStats | None = None

    @property
    def is_no_answer(self) -> bool:
        """Whether this answer broke off before its first word, the first thought, and any call of a tool."""
        return self.is_cut_short and not (self.message.content or self.message.reasoning or self.message.steps)

    @property
    def is_cut_short(self) -> bool:
        """Whether this answer ended before the model ended it."""
        return self.message.role == "assistant" and self.finish_reason in (None, "interrupted")


@dataclass(frozen=True)
class SessionSummary:
    """One line of a list of sessions."""

    id: int
    title: str
    created: str
    updated: str
    model: str
    n_messages: int
    """Of users and models, in all branches."""


@dataclass(frozen=True)
class Hit:
    """A message in which words were found. `excerpt` is one line around the first of them."""

    session: int
    title: str
    key: int
    role: str
    created: str
    excerpt: str


@dataclass(frozen=True)
class SessionTree:
    """A session with all its branches: messages in the order in which they were written, parents before children."""

    id: int
    title: str
    created: str
    updated: str
    facts: SessionFacts
    head: int | None
    messages: tuple[StoredMessage, ...]

    def path(self, key: int | None) -> list[StoredMessage]:
        """The messages from the root to `key`; none for None."""
        by_key = {stored.key: stored for stored in self.messages}
        path = []
        while key is not None and key in by_key:  # ends: a parent is always older than its child
            path.append(by_key[key])
            key = by_key[key].parent
        return path[::-1]

    def leaves(self) -> list[StoredMessage]:
        """The last message of every branch, except for a system prompt to which nobody said anything."""
        parents = {stored.parent for stored in self.messages}
        return [stored for stored in self.messages if stored.key not in parents and stored.message.role != "system"]

    def at_head(self) -> StoredSession:
        """The conversation as it stands."""
        path = self.path(self.head)
        system = path.pop(0) if path and path[0].message.role == "system" else None
        unanswered = None
        if path and path[-1].is_no_answer:
            path.pop()
        if path and path[-1].message.role == "user":
            unanswered = path.pop().message
        conversation = Conversation(
            system.message.content if system else None, tuple(stored.message for stored in path)
        )
        return StoredSession(self, conversation, system.key if system else None, unanswered, path[-1] if path else None)


@dataclass(frozen=True)
class StoredSession:
    """A conversation to go on with.

    `unanswered` is the user's last message if nothing was answered; it is not in the conversation. `last` is the last
    answer in the conversation, as it is stored.
    """

    tree: SessionTree
    conversation: Conversation
    system_key: int | None
    unanswered: Message | None
    last: StoredMessage | None

    @property
    def id(self) -> int:
        """What the session is called by."""
        return self.tree.id

    @property
    def title(self) -> str:
        """One line, for people."""
        return self.tree.title

    @property
    def created(self) -> str:
        """When it began."""
        return self.tree.created

    @property
    def updated(self) -> str:
        """When something was last said or undone."""
        return self.tree.updated

    @property
    def facts(self) -> SessionFacts:
        """What the next answer is to be made with."""
        return self.tree.facts

    @property
    def tip(self) -> int | None:
        """The parent of the next message."""
        return self.last.key if self.last else self.system_key

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the last answer ended; one that was cut short counts as interrupted. None: there is no answer."""
        return (self.last.finish_reason or "interrupted") if self.last else None
