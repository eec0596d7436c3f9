"""Conversation → token ids: one small class a family, in one table.

A template knows its format, its stop strings, and the sampling its authors recommend. All end-of-generation
tokens of the vocabulary stop a generation anyway.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar

from llamachat.chat.jinja import JinjaRenderer
from llamachat.chat.message import Conversation, Message
from llamachat.chat.prompt import Marker, Part, Prompt, Text, TokenId, assemble
from llamachat.engine.base import Tokenizer
from llamachat.errors import BadConversation, TemplateFailed, UnknownTemplate

CHAT_TEMPLATE_KEY = "tokenizer.chat_template"


class PromptTemplate(ABC):
    """How one family of models wants to be talked to."""

    name: str
    stop: tuple[str, ...] = ()
    sampling: ClassVar[Mapping[str, float | int]] = {}
    is_chat = True

    def render(self, conversation: Conversation, tokenizer: Tokenizer) -> Prompt:
        """The prompt for the next answer; the last message must be the user's."""
        if not conversation.awaits_answer:
            raise BadConversation("There is nothing to answer.", "End the conversation with a user message.")
        return assemble(self.parts(conversation, tokenizer), tokenizer)

    @abstractmethod
    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """The prompt in pieces, BOS included."""


class Llama2(PromptTemplate):
    """Llama-2-Chat.

    Source: `Llama.chat_completion` in meta-llama/llama, llama/generation.py. Every finished turn is tokenized by
    itself between BOS and EOS, the open one without EOS; the system prompt stands inside the first user message.
    """

    name = "llama-2"
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.6, "top_p": 0.9, "top_k": 0, "min_p": 0.0}

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        contents = [message.content for message in conversation.messages]
        if conversation.system is not None:
            contents[0] = f"<<SYS>>\n{conversation.system}\n<</SYS>>\n\n{contents[0]}"
        for question, answer in zip(contents[0:-1:2], contents[1::2], strict=True):
            yield TokenId(tokenizer.bos_id)
            yield Text(f"[INST] {question.strip()} [/INST] {answer.strip()} ")
            yield TokenId(tokenizer.eos_id)
        yield TokenId(tokenizer.bos_id)
        yield Text(f"[INST] {contents[-1].strip()} [/INST]")


class Llama3(PromptTemplate):
    """Llama 3 Instruct.

    Source: `ChatFormat` in meta-llama/llama3, llama/tokenizer.py.
    """

    name = "llama-3"
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.6, "top_p": 0.9, "top_k": 0, "min_p": 0.0}

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        yield TokenId(tokenizer.bos_id)
        for message in conversation.all_messages():
            yield from self._header(message["role"])
            yield Text(message["content"].strip())
            yield Marker("<|eot_id|>")
        yield from self._header("assistant")

    def _header(self, role: str) -> Iterator[Part]:
        yield Marker("<|start_header_id|>")
        yield Text(role)
        yield Marker("<|end_header_id|>")
        yield Text("\n\n")


class ChatML(PromptTemplate):
    """ChatML, as in Qwen2.5 and SmolLM2. It has no BOS of its own; some of the models fine-tuned with it expect one.

    Source: the published chat templates of those models; without a system prompt the catalogue's is used.
    """

    name = "chatml"

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        if tokenizer.adds_bos:
            yield TokenId(tokenizer.bos_id)
        for message in conversation.all_messages():
            yield Marker("<|im_start|>")
            yield Text(f"{message['role']}\n{message['content']}")
            yield Marker("<|im_end|>")
            yield Text("\n")
        yield Marker("<|im_start|>")
        yield Text("assistant\n")


class Vicuna(PromptTemplate):
    """Vicuna v1.1 and v1.5, and WizardLM v1.2.

    Source: `vicuna_v1.1` in lm-sys/FastChat, fastchat/conversation.py. Without a system prompt, its own is used.
    """

    name = "vicuna"
    stop = ("USER:",)
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    _SYSTEM = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        yield TokenId(tokenizer.bos_id)
        yield Text(f"{self._SYSTEM if conversation.system is None else conversation.system} ")
        for message in conversation.messages:
            if message.role == "user":
                yield Text(f"USER: {message.content} ASSISTANT:")
            else:
                yield Text(f" {message.content}")
                yield TokenId(tokenizer.eos_id)


