"""What stands between two texts, from models that were trained to fill gaps."""

from __future__ import annotations

from collections.abc import Iterator

from llamachat.chat.message import Conversation
from llamachat.chat.prompt import Part, Prompt, Text, TokenId, Tokens, assemble
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

    def render(self, conversation: Conversation, tokenizer: Tokenizer) -> Prompt:
        """The prompt for the gap, whatever the conversation."""
        return assemble(self.parts(conversation, tokenizer), tokenizer)

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:  # noqa: ARG002
        """See `PromptTemplate`. Raises `TemplateFailed` if the vocabulary has no tokens for a gap."""
        if tokenizer.infill_ids is None:
            problem = "the model's vocabulary has no infill tokens, as Code Llama 7b and 13b have them"
            raise TemplateFailed(problem, "Use one of those: llamachat chat codellama-7b --infill PREFIX SUFFIX")
        before, after, between = tokenizer.infill_ids
        if tokenizer.adds_bos:
            yield TokenId(tokenizer.bos_id)
        yield Tokens((before,), "<prefix>")
        yield Text(self._prefix)
        yield Tokens((after,), "<suffix>")
        yield Tokens(tuple(tokenize_after(self._suffix, tokenizer)), self._suffix)
        yield Tokens((between,), "<middle>")
