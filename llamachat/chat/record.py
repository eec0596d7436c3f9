"""Who keeps what is said in a session: the protocol, and the one that keeps nothing."""

from __future__ import annotations

from typing import Protocol

from llamachat.chat.events import Answer
from llamachat.chat.message import Conversation, Message
from llamachat.chat.tools.values import ToolStep
from llamachat.engine.sampling import SamplingParams


class Record(Protocol):
    """Who keeps what is said, as it is said."""

    def begin(self, asked: Conversation, sampling: SamplingParams) -> Conversation:
        """Keep what `asked` has that is not kept yet, and a place for its answer; return it with the keys."""

    def write(self, content: str, reasoning: str) -> None:
        """The answer has come so far. Called often; how often to act on it is the record's business."""

    def write_steps(self, steps: tuple[ToolStep, ...]) -> None:
        """Tools are called before the answer goes on, or gave results; kept at once."""

    def finish(self, answer: Answer) -> int | None:
        """Keep the whole answer; return its key."""

    def give_up(self, content: str, reasoning: str) -> int | None:
        """The answer failed, never began, or nobody listened any more. Keep what there was of it; return its key.

        With what was asked it is the last word, unless it was asked in place of something else.
        """

    def move(self, conversation: Conversation) -> None:
        """The conversation has gone back, or to another branch."""

    def pin(self, message: Message) -> None:
        """A message was pinned, or no longer is."""


class NoRecord:
    """Keeps nothing."""

    def begin(self, asked: Conversation, sampling: SamplingParams) -> Conversation:  # noqa: ARG002
        """See `Record`."""
        return asked

    def write(self, content: str, reasoning: str) -> None:
        """See `Record`."""

    def write_steps(self, steps: tuple[ToolStep, ...]) -> None:
        """See `Record`."""

    def finish(self, answer: Answer) -> int | None:  # noqa: ARG002
        """See `Record`."""
        return None

    def give_up(self, content: str, reasoning: str) -> int | None:  # noqa: ARG002
        """See `Record`."""
        return None

    def move(self, conversation: Conversation) -> None:
        """See `Record`."""

    def pin(self, message: Message) -> None:
        """See `Record`."""