class Alpaca(PromptTemplate):
    """Alpaca. It was trained on single turns; earlier ones stand before the last, each ended by EOS.

    Source: `PROMPT_DICT` in tatsu-lab/stanford_alpaca, train.py. Without a system prompt, its own is used.
    """

    name = "alpaca"
    stop = ("### Instruction:",)
    _SYSTEM = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        yield TokenId(tokenizer.bos_id)
        yield Text(f"{self._SYSTEM if conversation.system is None else conversation.system}\n\n")
        for message in conversation.messages:
            if message.role == "user":
                yield Text(f"### Instruction:\n{message.content}\n\n### Response:")
            else:
                yield Text(message.content)
                yield TokenId(tokenizer.eos_id)


class Llama2Chinese(PromptTemplate):
    """Llama2-Chinese (FlagAlpha): every message between BOS and EOS.

    Source: the README of LlamaFamily/Llama-Chinese ("Human: …", newline, EOS, BOS, "Assistant: ").
    """

    name = "llama2-chinese"
    sampling: ClassVar[Mapping[str, float | int]] = {"temperature": 0.3, "top_p": 0.95, "top_k": 50, "min_p": 0.0}
    _SPEAKERS: ClassVar[Mapping[str, str]] = {"system": "System", "user": "Human", "assistant": "Assistant"}

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        for message in conversation.all_messages():
            yield TokenId(tokenizer.bos_id)
            yield Text(f"{self._SPEAKERS[message['role']]}: {message['content']}\n")
            yield TokenId(tokenizer.eos_id)
        yield TokenId(tokenizer.bos_id)
        yield Text("Assistant: ")


class Jinja(PromptTemplate):
    """The checkpoint's own template, from the GGUF header, in a sandbox."""

    name = "jinja"

    def __init__(self, source: str) -> None:
        self._renderer = JinjaRenderer(source)

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`. A BOS the template does not write is added if the model expects one."""
        parts = self._renderer.parts(conversation.all_messages(), tokenizer)
        first = next((part for part in parts if not (isinstance(part, Text) and part.text.isspace())), None)
        has_bos = isinstance(first, Marker) and tokenizer.control_tokens.get(first.text) == tokenizer.bos_id
        if tokenizer.adds_bos and not has_bos:
            yield TokenId(tokenizer.bos_id)
        yield from parts


class NoTemplate(PromptTemplate):
    """Base models: the text is continued, as in a notebook. Earlier turns simply stand before it."""

    name = "none"
    is_chat = False

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        if tokenizer.adds_bos:
            yield TokenId(tokenizer.bos_id)
        system = [Message("system", conversation.system)] if conversation.system else []
        yield Text("".join(message.content for message in (*system, *conversation.messages)))


TEMPLATES: dict[str, type[PromptTemplate]] = {
    template.name: template for template in (Llama2, Llama3, ChatML, Vicuna, Alpaca, Llama2Chinese, Jinja, NoTemplate)
}


_KNOWN_SOURCES: dict[str, str] = {
    # SmolLM2-Instruct. Its template also puts in a system prompt when there is none; that is left out, because
    # the small models answer much worse with it (docs/log.md, 2026-11-21).
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": ChatML.name,
}
"""sha256 of published chat templates that a built-in one stands for."""


@dataclass(frozen=True)
class TemplateChoice:
    """A template and why it was chosen."""

    template: PromptTemplate
    reason: str


def choose_template(asked: str | None, catalogued: str | None, metadata: Mapping[str, str]) -> TemplateChoice:
    """The template that was asked for, else the catalogue's, else the checkpoint's own, else none (a base model).

    The checkpoint's own is rendered by a built-in one if it is known to be the same. A catalogue entry whose
    template is not built in uses the checkpoint's own. Raises `UnknownTemplate`, or `TemplateFailed` if the model
    brings none where one is needed.
    """
    own = metadata.get(CHAT_TEMPLATE_KEY)
    if asked is not None:
        if asked not in TEMPLATES:
            raise UnknownTemplate(asked, list(TEMPLATES))
        return TemplateChoice(_make(asked, own), "asked for")
    if catalogued in TEMPLATES and (catalogued != "jinja" or own):
        return TemplateChoice(_make(catalogued, own), "catalogue")
    if own:
        known = _KNOWN_SOURCES.get(sha256(own.encode()).hexdigest())
        return TemplateChoice(_make(known, own), "known template") if known else TemplateChoice(Jinja(own), "header")
    if catalogued is not None:
        raise TemplateFailed(f"{catalogued} is not built in and the model brings none of its own")
    return TemplateChoice(NoTemplate(), "the model brings no chat template, so it continues text")


def _make(name: str, own: str | None) -> PromptTemplate:
    if name != Jinja.name:
        return TEMPLATES[name]()
    if own is None:
        raise TemplateFailed("the model brings none")
    return Jinja(own)
