"""An answer that is being written, over as many generations as its calls of tools take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import TypeVar

from llamachat.chat.events import Answer
from llamachat.chat.message import Conversation, Message
from llamachat.chat.tools.values import ToolCall, ToolResult, ToolStep, WrittenCall
from llamachat.engine.base import FinishReason, GenerationStats

_ID_LENGTH = 9

N = TypeVar("N", int, float)


@dataclass
class UnfinishedAnswer:
    """What was asked, and what there is of its answer."""

    asked: Conversation
    """The last message is the user's, or an answer that is gone on with."""
    content: str = ""
    reasoning: str = ""
    steps: tuple[ToolStep, ...] = ()
    finish_reason: FinishReason = "interrupted"
    is_rest_read_again: bool = False
    is_repeatable: bool = False
    """Whether the same seed is to give the same answer again."""
    all_stats: list[GenerationStats] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.asked.awaits_answer:
            begun = self.asked.messages[-1]
            self.content, self.reasoning, self.steps = begun.content, begun.reasoning, begun.steps
        self.n_before = len(self.steps)
        """How many steps an answer had that is gone on with."""

    @property
    def is_begun(self) -> bool:
        """Whether there is anything of the answer."""
        return bool(self.content or self.reasoning or self.steps)

    def conversation(self, key: int | None = None) -> Conversation:
        """What was asked, with as much of the answer as there is; `key` is that of the answer."""
        before = self.asked.messages if self.asked.awaits_answer else self.asked.messages[:-1]
        answer = Message("assistant", self.content, reasoning=self.reasoning, key=key, steps=self.steps)
        return replace(self.asked, messages=(*before, answer))

    def begin_step(self, calls: list[WrittenCall]) -> ToolStep:
        """What was written so far came before these calls, names and arguments."""
        place = f"{len(self.asked.turns)}.{len(self.steps)}"
        numbered = (ToolCall(name, given, _call_id(f"{place}.{i}.{name}")) for i, (name, given) in enumerate(calls))
        step = ToolStep(self.content.rstrip(), tuple(numbered), reasoning=self.reasoning)
        self.content, self.reasoning, self.steps = "", "", (*self.steps, step)
        return step

    def add_result(self, result: ToolResult) -> None:
        """What came of the next call of the last step."""
        *before, last = self.steps
        self.steps = (*before, replace(last, results=(*last.results, result)))

    def answer(self) -> Answer:
        """The answer as it is now; there was a generation."""
        return Answer(self.content, self.finish_reason, self.stats, self.is_rest_read_again, self.reasoning, self.steps)

    @property
    def stats(self) -> GenerationStats:
        """Of all generations together; the time to the first token is that of the first."""
        first, *others = self.all_stats
        total = first
        for stats in others:
            total = GenerationStats(
                n_prompt=_sum(total.n_prompt, stats.n_prompt),
                n_reused=_sum(total.n_reused, stats.n_reused),
                n_generated=_sum(total.n_generated, stats.n_generated),
                prefill_s=_sum(total.prefill_s, stats.prefill_s),
                ttft_s=first.ttft_s,
                decode_s=total.decode_s + stats.decode_s,
                n_drafted=total.n_drafted + stats.n_drafted,
                n_accepted=total.n_accepted + stats.n_accepted,
            )
        return total


def _sum(total: N | None, more: N | None) -> N | None:
    """None, as soon as one of them is not told."""
    return None if total is None or more is None else total + more


def _call_id(text: str) -> str:
    """The same in every run with the same seed."""
    return sha256(text.encode("utf-8", "replace")).hexdigest()[:_ID_LENGTH]
