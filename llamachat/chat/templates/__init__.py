"""Conversation → token ids: one small class a family, in one table (`choice`).

A template knows its format, its stop strings, its system prompt, and the sampling its authors recommend. All
end-of-generation tokens of the vocabulary stop a generation anyway.
"""

from __future__ import annotations

from llamachat.chat.templates.base import PromptTemplate
from llamachat.chat.templates.chatml import ChatML, Qwen25
from llamachat.chat.templates.choice import ASKED_FOR, CHAT_TEMPLATE_KEY, TEMPLATES, TemplateChoice, choose_template
from llamachat.chat.templates.code_llama import CodeLlama70b
from llamachat.chat.templates.infill import Infill
from llamachat.chat.templates.jinja import Jinja
from llamachat.chat.templates.llama2 import ChineseAlpaca2, CodeLlamaInstruct, Llama2
from llamachat.chat.templates.llama3 import Llama3, Llama31, Llama32, Llama33
from llamachat.chat.templates.mistral import MistralV01, MistralV02, MistralV03
from llamachat.chat.templates.none import NoTemplate
from llamachat.chat.templates.plain_text import Alpaca, Llama2Chinese, Vicuna, WizardLM, Zephyr
from llamachat.chat.templates.served import Seen, Served

__all__ = [
    "ASKED_FOR",
    "CHAT_TEMPLATE_KEY",
    "TEMPLATES",
    "Alpaca",
    "ChatML",
    "ChineseAlpaca2",
    "CodeLlama70b",
    "CodeLlamaInstruct",
    "Infill",
    "Jinja",
    "Llama2",
    "Llama2Chinese",
    "Llama3",
    "Llama31",
    "Llama32",
    "Llama33",
    "MistralV01",
    "MistralV02",
    "MistralV03",
    "NoTemplate",
    "PromptTemplate",
    "Qwen25",
    "Seen",
    "Served",
    "TemplateChoice",
    "Vicuna",
    "WizardLM",
    "Zephyr",
    "choose_template",
]
