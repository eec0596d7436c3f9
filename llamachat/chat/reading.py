"""What a model writes → its thoughts, its answer and its calls of tools, whole characters only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamachat.chat.message import Message
from llamachat.chat.reasoning import Piece, Place, ReasoningSplitter, ReasoningTags
from llamachat.chat.text import TextDecoder
from llamachat.chat.tools.calls import CallFormat, CallReader
from llamachat.chat.tools.values import WrittenCall
from llamachat.engine.base import FinishReason


class AnswerReader:
    """One generation, token by token."""

    def __init__(
        self,
        tags: ReasoningTags | None,
        place: Place,
        stop: Sequence[str],
        control_tokens: Mapping[str, int],
        *,
        strip_space: bool,
        begun: Message,
        calls: CallFormat | None = None,
    ) -> None:
        """Without `tags` all is content. `control_tokens` have no bytes; a tag that is one is known by its id.

        `begun` is what there is of the answer already; a stop string may have begun in it. `calls` is how the family
        writes calls of tools, if it may call any.
        """
        self.reasoning = begun.reasoning
        """All that was thought so far."""
        self._is_told_thinking = False
        self._decoder = TextDecoder(strip_space=strip_space)
        self._splitter = ReasoningSplitter(tags, place) if tags else None
        self._content = TextDecoder(stop, begun=begun.content)
        self._calls = CallReader(calls)
        self._has_calls = calls is not None
        self._said = begun.content
        texts = (tags.start, tags.end) if tags else ()
        self._tags = {control_tokens[text]: text.encode() for text in texts if text in control_tokens}
        marks = calls.marks if calls else ()
        self._marks = {control_tokens[text]: text.encode() for text in marks if text in control_tokens}

    @property
    def content(self) -> str:
        """All of the answer so far that is certain; calls are no part of it."""
        return self._said if self._has_calls else self._content.content

    @property
    def is_thinking(self) -> bool:
        """Whether thoughts have begun and not ended."""
        return self._is_told_thinking or (self._splitter is not None and self._splitter.place == "thoughts")

    @property
    def is_over(self) -> bool:
        """Whether a stop string was found in the content, or its calls are whole; what follows is ignored."""
        return self._content.stopped or self._calls.is_over

    @property
    def is_broken(self) -> bool:
        """After `finish`: whether a call was begun that could not be read."""
        return self._calls.is_broken

    def feed(self, token_id: int | None, piece: bytes) -> Piece:
        """Return what is certain after the next token, or after bytes of tokens that nobody tells."""
        is_answer = self._splitter is None or self._splitter.place == "answer"
        if token_id is not None:
            piece = (self._marks if is_answer else self._tags).get(token_id, piece)
        self._is_told_thinking = False
        return self._split(self._decoder.feed(piece))

    def feed_thought(self, text: str) -> Piece:
        """Thoughts that an engine tells apart itself."""
        self.reasoning += text
        self._is_told_thinking = True
        return Piece(text, "")

    def finish(self, reason: FinishReason) -> tuple[Piece, list[WrittenCall]]:
        """Return what was held back, and the calls of tools that the answer ends in: names and arguments."""
        first = self._split(self._decoder.finish())
        last = self._splitter.finish() if self._splitter else Piece("", "")
        content = self._say(self._content.feed(last.content.encode()) + self._content.finish())
        rest, calls = self._calls.finish(reason)
        self._said += rest
        self.reasoning += last.reasoning
        return Piece(first.reasoning + last.reasoning, first.content + content + rest), calls

    def _split(self, text: str) -> Piece:
        reasoning, content = self._splitter.feed(text) if self._splitter else ("", text)
        self.reasoning += reasoning
        return Piece(reasoning, self._say(self._content.feed(content.encode())) if content else "")

    def _say(self, content: str) -> str:
        text = self._calls.feed(content)
        self._said += text
        return text
