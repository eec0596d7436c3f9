"""Llama 3 to 3.3 Instruct."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Content, Marker, Part, Text, TokenId
from llamachat.chat.templates.base import PromptTemplate
from llamachat.chat.tools.calls import LLAMA_3
from llamachat.chat.tools.values import Tool, write_json
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
    calls = LLAMA_3

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`. Tools stand in the first user message; words before a call are left out."""
        if not conversation.has_tools:
            yield from super().parts(conversation, tokenizer)
            return
        yield TokenId(tokenizer.bos_id)
        yield from self._system(conversation.system, has_tools=bool(conversation.tools))
        asked = replace(conversation, system=None)
        *finished, last = asked.all_messages(is_single=True)
        open_answer = last["content"] if last["role"] == "assistant" else None
        for i, message in enumerate(finished if open_answer is not None else [*finished, last]):
            tools = _tools(conversation.tools) if i == 0 and conversation.tools else ()
            yield from _message(_ROLES.get(message["role"], message["role"]), *tools, _body(message))
        yield from _header("assistant")
        if open_answer is not None:
            yield Content(open_answer.lstrip())

    def _system(self, system: str | None, *, has_tools: bool = False) -> Iterator[Part]:
        environment = [Text("Environment: ipython\n")] if has_tools else []
        dates = Text(f"Cutting Knowledge Date: December 2023\nToday Date: {self._began:%d %b %Y}\n\n")
        yield from _message("system", *environment, dates, Content((system or "").strip()))


class Llama32(Llama31):
    """Llama 3.2 Instruct. Source: the chat template of meta-llama/Llama-3.2-3B-Instruct."""

    name = "llama-3.2"


class Llama33(Llama31):
    """Llama 3.3 Instruct. Source: the chat template of meta-llama/Llama-3.3-70B-Instruct, with `date_string` set."""

    name = "llama-3.3"


_ROLES = {"tool": "ipython"}
_BEFORE_TOOLS = (
    "Given the following functions, please respond with a JSON for a function call "
    "with its proper arguments that best answers the given prompt.\n\n"
    'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    "Do not use variables.\n\n"
)


def _tools(tools: tuple[Tool, ...]) -> Iterator[Text]:
    yield Text(_BEFORE_TOOLS)
    for tool in tools:
        yield Content(json.dumps(tool.as_json(), ensure_ascii=False, indent=4))
        yield Text("\n\n")


def _body(message: dict[str, Any]) -> Text:
    """A message's text; the template writes results as JSON strings."""
    if message["role"] == "tool":
        return Content(write_json(message["content"]))
    for call in message.get("tool_calls", ()):
        function = call["function"]
        return Content(f'{{"name": "{function["name"]}", "parameters": {write_json(function["arguments"])}}}')
    return Content(message["content"].strip())


def _message(role: str, *texts: Text) -> Iterator[Part]:
    yield from _header(role)
    yield from texts
    yield Marker("<|eot_id|>")


def _header(role: str) -> Iterator[Part]:
    yield Marker("<|start_header_id|>")
    yield Text(role)
    yield Marker("<|end_header_id|>")
    yield Text("\n\n")
