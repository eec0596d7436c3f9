"""What a model thinks before it answers: told apart from the answer while both stream.

A reasoning model writes `<think>`, thoughts, `</think>` and then its answer; many templates write the first tag
themselves, at the end of the prompt. Only a tag at the very start of what the model writes opens its thoughts, and
only the first end tag closes them, so that an answer may speak of either. Blanks around thoughts belong to the tags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Place = Literal["start", "thoughts", "within", "answer"]
"""Where what the model writes goes on: at its beginning, at that of its thoughts, in their middle, or after them."""


@dataclass(frozen=True)
class ReasoningTags:
    """What stands before and after thoughts: plain text, one word of the vocabulary, or a control token."""

    start: str
    end: str


class Piece(NamedTuple):
    """What is certain now of thoughts and of the answer; either may be empty."""

    reasoning: str
    content: str


class ReasoningSplitter:
    """Splits one text that comes in pieces. However it is cut, the same comes out."""

    def __init__(self, tags: ReasoningTags, place: Place = "start") -> None:
        self._tags = tags
        self.place: Place = "thoughts" if place == "within" else place
        self._held = ""
        self._skips_blanks = place == "thoughts"

    def feed(self, text: str) -> Piece:
        """Return what is certain after the next piece."""
        return self._take(text, is_over=False)

    def finish(self) -> Piece:
        """Return what was held back: the text is over, perhaps in the middle of thoughts."""
        return self._take("", is_over=True)

    def _take(self, text: str, *, is_over: bool) -> Piece:
        self._held += text
        if self.place == "start":
            self._look_for_start(is_over)
        reasoning = self._thoughts(is_over) if self.place == "thoughts" else ""
        return Piece(reasoning, self._answer() if self.place == "answer" else "")

    def _look_for_start(self, is_over: bool) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._tags.start):
            self.place, self._skips_blanks = "thoughts", True
            self._held = begun[len(self._tags.start) :]
        elif is_over or not self._tags.start.startswith(begun):
            self.place = "answer"

    def _thoughts(self, is_over: bool) -> str:
        self._skip_blanks()
        thoughts, end, after = self._held.partition(self._tags.end)
        if end:
            self.place, self._skips_blanks, self._held = "answer", True, after
            return thoughts.rstrip()
        n_sure = len(self._held) if is_over else self._n_sure()
        sure, self._held = self._held[:n_sure], self._held[n_sure:]
        return sure

    def _answer(self) -> str:
        self._skip_blanks()
        answer, self._held = self._held, ""
        return answer

    def _skip_blanks(self) -> None:
        if self._skips_blanks:
            self._held = self._held.lstrip()
            self._skips_blanks = not self._held

    def _n_sure(self) -> int:
        """How much can be no part of the end tag, nor of the blanks before it."""
        held, end = self._held, self._tags.end
        n_tag = next((n for n in range(min(len(held), len(end) - 1), 0, -1) if end.startswith(held[-n:])), 0)
        return len(held[: len(held) - n_tag].rstrip())
