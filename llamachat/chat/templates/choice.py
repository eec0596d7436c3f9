"""The table of templates, and how one is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from llamachat.chat.templates.base import PromptTemplate
from llamachat.chat.templates.chatml import ChatML, Qwen25
from llamachat.chat.templates.code_llama import CodeLlama70b
from llamachat.chat.templates.jinja import Jinja
from llamachat.chat.templates.llama2 import ChineseAlpaca2, CodeLlamaInstruct, Llama2
from llamachat.chat.templates.llama3 import Llama3, Llama31, Llama32, Llama33
from llamachat.chat.templates.mistral import MistralV01, MistralV02, MistralV03
from llamachat.chat.templates.none import NoTemplate
from llamachat.chat.templates.plain_text import Alpaca, Llama2Chinese, Vicuna, WizardLM, Zephyr
from llamachat.errors import TemplateFailed, UnknownTemplate

CHAT_TEMPLATE_KEY = "tokenizer.chat_template"

_FAMILIES: tuple[type[PromptTemplate], ...] = (
    Llama2, CodeLlamaInstruct, CodeLlama70b, ChineseAlpaca2, Llama2Chinese, Llama3, Llama31, Llama32, Llama33,
    Vicuna, WizardLM, Alpaca, MistralV01, MistralV02, MistralV03, ChatML, Qwen25, Zephyr, Jinja, NoTemplate,
)  # fmt: skip
TEMPLATES: dict[str, type[PromptTemplate]] = {template.name: template for template in _FAMILIES}


_KNOWN_SOURCES: dict[str, str] = {
    # SmolLM2-Instruct. Its template also puts in a system prompt when there is none; that is left out, because
    # the small models answer much worse with it (docs/log.md, 2026-11-21).
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": ChatML.name,
}
"""sha256 of published chat templates, without a last newline, that a built-in one stands for."""


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
        known = _KNOWN_SOURCES.get(sha256(own.removesuffix("\n").encode()).hexdigest())
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
