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
ASKED_FOR = "asked for"

_FAMILIES: tuple[type[PromptTemplate], ...] = (
    Llama2, CodeLlamaInstruct, CodeLlama70b, ChineseAlpaca2, Llama2Chinese, Llama3, Llama31, Llama32, Llama33,
    Vicuna, WizardLM, Alpaca, MistralV01, MistralV02, MistralV03, ChatML, Qwen25, Zephyr, Jinja, NoTemplate,
)  # fmt: skip
TEMPLATES: dict[str, type[PromptTemplate]] = {template.name: template for template in _FAMILIES}


_KNOWN_SOURCES: dict[str, str] = {
    # SmolLM2-Instruct. Its template also puts in a system prompt when there is none; that is left out, because
    # the small models answer much worse with it (docs/log.md, 2026-11-21).
    "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788": ChatML.name,
    "153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3": ChatML.name,  # as transformers documents it
    "e8d5b5a546d3f19df16a5320c614fab05bdc4edd50e850f1afd947b503ea41cf": Llama2.name,  # Llama-2-Chat
    "ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122": Llama3.name,  # Meta-Llama-3-Instruct
    # Those of 3.1 and 3.3 are not here: they tell the model a day in 2024 if nobody tells them the date.
    "d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f": Llama32.name,  # Llama-3.2-Instruct
    "55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a": Qwen25.name,  # Qwen2.5-Instruct
    "66291cf0045c2425a3a667cf3cbb7af2b11f09e025c02f97245323ab79119362": Zephyr.name,  # TinyLlama-1.1B-Chat-v1.0
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
        return TemplateChoice(_make(asked, own), ASKED_FOR)
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
