"""Mistral Instruct. The versions differ in what is a control token, and in where the system prompt goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Border, Content, Marker, Part, Text, TokenId
from llamachat.chat.templates.base import PromptTemplate, turns_of
from llamachat.engine.base import Tokenizer


class _Mistral(PromptTemplate):
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


class MistralV01(_Mistral):
    """Mistral Instruct v0.1: plain-text markers; every message is tokenized by itself.

    Source: `InstructTokenizerV1` of mistral-common. The system prompt stands inside the first user message.
    """

    name = "mistral-instruct-v0.1"
    tags = ("[INST]", "[/INST]")

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        yield TokenId(tokenizer.bos_id)
        for i, turn in enumerate(turns_of(conversation)):
            yield Text("[INST] ")
            yield from _with_system(turn.question, None if i else conversation.system)
            yield Text(" [/INST]")
            yield Border()
            yield Content(turn.answer or "")
            if turn.is_finished:
                yield TokenId(tokenizer.eos_id)


class MistralV02(MistralV01):
    """Mistral Instruct v0.2: the same prompt. Source: `InstructTokenizerV1`, which its model card names."""

    name = "mistral-instruct-v0.2"


class MistralV03(_Mistral):
    """Mistral Instruct v0.3: control tokens around a message, without blanks.

    Source: `InstructTokenizerV3` of mistral-common. The system prompt stands inside the *last* user message, so it
    moves with every turn; blanks at the end of an answer go.
    """

    name = "mistral-instruct-v0.3"

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        yield TokenId(tokenizer.bos_id)
        for turn in turns_of(conversation):
            yield Marker("[INST]")
            yield from _with_system(turn.question, None if turn.is_finished else conversation.system)
            yield Marker("[/INST]")
            yield Content((turn.answer or "").rstrip(" "))
            if turn.is_finished:
                yield TokenId(tokenizer.eos_id)


def _with_system(question: str, system: str | None) -> Iterator[Part]:
    yield Content(f"{system}\n\n{question}" if system else question)
