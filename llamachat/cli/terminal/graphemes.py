"""Characters that are more than one code point appear whole.

A family of emoji, a flag or a letter with marks comes code point by code point, and would change its shape and width
before the reader's eyes. What may still grow is held back until the next code point shows that it does not.
"""

from __future__ import annotations

import unicodedata

MOST_HELD = 64
"""Code points; a longer cluster is no character anybody reads."""

_JOINER = "\u200d"


def held_back(text: str) -> int:
    """How many code points at the end of `text` may be part of a character that is not complete."""
    i = len(text)
    while i > 0:
        i -= 1
        if len(text) - i > MOST_HELD:
            return 0
        if _extends(text[i]) or (i > 0 and text[i - 1] == _JOINER):
            continue
        if _is_flag_letter(text[i]):
            return _held_flag(text, i)
        if i == len(text) - 1 and not _may_grow(text[i]):
            return 0
        return len(text) - i
    return len(text)


def _extends(character: str) -> bool:
    """Marks, variation selectors, joiners, skin tones, and the letters of regional flags."""
    code = ord(character)
    return (
        character == _JOINER
        or 0x1F3FB <= code <= 0x1F3FF
        or 0xE0020 <= code <= 0xE007F
        or unicodedata.category(character).startswith("M")
    )


def _may_grow(character: str) -> bool:
    """Pictures, and letters of scripts that write marks on them; holding ASCII back would only be a delay."""
    if character.isascii():
        return False
    category = unicodedata.category(character)
    is_wide = unicodedata.east_asian_width(character) in ("W", "F")
    return category in ("So", "Sk", "Cn") or (category.startswith("L") and not is_wide)


def _is_flag_letter(character: str) -> bool:
    return 0x1F1E6 <= ord(character) <= 0x1F1FF


def _held_flag(text: str, last: int) -> int:
    """Flags are pairs of letters, counted from the first of a run."""
    first = last
    while first > 0 and _is_flag_letter(text[first - 1]):
        first -= 1
    return len(text) - last if (last - first) % 2 == 0 else 0
