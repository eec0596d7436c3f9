"""Mistral Instruct. The versions differ in what is a control token, and in where the system prompt goes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Border, Content, Marker, Part, Text, TokenId
from llamachat.chat.templates.base import PromptTemplate, turns_of
from llamachat.chat.tools.calls import MISTRAL
from llamachat.chat.tools.values import ToolStep, write_json
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
    moves with every turn, as do tools; blanks at the end of an answer go, and words before calls.
    """

    name = "mistral-instruct-v0.3"
    calls = MISTRAL

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        yield TokenId(tokenizer.bos_id)
        for turn in turns_of(conversation):
            if conversation.tools and not turn.is_finished:
                yield Marker("[AVAILABLE_TOOLS]")
                yield Content(write_json([tool.as_json() for tool in conversation.tools]))
                yield Marker("[/AVAILABLE_TOOLS]")
            yield Marker("[INST]")
            yield from _with_system(turn.question, None if turn.is_finished else conversation.system)
            yield Marker("[/INST]")
            for step in turn.steps:
                yield from _step(step, tokenizer)
            yield Content((turn.answer or "").rstrip(" "))
            if turn.is_finished:
                yield TokenId(tokenizer.eos_id)


def _step(step: ToolStep, tokenizer: Tokenizer) -> Iterator[Part]:
    yield Marker("[TOOL_CALLS]")
    yield Content(write_json([{"name": call.name, "arguments": call.parsed(), "id": call.id} for call in step.calls]))
    yield TokenId(tokenizer.eos_id)
    for call, result in step.outcomes:
        yield Marker("[TOOL_RESULTS]")
        yield Content(write_json({"content": _json_or_text(str(result)), "call_id": call.id}))
        yield Marker("[/TOOL_RESULTS]")


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _with_system(question: str, system: str | None) -> Iterator[Part]:
    yield Content(f"{system}\n\n{question}" if system else question)
