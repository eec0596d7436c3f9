"""Code Llama Instruct 70b, which has steps instead of turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Border, Content, Marker, Part, Text, TokenId
from llamachat.chat.templates.base import PromptTemplate, messages_of
from llamachat.engine.base import Tokenizer

_STEP = Marker("<step>")
_HEADERS = {
    "system": " Source: system",
    "user": " Source: user",
    "assistant": " Source: assistant\nDestination: user",
}


class CodeLlama70b(PromptTemplate):
    """Code Llama Instruct 70b.

    Source: `dialog_prompt_tokens` in meta-llama/codellama, llama/generation.py. A header says where a message comes
    from, and of an answer where it goes; header and message are tokenized apart. There always is a system message.
    """

    name = "code-llama-70b-instruct"
    stop = ("<step>",)
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.2, "top_p": 0.95, "top_k": 0, "min_p": 0.0}
    system = ""
    tags = ("Source: system", "Source: user", "Source: assistant", "Destination: user")

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        *finished, last = messages_of(conversation, self.system)
        yield TokenId(tokenizer.bos_id)
        for message in finished if last["role"] == "assistant" else [*finished, last]:
            yield Text(_HEADERS[message["role"]])
            if message["content"]:
                yield Border()
                yield Text("\n\n ")
                yield Content(message["content"].strip())
            yield _STEP
        yield Text(_HEADERS["assistant"])
        yield Border()
        yield Text("\n\n ")
        if last["role"] == "assistant":
            yield Content(last["content"].lstrip())
