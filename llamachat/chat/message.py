"""Messages and conversations: frozen values, no I/O.

A conversation is an optional system prompt and then turns: a user message and its answer. The last user message
may still be waiting for one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from llamachat.chat.tools.values import Tool, ToolStep
from llamachat.errors import BadConversation

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """Who said what."""

    role: Role
    content: str
    is_pinned: bool = False
    """Of a user message: it and its answer stay in the context window, however full that gets."""
    reasoning: str = ""
    """Of an answer: what the model thought before it. It is no part of what was said."""
    key: int | None = field(default=None, compare=False)
    """Where the history keeps it."""
    n_summarized: int = 0
    """Of a user message: its answer is a summary, which stands for so many of the conversation's first turns."""
    steps: tuple[ToolStep, ...] = ()
    """Of an answer: the calls of tools that were made before its `content` was written."""


@dataclass(frozen=True)
class Conversation:
    """A system prompt, if any, and the messages after it: user and assistant in turn, the user first."""

    system: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    """What the model is told that it may call."""

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

    @property
    def turns(self) -> list[tuple[Message, ...]]:
        """User messages, each with its answer; the last one may still wait for it."""
        return [self.messages[i : i + 2] for i in range(0, len(self.messages), 2)]

    def with_message(self, role: Role, content: str, key: int | None = None) -> Conversation:
        """A copy with one more message."""
        return replace(self, messages=(*self.messages, Message(role, content, key=key)))

    def with_turns(self, turns: Iterable[tuple[Message, ...]]) -> Conversation:
        """A copy with these turns instead."""
        return replace(self, messages=tuple(message for turn in turns for message in turn))

    @property
    def has_tools(self) -> bool:
        """Whether tools are offered, or some were called."""
        return bool(self.tools) or any(message.steps for message in self.messages)

    def without_steps(self) -> Conversation:
        """A copy in which no tool was ever called: of answers only their words are left."""
        return replace(self, tools=(), messages=tuple(map(_words_only, self.messages)))

    def all_messages(self, *, is_single: bool = False) -> list[dict[str, Any]]:
        """The messages with the system prompt first, in the form chat templates and JSON files have.

        Calls of tools and their results are messages before the answer's own; `is_single` puts each call into one of
        its own. An answer that has not got further than its calls has no message of its own at the end.
        """
        listed: list[dict[str, Any]] = []
        if self.system is not None:
            listed.append({"role": "system", "content": self.system})
        for message in self.messages:
            for step in message.steps:
                listed += _step_messages(step, is_single=is_single)
            listed.append({"role": message.role, "content": message.content, **_thoughts(message.reasoning)})
        if self.messages and self.messages[-1].steps and not self.messages[-1].content:
            listed.pop()
        return listed

    def spoken(self) -> list[dict[str, str]]:
        """Role and content alone, the system prompt first: what every server takes. An answer's calls become words."""
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        said = [{"role": message.role, "content": message.content} for message in self.without_steps().messages]
        if said and not self.awaits_answer and not said[-1]["content"]:
            said.pop()  # an answer that has not got beyond its thoughts begins again
        return [*system, *said]


def _thoughts(reasoning: str) -> dict[str, str]:
    return {"reasoning_content": reasoning} if reasoning else {}


def _words_only(message: Message) -> Message:
    if not message.steps:
        return message
    texts = (*(step.text for step in message.steps), message.content)
    return replace(message, content="\n\n".join(filter(None, texts)), steps=())


def _step_messages(step: ToolStep, *, is_single: bool) -> Iterator[dict[str, Any]]:
    outcomes = list(step.outcomes)
    said = {"content": step.text, **_thoughts(step.reasoning)}
    for together in [[outcome] for outcome in outcomes] if is_single else [outcomes]:
        calls = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.parsed()}}
            for call, _ in together
        ]
        yield {"role": "assistant", **said, "tool_calls": calls}
        for call, result in together:
            yield {"role": "tool", "name": call.name, "content": str(result), "tool_call_id": call.id}
        said = {"content": ""}


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
        case {"role": "assistant", "content": str(content), "reasoning_content": str(reasoning)}:
            return Message("assistant", content, reasoning=reasoning)
        case {"role": str(role), "content": str(content)} if role in get_args(Role):
            return Message(role, content)  # type: ignore[arg-type]
    raise BadConversation(
        f"Message {i + 1} has no role and content.", 'Each is {"role": "system"|"user"|"assistant", "content": "…"}.'
    )


def parse_examples(text: str) -> tuple[Message, ...]:
    """Read JSON lines of {"user": …, "assistant": …} or {"role": …, "content": …}: whole turns, the user first.

    Raises `BadConversation` with the number of the line that is wrong.
    """
    messages: list[Message] = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also split within JSON strings
        if line.strip():
            messages += _parse_example(number, line)
    if not messages or len(messages) % 2:
        raise BadConversation("The examples end in the middle of a turn.", "Give every question an answer.")
    return Conversation(None, tuple(messages)).messages


def _parse_example(number: int, line: str) -> list[Message]:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        parsed = None
    match parsed:
        case {"user": str(question), "assistant": str(answer)}:
            return [Message("user", question), Message("assistant", answer)]
        case {"role": "user" | "assistant" as role, "content": str(content)}:
            return [Message(role, content)]
    raise BadConversation(
        f"Line {number} of the examples has no question and answer.", 'Each is {"user": "…", "assistant": "…"}.'
    )
