"""Messages and conversations: frozen values, no I/O.

A conversation is an optional system prompt and then turns: a user message and its answer. The last user message
may still be waiting for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from llamachat.errors import BadConversation

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """Who said what."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """A system prompt, if any, and the messages after it: user and assistant in turn, the user first."""

    system: str | None = None
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        for i, message in enumerate(self.messages):
            expected = "assistant" if i % 2 else "user"
            if message.role != expected:
                raise BadConversation(
                    f"Message {i + 1} is from {message.role}, but it is the {expected}'s turn.",
                    "User and assistant take turns, the user first; a system message may stand before them.",
                )

    @property
    def awaits_answer(self) -> bool:
        """Whether the last word is the user's."""
        return len(self.messages) % 2 == 1

    def with_message(self, role: Role, content: str) -> Conversation:
        """A copy with one more message."""
        return Conversation(self.system, (*self.messages, Message(role, content)))

    def all_messages(self) -> list[dict[str, str]]:
        """The messages with the system prompt first, in the form chat templates and JSON files have."""
        system = [Message("system", self.system)] if self.system is not None else []
        return [{"role": message.role, "content": message.content} for message in (*system, *self.messages)]


def parse_messages(parsed: Any) -> Conversation:
    """Read `[{"role": …, "content": …}, …]`; raise `BadConversation` for anything else."""
    if not isinstance(parsed, Sequence) or isinstance(parsed, str):
        raise BadConversation("The messages are not a list.", 'Write [{"role": "user", "content": "…"}, …].')
    messages = [_parse_message(i, entry) for i, entry in enumerate(parsed)]
    system = None
    if messages and messages[0].role == "system":
        system = messages.pop(0).content
    return Conversation(system, tuple(messages))


def _parse_message(i: int, entry: Any) -> Message:
    match entry:
        case {"role": str(role), "content": str(content)} if role in get_args(Role):
            return Message(role, content)  # type: ignore[arg-type]
    raise BadConversation(
        f"Message {i + 1} has no role and content.", 'Each is {"role": "system"|"user"|"assistant", "content": "…"}.'
    )
