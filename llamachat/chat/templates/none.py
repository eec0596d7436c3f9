"""No template: base models."""

from __future__ import annotations

from collections.abc import Iterator

from llamachat.chat.message import Conversation, Message
from llamachat.chat.prompt import Content, Part, TokenId
from llamachat.chat.templates.base import PromptTemplate
from llamachat.engine.base import Tokenizer


class NoTemplate(PromptTemplate):
    """Base models: the text is continued, as in a notebook. Earlier turns simply stand before it."""

    name = "none"
    is_chat = False
    continues_text = True

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """See `PromptTemplate`."""
        if tokenizer.adds_bos:
            yield TokenId(tokenizer.bos_id)
        system = [Message("system", conversation.system)] if conversation.system else []
        yield Content("".join(message.content for message in (*system, *conversation.messages)))
