"""What stands between two texts, from models that were trained to fill gaps."""

from __future__ import annotations

from collections.abc import Iterator

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Part, Prompt
from llamachat.chat.spelling import tokenize_after
from llamachat.chat.templates.base import PromptTemplate
from llamachat.engine.base import Tokenizer
from llamachat.errors import TemplateFailed


class Infill(PromptTemplate):
    """A gap to fill, as in Code Llama 7 and 13b: prefix, suffix, and then what comes between them.

    Source: `infilling_prompt_tokens` in meta-llama/codellama, llama/generation.py, and `encode_infilling` of its
    tokenizer, by which no blank comes before the suffix. What is asked for is in the files, not in a conversation.
    """

    name = "infill"
    is_chat = False
    continues_text = True

    def __init__(self, prefix: str, suffix: str) -> None:
        super().__init__()
        self._prefix = prefix
        self._suffix = suffix

    def render(self, conversation: Conversation, tokenizer: Tokenizer) -> Prompt:  # noqa: ARG002
        """The prompt for the gap. Raises `TemplateFailed` if the vocabulary has no tokens for it."""
        if tokenizer.infill_ids is None:
            raise TemplateFailed("the model's vocabulary has no infill tokens, as Code Llama 7b and 13b have them")
        before, after, between = tokenizer.infill_ids
        bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
        prefix = tokenizer.tokenize(self._prefix) if self._prefix else []
        suffix = tokenize_after(self._suffix, tokenizer)
        ids = (*bos, before, *prefix, after, *suffix, between)
        return Prompt(ids, f"<prefix>{self._prefix}<suffix>{self._suffix}<middle>")

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """There are none: see `render`."""
        raise NotImplementedError
