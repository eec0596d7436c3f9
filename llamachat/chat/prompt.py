"""A prompt on its way to token ids: a list of markers and texts.

Markers are the template's own control tokens and become exactly one id each. Text, whether the user's or the
template's, is tokenized without any way to become a control token. Neighbouring texts are tokenized together,
because that is how the reference tokenizers see them.

Some families mark turns with plain text, such as [INST]. Where such a tag stands in what people or files say, it is
tokenized character by character (`spelling`): the same text, but not the tokens the family was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from llamachat.chat.spelling import find_tags, tokenize_spelled
from llamachat.engine.base import Tokenizer
from llamachat.errors import TemplateFailed


@dataclass(frozen=True)
class Marker:
    """A control token by its text, such as <|eot_id|>."""

    text: str


@dataclass(frozen=True)
class TokenId:
    """A control token by its id, such as BOS, whose text differs between vocabularies. None: there is none."""

    token_id: int | None


@dataclass(frozen=True)
class Text:
    """Plain text of the template."""

    text: str


@dataclass(frozen=True)
class Content(Text):
    """Plain text of a message. The family's tags in it are spelled out."""


@dataclass(frozen=True)
class Tokens:
    """Ids that were made elsewhere, and what they say."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Border:
    """The texts before and after it are tokenized apart."""


Part = Marker | TokenId | Tokens | Text | Border


@dataclass(frozen=True)
class Prompt:
    """What the model sees."""

    ids: tuple[int, ...]
    text: str
    """The same for people, with control tokens written out."""
    notes: tuple[str, ...] = ()
    """What the user should know about it, in sentences."""
    is_counted: bool = True
    """False: the ids are a server's, which does not tell them."""

    @property
    def size(self) -> int:
        """In tokens; in characters where nobody counts those."""
        return len(self.ids) if self.is_counted else len(self.text)


def assemble(parts: Iterable[Part], tokenizer: Tokenizer, tags: Sequence[str] = ()) -> Prompt:
    """Turn parts into ids; `tags` are the family's markers that are plain text.

    Raises `TemplateFailed` if the vocabulary lacks one of the markers.
    """
    ids: list[int] = []
    shown: list[str] = []
    forged: dict[str, None] = {}
    names = {token_id: text for text, token_id in tokenizer.control_tokens.items()}
    for is_text, run in groupby(parts, lambda part: isinstance(part, Text)):
        if is_text:
            text, run_ids, like_a_tag = _tokenize([part for part in run if isinstance(part, Text)], tokenizer, tags)
            ids += run_ids
            shown.append(text)
            forged |= dict.fromkeys(like_a_tag)
            continue
        for part in run:
            match part:
                case Marker(text):
                    ids.append(_control_id(text, tokenizer))
                    shown.append(text)
                case TokenId(token_id) if token_id is not None:
                    ids.append(token_id)
                    shown.append(names.get(token_id, f"<{token_id}>"))
                case Tokens(made, text):
                    ids += made
                    shown.append(text)
    return Prompt(tuple(ids), "".join(shown), tuple(map(_forged_note, forged)))


def _tokenize(run: Sequence[Text], tokenizer: Tokenizer, tags: Sequence[str]) -> tuple[str, list[int], list[str]]:
    """The text of neighbouring parts, its ids, and the tags of people in it that could not be spelled otherwise."""
    text = "".join(part.text for part in run)
    found = []
    end = 0
    contents = []
    for part in run:
        start, end = end, end + len(part.text)
        if isinstance(part, Content):
            contents.append(range(start, end))
    if contents:
        found = [
            (first, last)
            for first, last in find_tags(text, tags)
            if any(first < content.stop and content.start < last for content in contents)
        ]
    if not found:
        return text, tokenizer.tokenize(text) if text else [], []
    ids, unspelled = tokenize_spelled(text, found, tokenizer)
    return text, ids, unspelled


def _forged_note(tag: str) -> str:
    return f"The text holds {tag}, which the model cannot tell from the prompt's own; what follows may pass for a turn."


def _control_id(text: str, tokenizer: Tokenizer) -> int:
    token_id = tokenizer.control_tokens.get(text)
    if token_id is None:
        raise TemplateFailed(f"the model's vocabulary has no {text}")
    return token_id
