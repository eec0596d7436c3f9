"""Text that looks like a family's tag, tokenized so that it is not one.

A model knows [INST] as the few tokens that its tokenizer makes of it. The same characters one by one are other
tokens: the text is all there, but it is nothing that was ever seen at the beginning of a turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llamachat.engine.base import Tokenizer

_SPM_BLANK = "\u2581"
"""sentencepiece writes a blank so; typed, it becomes the same token."""
_NEVER_MERGED = "\x02"
"""A character before which nothing is put, and with which nothing is merged."""


def find_tags(text: str, tags: Sequence[str]) -> list[tuple[int, int]]:
    """Where any of `tags` stands in `text`: starts and ends, in order, none overlapping another."""
    if not tags:
        return []
    longest_first = sorted(tags, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    return [match.span() for match in pattern.finditer(text.replace(_SPM_BLANK, " "))]


def tokenize_spelled(text: str, tags: Sequence[tuple[int, int]], tokenizer: Tokenizer) -> tuple[list[int], list[str]]:
    """Ids of `text` with what stands at `tags` one character a token.

    Also returns the tags that have the same ids all the same, because the vocabulary knows no others for them.
    """
    ids: list[int] = []
    unspelled: list[str] = []
    end = 0
    for start, stop in tags:
        ids += tokenize_after(text[end:start], tokenizer, is_first=end == 0)
        spelled = _spell(text[start:stop], tokenizer, is_first=start == 0)
        if spelled in (tokenizer.tokenize(text[start:stop]), tokenize_after(text[start:stop], tokenizer)):
            unspelled.append(text[start:stop])
        ids += spelled
        end = stop
    return ids + tokenize_after(text[end:], tokenizer, is_first=end == 0), unspelled


def _spell(tag: str, tokenizer: Tokenizer, *, is_first: bool) -> list[int]:
    """One token a character; if that is how the tag is tokenized anyway, with another token for its last one."""
    ids = [
        token_id
        for i, character in enumerate(tag)
        for token_id in tokenize_after(character, tokenizer, is_first=is_first and i == 0)
    ]
    if ids != tokenize_after(tag, tokenizer, is_first=is_first):
        return ids
    other = _other_token(ids[-1], tokenizer)
    return ids if other is None else [*ids[:-1], other]


def tokenize_after(text: str, tokenizer: Tokenizer, *, is_first: bool = False) -> list[int]:
    """Ids of text in the middle of another: without the space that sentencepiece puts before the first."""
    if not text:
        return []
    if is_first or not tokenizer.adds_space_prefix:
        return tokenizer.tokenize(text)
    return tokenizer.tokenize(_NEVER_MERGED + text)[len(tokenizer.tokenize(_NEVER_MERGED)) :]


def _other_token(token_id: int, tokenizer: Tokenizer) -> int | None:
    """Another token for the same bytes: sentencepiece vocabularies have one for each byte besides the characters."""
    piece = tokenizer.piece(token_id)
    same = (other for other in range(tokenizer.n_vocab) if other != token_id and tokenizer.piece(other) == piece)
    return next(same, None)
