"""The checkpoint's own template."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from llamachat.chat.jinja import JinjaRenderer
from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Marker, Part, Text, TokenId
from llamachat.chat.reasoning import ReasoningTags
from llamachat.chat.templates.base import PromptTemplate
from llamachat.chat.templates.code_llama import CodeLlama70b
from llamachat.chat.templates.llama2 import Llama2
from llamachat.chat.templates.plain_text import Alpaca, Llama2Chinese, Vicuna, Zephyr
from llamachat.chat.tools.calls import format_in
from llamachat.engine.base import Tokenizer

_PLAIN_TEXT_FAMILIES: tuple[type[PromptTemplate], ...] = (Llama2, CodeLlama70b, Vicuna, Alpaca, Llama2Chinese, Zephyr)
_TAGS = (
    *(tag for family in _PLAIN_TEXT_FAMILIES for tag in family.tags),
    *("### System:", "### User:", "### Human:", "### Assistant:", "User:", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
)
"""Markers that are plain text for want of a control token, in the families known here and in common ones besides."""

_REASONING_TAGS = (
    ReasoningTags("<think>", "</think>"),  # DeepSeek-R1 and its distillates, Qwen3, QwQ, SmolLM3, GLM, MiniMax, …
    ReasoningTags("<seed:think>", "</seed:think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""A template of a reasoning model has their end tag in it: to write it, or to take earlier thoughts away."""
_SWITCH = "enable_thinking"
"""The variable by which published templates are told to do without thoughts."""


class Jinja(PromptTemplate):
    """The checkpoint's own template, from the GGUF header, in a sandbox."""

    name = "jinja"

    def __init__(self, source: str) -> None:
        """Raise `TemplateFailed` if it does not compile."""
        super().__init__()
        self.tags = tuple(tag for tag in _TAGS if tag in source)
        self.calls = format_in(source)
        self._renderer = JinjaRenderer(source, self.tags)
        self.reasoning = next((tags for tags in _REASONING_TAGS if tags.end in source), None)
        self.can_switch_thinking = self.reasoning is not None and _SWITCH in source

    def begin(self, when: datetime) -> None:
        """See `PromptTemplate`."""
        super().begin(when)
        self._renderer.now = when

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`. A BOS the template does not write is added if the model expects one."""
        is_single = self.calls is not None and self.calls.is_single
        parts = self._renderer.parts(
            conversation.all_messages(is_single=is_single),
            tokenizer,
            tools=[tool.as_json() for tool in conversation.tools] or None,
            tags=self.calls.tags if self.calls and conversation.has_tools else (),
            switches={_SWITCH: self.thinking} if self.thinking is not None else {},
        )
        first = next((part for part in parts if not (isinstance(part, Text) and part.text.isspace())), None)
        has_bos = isinstance(first, Marker) and tokenizer.control_tokens.get(first.text) == tokenizer.bos_id
        if tokenizer.adds_bos and not has_bos:
            yield TokenId(tokenizer.bos_id)
        yield from parts
