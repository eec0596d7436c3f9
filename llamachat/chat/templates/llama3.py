"""Llama 3 to 3.3 Instruct."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Content, Marker, Part, Text, TokenId
from llamachat.chat.templates.base import PromptTemplate
from llamachat.engine.base import Tokenizer


class Llama3(PromptTemplate):
    """Llama 3 Instruct.

    Source: `ChatFormat` in meta-llama/llama3, llama/tokenizer.py.
    """

    name = "llama-3"
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.6, "top_p": 0.9, "top_k": 0, "min_p": 0.0}

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        yield TokenId(tokenizer.bos_id)
        yield from self._system(conversation.system)
        *finished, last = conversation.messages
        for message in finished:
            yield from _message(message.role, Content(message.content.strip()))
        if last.role == "user":
            yield from _message("user", Content(last.content.strip()))
        yield from _header("assistant")
        if last.role == "assistant":
            yield Content(last.content.lstrip())

    def _system(self, system: str | None) -> Iterator[Part]:
        if system is not None:
            yield from _message("system", Content(system.strip()))


class Llama31(Llama3):
    """Llama 3.1 Instruct: there always is a system message, and it begins with two dates.

    Source: the chat template of meta-llama/Llama-3.1-8B-Instruct, with `date_string` set. The date is that of the
    day the session began, today unless it is told another.
    """

    name = "llama-3.1"

    def _system(self, system: str | None) -> Iterator[Part]:
        dates = Text(f"Cutting Knowledge Date: December 2023\nToday Date: {self._began:%d %b %Y}\n\n")
        yield from _message("system", dates, Content((system or "").strip()))


class Llama32(Llama31):
    """Llama 3.2 Instruct. Source: the chat template of meta-llama/Llama-3.2-3B-Instruct."""

    name = "llama-3.2"


class Llama33(Llama31):
    """Llama 3.3 Instruct. Source: the chat template of meta-llama/Llama-3.3-70B-Instruct, with `date_string` set."""

    name = "llama-3.3"


def _message(role: str, *texts: Text) -> Iterator[Part]:
    yield from _header(role)
    yield from texts
    yield Marker("<|eot_id|>")


def _header(role: str) -> Iterator[Part]:
    yield Marker("<|start_header_id|>")
    yield Text(role)
    yield Marker("<|end_header_id|>")
    yield Text("\n\n")
