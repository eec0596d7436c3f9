"""One plain line about a conversation, and one around words that were found."""

from __future__ import annotations

import unicodedata

_TITLE_COLUMNS = 60
_ENDS_LATE = 0.6
"""A cut goes back to the last blank unless that would lose more than the rest of this share."""
_JOINER = "\u200d"
_CONTEXT = 40


def make_title(text: str, n_columns: int = _TITLE_COLUMNS) -> str:
    """The beginning of `text` in one line that fits `n_columns` of a terminal, cut after a word where words are.

    Chinese, Japanese and Korean characters take two columns and may be cut anywhere.
    """
    line = one_line(text)
    kept, width = 0, 0
    for character in line:
        width += _columns(character)
        if width > n_columns:
            break
        kept += 1
    if kept == len(line):
        return line
    while _width(line[:kept]) > n_columns - 1:
        kept -= 1
    head = line[:kept]
    blank = head.rfind(" ")
    if line[kept] != " " and blank > _ENDS_LATE * len(head):
        head = head[:blank]
    return head.rstrip(" ,;:") + "…"


def one_line(text: str) -> str:
    """`text` with blanks of all kinds made one, and without characters that steer a terminal or the reading order."""
    plain = "".join(character if _is_plain(character) else " " for character in text)
    return " ".join(plain.split())


def excerpt(text: str, words: list[str]) -> str:
    """One line around the first of `words` that is in `text`, whatever the case."""
    line = one_line(text)
    folded = line.casefold()
    places = [place for word in words if (place := folded.find(one_line(word).casefold())) >= 0]
    start = max(0, min(places, default=0) - _CONTEXT // 2)
    start = line.find(" ", max(0, start - 8), start + 1) + 1 or start
    piece = line[start : start + 3 * _CONTEXT]
    return ("…" if start else "") + piece + ("…" if start + len(piece) < len(line) else "")


def _is_plain(character: str) -> bool:
    return character == _JOINER or not unicodedata.category(character).startswith(("C", "Z"))


def _columns(character: str) -> int:
    if character == _JOINER or unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _width(text: str) -> int:
    return sum(map(_columns, text))
