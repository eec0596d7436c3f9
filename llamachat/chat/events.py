"""What a session tells while it answers: a stream of these, which ends with the answer."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from llamachat.chat.compaction import Compacted, Compacting, NotCompacted
from llamachat.chat.tools.values import ToolCall, ToolResult, ToolStep
from llamachat.engine.base import FinishReason, GenerationStats, Prefill


@dataclass(frozen=True)
class Notice:
    """What the user should know about the prompt, in a sentence; each is told once in a session."""

    text: str


@dataclass(frozen=True)
class LeftOut:
    """The window is full: what the prompt does without from now on, in turns and tokens, and what it has then."""

    n_turns: int
    n_tokens: int
    n_prompt: int
    n_ctx: int
    is_shifted: bool
    """Whether the rest stays in the KV cache. Otherwise it is evaluated again, which takes time."""


@dataclass(frozen=True)
class ReasoningPiece:
    """The next piece of what the model thinks before its answer, and how many tokens that has been, if it is known."""

    text: str
    n_tokens: int | None


@dataclass(frozen=True)
class Thought:
    """The thoughts are over, or were cut short: tokens, if they are counted, and seconds from the first to the last."""

    n_tokens: int | None
    elapsed_s: float


@dataclass(frozen=True)
class TextPiece:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True)
class ToolCalled:
    """The model calls a tool; it is about to be run, if that is allowed."""

    call: ToolCall


@dataclass(frozen=True)
class ToolReturned:
    """What came of the call; the model is told."""

    call: ToolCall
    result: ToolResult


@dataclass(frozen=True)
class Answer:
    """The whole answer and how it came about; the last event of a turn."""

    content: str
    finish_reason: FinishReason
    stats: GenerationStats
    is_rest_read_again: bool = False
    """Whether turns were left out and what remains was evaluated again: `stats` tell how much, and how long it took."""
    reasoning: str = ""
    """What the model thought before it. `stats` count that, too."""
    steps: tuple[ToolStep, ...] = ()
    """The calls of tools that came before the content; `stats` are of all together."""


SessionEvent = (
    Notice
    | LeftOut
    | Prefill
    | ReasoningPiece
    | Thought
    | TextPiece
    | ToolCalled
    | ToolReturned
    | Answer
    | Compacting
    | Compacted
    | NotCompacted
)

AnswerEvents = Generator[SessionEvent, None, None]
"""An answer as it comes. Closed early, it is kept as far as it came."""
