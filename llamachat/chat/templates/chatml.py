"""ChatML, and what Qwen2.5 adds to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Content, Marker, Part, Text, TokenId
from llamachat.chat.templates.base import PromptTemplate, messages_of
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


class Qwen25(ChatML):
    """Qwen2.5 Instruct: ChatML with a system prompt of its own.

    Source: the chat template and generation_config.json of Qwen/Qwen2.5-7B-Instruct.
    """

    name = "qwen2.5"
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    sampling: ClassVar[Mapping[str, float | int]] = {
        "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "repeat_penalty": 1.05,
    }  # fmt: skip
