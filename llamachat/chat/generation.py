"""One generation: what an engine tells becomes what a session tells, and the unfinished answer grows by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import replace

from llamachat.chat.events import Notice, ReasoningPiece, SessionEvent, TextPiece, Thought
from llamachat.chat.reading import AnswerReader
from llamachat.chat.reasoning import Piece
from llamachat.chat.tools.values import WrittenCall
from llamachat.chat.unfinished import UnfinishedAnswer
from llamachat.engine.base import (
    AnswerBytes,
    End,
    Engine,
    Event,
    GenerationRequest,
    GenerationStats,
    Prefill,
    Remark,
    ThoughtText,
    Token,
)


def generate(
    engine: Engine,
    request: GenerationRequest,
    reader: AnswerReader,
    unfinished: UnfinishedAnswer,
    cancel: threading.Event,
    on_growth: Callable[[], None],
) -> Generator[SessionEvent, None, list[WrittenCall]]:
    """Stream what the model writes next; return the calls of tools that it ends in: names and arguments.

    `on_growth` is called whenever there is more of the answer.
    """
    clock, halt = _ThinkingClock(), _AnyOf(cancel)
    unfinished.finish_reason, trouble = "interrupted", None
    control = engine.tokenizer.control_tokens
    stop_ids = {control[text] for text in request.stop if text in control}  # which have no text to be found
    try:
        for event in _until(stop_ids, engine.generate(request, halt), halt):
            match event:
                case Prefill():
                    yield event
                case Remark(text):
                    yield Notice(text)
                case Token() | AnswerBytes() | ThoughtText():
                    clock.tick(is_token=isinstance(event, Token))
                    read = _read(reader, event)
                    if any(read):
                        unfinished.content, unfinished.reasoning = reader.content, reader.reasoning
                        on_growth()
                    yield from clock.events(read, is_over=not reader.is_thinking)
                    if reader.is_over:
                        halt.set()
                case End(finish_reason, stats):
                    unfinished.finish_reason = "stop" if reader.is_over else finish_reason
                    unfinished.all_stats.append(stats)
                    trouble = event.trouble
    finally:  # nothing that was held back is lost, whatever ended it
        read, calls = reader.finish(unfinished.finish_reason)
        unfinished.content, unfinished.reasoning = reader.content, reader.reasoning
    yield from clock.events(read, is_over=True)
    if trouble:  # now that what came before it is kept
        raise trouble
    if reader.is_broken:
        yield Notice("The model began to call a tool, but not in a form that can be read: it is shown as it is.")
    return calls


def is_shifted(request: GenerationRequest, stats: GenerationStats) -> bool:
    """Whether what follows the cut was still in the KV cache, which may have held something else."""
    return request.cut is not None and stats.n_reused is not None and stats.n_reused > request.cut.start


def _until(stop_ids: Collection[int], events: Iterator[Event], halt: threading.Event) -> Iterator[Event]:
    """The events up to a token that ends the answer as a stop string does; then `halt` is set, and the end told."""
    is_stopped = False
    for event in events:
        if isinstance(event, Token) and (is_stopped or event.token_id in stop_ids):
            is_stopped = True
            halt.set()
        elif isinstance(event, End) and is_stopped:
            yield replace(event, finish_reason="stop")
        else:
            yield event


def _read(reader: AnswerReader, event: Token | AnswerBytes | ThoughtText) -> Piece:
    match event:
        case Token(token_id, piece):
            return reader.feed(token_id, piece)
        case AnswerBytes(data):
            return reader.feed(None, data)
        case ThoughtText(text):
            return reader.feed_thought(text)


class _ThinkingClock:
    """How much is thought, and for how long; makes events of what was read."""

    def __init__(self) -> None:
        self._n_pieces = 0
        self._n_thought = 0
        self._are_tokens = True
        self._began = self._ended = 0.0

    def tick(self, *, is_token: bool) -> None:
        """A token has come, or a piece of text, as a server cuts it."""
        self._began = self._began if self._n_pieces else time.monotonic()
        self._n_pieces += 1
        self._are_tokens = is_token

    def events(self, read: Piece, *, is_over: bool) -> Iterator[ReasoningPiece | Thought | TextPiece]:
        """`is_over` tells that no thoughts follow what was read."""
        if read.reasoning:
            self._n_thought, self._ended = self._n_pieces, time.monotonic()
            yield ReasoningPiece(read.reasoning, self._n_pieces if self._are_tokens else None)
        if is_over and self._n_thought:
            n_thought, self._n_thought = self._n_thought, 0
            yield Thought(n_thought if self._are_tokens else None, self._ended - self._began)
        if read.content:
            yield TextPiece(read.content)


class _AnyOf(threading.Event):
    """Set when it is set itself or when `other` is: a stop string, or the user's wish to stop."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()
