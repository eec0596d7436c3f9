"""What every family's template has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar

from llamachat.chat.message import Conversation, Message
from llamachat.chat.prompt import Content, Marker, Part, Prompt, Text, assemble
from llamachat.chat.reasoning import Place, ReasoningTags
from llamachat.chat.spelling import find_tags
from llamachat.chat.tools.calls import CallFormat
from llamachat.chat.tools.values import ToolStep
from llamachat.engine.base import Tokenizer
from llamachat.errors import BadConversation


class PromptTemplate(ABC):
    """How one family of models wants to be talked to."""

    name: str
    stop: tuple[str, ...] = ()
    sampling: ClassVar[Mapping[str, float | int]] = {}
    system: str | None = None
    """The family's own system prompt: it is there where a conversation has none."""
    tags: tuple[str, ...] = ()
    """The family's markers that are plain text; what people write is kept from passing for one."""
    is_chat = True
    reasoning: ReasoningTags | None = None
    """What stands around the family's thoughts, if it is one that thinks before it answers."""
    can_switch_thinking = False
    """Whether the template has a switch for that."""
    thinking: bool | None = None
    """How that switch is set; None leaves it as the template has it by itself."""
    answers_at_once = False
    """Whether an answer is to begin without thoughts: those that a prompt begins are ended in it, too."""
    calls: CallFormat | None = None
    """How the family writes calls of tools; None: it was not trained to."""

    def __init__(self) -> None:
        self._began = datetime.now()

    continues_text = False
    """Whether an answer goes on in the middle of a text, so that a blank before it belongs to it."""

    @property
    def no_system(self) -> str | None:
        """What a conversation has that is to go without a system prompt: None would bring the family's own."""
        return None if self.system is None else ""

    def begin(self, when: datetime) -> None:
        """The session began at this moment: a prompt that tells a date tells that one, and so keeps its prefix."""
        self._began = when

    def render(self, conversation: Conversation, tokenizer: Tokenizer) -> Prompt:
        """The prompt for the next answer, or for the rest of one.

        If the last message is the assistant's, the prompt ends in the middle of it, to be continued. Raises
        `BadConversation` if there is no message, and `TemplateFailed` if the model lacks what the family needs.
        """
        if not conversation.messages:
            raise BadConversation("There is nothing to answer.", "Begin the conversation with a user message.")
        if not conversation.has_tools:
            return assemble(self._all_parts(conversation, tokenizer), tokenizer, self.tags)
        if self.calls is None:
            prompt = assemble(self._all_parts(conversation.without_steps(), tokenizer), tokenizer, self.tags)
            return replace(prompt, notes=(*prompt.notes, _NO_STEPS))
        return assemble(self._all_parts(conversation, tokenizer), tokenizer, (*self.tags, *self.calls.tags))

    def place_of(self, prompt: Prompt, last: Message) -> Place:
        """Where what the model writes after `prompt` goes on; `last` is the conversation's last message."""
        if last.role == "assistant" and last.content:
            return "answer"
        if last.role == "assistant" and last.reasoning:
            return "within"
        is_open = self.reasoning is not None and prompt.text.rstrip().endswith(self.reasoning.start)
        return "thoughts" if is_open else "start"

    def _all_parts(self, conversation: Conversation, tokenizer: Tokenizer) -> list[Part]:
        """The prompt with the thoughts of the answer that goes on, or with the end of those that are not wanted."""
        last = conversation.messages[-1]
        tags = self.reasoning
        if tags and last.role == "assistant" and last.reasoning:
            thinking = copy(self)
            thinking.thinking = True if self.can_switch_thinking else None
            begun = (replace(last, content="", reasoning=""),) if last.steps else ()
            asked = replace(conversation, messages=(*conversation.messages[:-1], *begun))
            parts = list(thinking.parts(asked, tokenizer))
            begin = [] if _opens(parts, tags) else [_tag(tags.start, tokenizer), Text("\n")]
            end = [Text("\n"), _tag(tags.end, tokenizer), Text("\n\n"), Content(last.content)] if last.content else []
            return [*parts, *begin, Content(last.reasoning), *end]
        parts = list(self.parts(conversation, tokenizer))
        if tags and self.answers_at_once and _opens(parts, tags):
            parts += [Text("\n"), _tag(tags.end, tokenizer), Text("\n\n")]
        return parts

    def tags_in(self, conversation: Conversation, tokenizer: Tokenizer) -> list[str]:
        """The family's tags and the vocabulary's control tokens that stand in messages, as text.

        Meta's reference refuses prompts with them (`SPECIAL_TAGS`).
        """
        everything = "\0".join(message["content"] for message in conversation.all_messages())
        marks = dict.fromkeys((*self.tags, *filter(None, tokenizer.control_tokens)))
        return [mark for mark in marks if find_tags(everything, [mark])]

    @abstractmethod
    def parts(self, conversation: Conversation, tokenizer: Tokenizer) -> Iterator[Part]:
        """The prompt in pieces, BOS included."""


def _opens(parts: Sequence[Part], tags: ReasoningTags) -> bool:
    """Whether a prompt ends with the beginning of thoughts."""
    texts = [part.text for part in parts if isinstance(part, (Marker, Text))]
    return "".join(texts).rstrip().endswith(tags.start)


def _tag(text: str, tokenizer: Tokenizer) -> Part:
    return Marker(text) if text in tokenizer.control_tokens else Text(text)


_NO_STEPS = "The prompt format of this model has no place for calls of tools: it sees only the words of such answers."


@dataclass(frozen=True)
class Turn:
    """A question and, unless it is still to come, its answer."""

    question: str
    answer: str | None
    is_finished: bool
    """Whether another turn follows; only then is the answer ended by a marker."""
    steps: tuple[ToolStep, ...] = ()


def turns_of(conversation: Conversation) -> Iterator[Turn]:
    """The conversation as questions and answers."""
    last = len(conversation.turns) - 1
    for i, (question, *answer) in enumerate(conversation.turns):
        steps = answer[0].steps if answer else ()
        yield Turn(question.content, answer[0].content if answer else None, i < last, steps)


def messages_of(
    conversation: Conversation, default_system: str | None = None, *, is_single: bool = False
) -> list[dict[str, Any]]:
    """The messages with the system prompt first: the conversation's or else the family's."""
    if conversation.system is None and default_system is not None:
        conversation = replace(conversation, system=default_system)
    return conversation.all_messages(is_single=is_single)
