"""Bytes from the model → text: whole characters only, cut exactly at a stop string.

Tokens do not respect characters: one character may come in several pieces, and a stop string may begin in one
token and end in another. What could still become part of either is held back, so nothing flashes on the screen
that is not part of the answer. Invalid bytes become U+FFFD and never vanish.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextDecoder:
    """Decodes one answer piece by piece."""

    def __init__(self, stop: Sequence[str] = (), *, strip_space: bool = False, begun: str = "") -> None:
        """`strip_space` drops one leading space, which sentencepiece vocabularies put before every text.

        `begun` is what there is of the answer already; a stop string may have begun in it.
        """
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = [text for text in stop if text]
        n_certain = len(begun) - self._possible_stop(begun)
        self.content, self._held = begun[:n_certain], begun[n_certain:]
        """The answer so far, as far as it is certain."""
        self._n_given = len(begun)
        self._strip_space = strip_space
        self.stopped = False
        """Whether a stop string was found; everything after it is ignored."""

    def feed(self, piece: bytes) -> str:
        """Return the text that is certain now; it may be empty."""
        return self._give(self._take(self._decoder.decode(piece)))

    def finish(self) -> str:
        """Return what was held back; the answer is over."""
        rest = self._take(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return self._give(rest if self.stopped else rest + held)

    def _give(self, text: str) -> str:
        """Add to the answer; return what of it was not there before."""
        self.content += text
        new = self.content[self._n_given :]
        self._n_given += len(new)
        return new

    def _take(self, text: str) -> str:
        if self.stopped:
            return ""
        if self._strip_space and text:
            text = text.removeprefix(" ")
            self._strip_space = False
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            _, start = min(found)  # of the one that ends first, however the text came in pieces
            return text[:start]
        n_held = self._possible_stop(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def _possible_stop(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = min(len(text), max((len(stop) - 1 for stop in self._stop), default=0))
        for n in range(longest, 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stop):
                return n
        return 0
