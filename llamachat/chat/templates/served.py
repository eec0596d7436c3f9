"""The template of a server, which renders conversations itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from llamachat.chat.message import Conversation, Message
from llamachat.chat.prompt import Prompt, Text
from llamachat.chat.reasoning import Place, ReasoningTags
from llamachat.chat.templates.base import PromptTemplate
from llamachat.engine.base import Tokenizer
from llamachat.errors import BadConversation

Seen = tuple[Sequence[int], str | None]
"""What a server makes of messages: ids, and the text if it tells that, too."""

View = Callable[[Sequence[Mapping[str, str]]], Seen | None]
"""Messages → what the server makes of them; None if it does not tell."""


class Served(PromptTemplate):
    """Messages go to the server as they are. What it makes of them can be shown as far as it tells."""

    name = "the server's"
    reasoning = ReasoningTags("<think>", "</think>")
    """For servers that do not tell thoughts from the answer themselves."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view

    def render(self, conversation: Conversation, tokenizer: Tokenizer) -> Prompt:
        """See `PromptTemplate`. Without the server's own view, the messages are shown."""
        if not conversation.messages:
            raise BadConversation("There is nothing to answer.", "Begin the conversation with a user message.")
        plain = "".join(part.text for part in self.parts(conversation, tokenizer))
        seen = self._view(conversation.spoken())
        if seen is None:
            return Prompt((), plain, is_counted=False)
        ids, text = seen
        return Prompt(tuple(ids), plain if text is None else text)

    def place_of(self, prompt: Prompt, last: Message) -> Place:  # noqa: ARG002
        """See `PromptTemplate`. A server whose prompt begins the thoughts tells them apart itself."""
        return "answer" if last.role == "assistant" and last.content else "start"

    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Text]:  # noqa: ARG002
        """What is sent, for people to read: a server that does not tell more makes its own prompt of it."""
        for i, message in enumerate(conversation.spoken()):
            yield Text(("\n\n" if i else "") + f"{message['role']}: {message['content']}")
