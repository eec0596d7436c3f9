"""A prompt on its way to token ids: a list of markers and texts.

Markers are the template's own control tokens and become exactly one id each. Text, whether the user's or the
template's, is tokenized without any way to become a control token. Neighbouring texts are tokenized together,
because that is how the reference tokenizers see them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

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
    """Plain text."""

    text: str


Part = Marker | TokenId | Text


@dataclass(frozen=True)
class Prompt:
    """What the model sees."""

    ids: tuple[int, ...]
    text: str
    """The same for people, with control tokens written out."""


def assemble(parts: Iterable[Part], tokenizer: Tokenizer) -> Prompt:
    """Turn parts into ids; raise `TemplateFailed` if the vocabulary lacks one of the markers."""
    ids: list[int] = []
    shown: list[str] = []
    names = {token_id: text for text, token_id in tokenizer.control_tokens.items()}
    for kind, run in groupby(parts, type):
        for part in _joined(run) if kind is Text else run:
            match part:
                case Text(text):
                    ids += tokenizer.tokenize(text)
                    shown.append(text)
                case Marker(text):
                    ids.append(_control_id(text, tokenizer))
                    shown.append(text)
                case TokenId(token_id) if token_id is not None:
                    ids.append(token_id)
                    shown.append(names.get(token_id, f"<{token_id}>"))
    return Prompt(tuple(ids), "".join(shown))


def _joined(run: Iterable[Part]) -> list[Text]:
    text = "".join(part.text for part in run if isinstance(part, Text))
    return [Text(text)] if text else []


def _control_id(text: str, tokenizer: Tokenizer) -> int:
    token_id = tokenizer.control_tokens.get(text)
    if token_id is None:
        raise TemplateFailed(f"the model's vocabulary has no {text}")
    return token_id
