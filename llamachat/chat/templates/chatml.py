"""ChatML, and what Qwen2.5 adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, ClassVar

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Content, Marker, Part, Text, TokenId
from llamachat.chat.templates.base import PromptTemplate, messages_of
from llamachat.chat.tools.calls import HERMES
from llamachat.chat.tools.values import Tool, write_json
from llamachat.engine.base import Tokenizer


class ChatML(PromptTemplate):
    """ChatML, as in SmolLM2. It has no BOS of its own; some of the models fine-tuned with it expect one.

    Source: the chat template that transformers documents under this name.
    """

    name = "chatml"

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        if tokenizer.adds_bos:
            yield TokenId(tokenizer.bos_id)
        *finished, last = messages_of(conversation, self.system)
        for message in finished if last["role"] == "assistant" else [*finished, last]:
            yield Marker("<|im_start|>")
            yield Text(f"{message['role']}\n")
            yield Content(message["content"])
            yield Marker("<|im_end|>")
            yield Text("\n")
        yield Marker("<|im_start|>")
        yield Text("assistant\n")
        if last["role"] == "assistant":
            yield Content(last["content"])


_TOOLS_BEGIN = """

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
_TOOLS_END = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""


class Qwen25(ChatML):
    """Qwen2.5 Instruct: ChatML with a system prompt of its own, and tools in the form of Hermes.

    Source: the chat template and generation_config.json of Qwen/Qwen2.5-7B-Instruct.
    """

    name = "qwen2.5"
    calls = HERMES
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    sampling: ClassVar[Mapping[str, float | int]] = {
        "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "repeat_penalty": 1.05,
    }  # fmt: skip

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        if not conversation.has_tools:
            yield from super().parts(conversation, tokenizer)
            return
        if tokenizer.adds_bos:
            yield TokenId(tokenizer.bos_id)
        *finished, last = messages_of(conversation, self.system)
        open_answer = last["content"] if last["role"] == "assistant" else None
        for role, messages in groupby(finished if open_answer is not None else [*finished, last], _speaker):
            listed = list(messages)
            for group in [listed] if role == "tool" else [[message] for message in listed]:
                yield Marker("<|im_start|>")
                yield from _inside(role, group, conversation.tools)
                yield Marker("<|im_end|>")
                yield Text("\n")
        yield Marker("<|im_start|>")
        yield Text("assistant\n")
        if open_answer is not None:
            yield Content(open_answer)


def _speaker(message: dict[str, Any]) -> str:
    return str(message["role"])


def _inside(role: str, messages: list[dict[str, Any]], tools: tuple[Tool, ...]) -> Iterator[Part]:
    """What stands between the markers: one message, or the results of all calls of a step."""
    yield Text("user" if role == "tool" else role)
    for message in messages:
        if role == "tool":
            yield Text("\n<tool_response>\n")
            yield Content(message["content"])
            yield Text("\n</tool_response>")
            continue
        if message["content"] or "tool_calls" not in message:
            yield Text("\n")
            yield Content(message["content"])
        for call in message.get("tool_calls", ()):
            yield Text('\n<tool_call>\n{"name": "')
            yield Content(call["function"]["name"])
            yield Text('", "arguments": ')
            yield Content(write_json(call["function"]["arguments"]))
            yield Text("}\n</tool_call>")
    if role == "system" and tools:
        yield Text(_TOOLS_BEGIN)
        for tool in tools:
            yield Text("\n")
            yield Content(write_json(tool.as_json()))
        yield Text(_TOOLS_END)
