"""A live conversation over an engine.

Messages are the truth; the engine's KV cache only saves time. A turn that fails leaves the conversation as it
was; a turn that is interrupted keeps what was answered, so there are never two user messages in a row.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Prompt
from llamachat.chat.templates import PromptTemplate
from llamachat.chat.text import TextDecoder
from llamachat.engine.base import End, Engine, FinishReason, GenerationRequest, GenerationStats, Prefill, Token
from llamachat.engine.sampling import SamplingParams


@dataclass(frozen=True)
class TextPiece:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The whole answer and how it came about; the last event of a turn."""

    content: str
    finish_reason: FinishReason
    stats: GenerationStats


SessionEvent = Prefill | TextPiece | Answer


class Session:
    """A conversation being held with an engine."""

    def __init__(
        self,
        engine: Engine,
        template: PromptTemplate,
        sampling: SamplingParams,
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> None:
        """`max_tokens` limits each answer; `stop` adds to the template's own stop strings."""
        self.engine = engine
        self.template = template
        self.sampling = sampling
        self.conversation = Conversation(system)
        self._max_tokens = max_tokens
        self._stop = (*template.stop, *stop)

    def start_over(self, system: str | None) -> None:
        """Forget all turns and set the system prompt."""
        self.conversation = Conversation(system)

    def prompt_for(self, text: str) -> Prompt:
        """What the model would see if the user said `text` now."""
        return self.template.render(self.conversation.with_message("user", text), self.engine.tokenizer)

    def send(self, text: str, cancel: threading.Event) -> Iterator[SessionEvent]:
        """Say `text` and stream the answer; setting `cancel` ends it early.

        Raises `PromptTooLong` before anything is evaluated. The conversation grows only when there is an answer.
        """
        asked = self.conversation.with_message("user", text)
        prompt = self.template.render(asked, self.engine.tokenizer)
        request = GenerationRequest(prompt.ids, self.sampling, self._max_tokens)
        decoder = TextDecoder(self._stop, strip_space=self.engine.tokenizer.adds_space_prefix)
        halt = _AnyOf(cancel)
        pieces: list[str] = []
        for event in self.engine.generate(request, halt):
            match event:
                case Prefill():
                    yield event
                case Token(_, piece):
                    if decoded := decoder.feed(piece):
                        pieces.append(decoded)
                        yield TextPiece(decoded)
                    if decoder.stopped:
                        halt.set()
                case End(finish_reason, stats):
                    if rest := decoder.finish():
                        pieces.append(rest)
                        yield TextPiece(rest)
                    reason: FinishReason = "stop" if decoder.stopped else finish_reason
                    content = "".join(pieces)
                    if content or reason != "interrupted":
                        self.conversation = asked.with_message("assistant", content)
                    yield Answer(content, reason, stats)


class _AnyOf(threading.Event):
    """Set when it is set itself or when `other` is: the user's wish to stop, or a stop string."""

    def __init__(self, other: threading.Event) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        return super().is_set() or self._other.is_set()
