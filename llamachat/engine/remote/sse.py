"""Server-sent events (HTML Living Standard, 9.2.6), as far as chat completions use them: the data of each event."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from llamachat.errors import ServerFailed

MOST_CHARACTERS = 4 << 20
"""Of one event. A whole answer that comes as a single one fits; a line that never ends does not."""


class EventData:
    """Bytes as they arrive → the data of whole events. Lines may be cut anywhere, also within a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line: list[str] = []
        self._data: list[str] = []
        self._n_held = 0
        self._ended_with_cr = False

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The events that are complete now. Raises `ServerFailed` for one that does not end."""
        text = self._decoder.decode(chunk)
        if self._ended_with_cr:
            text = text.removeprefix("\n")
        self._ended_with_cr = text.endswith("\r") or (self._ended_with_cr and not text)
        *ended, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in ended:
            yield from self._take("".join([*self._line, line]))
            self._line.clear()
        self._line.append(rest)
        self._n_held += len(text) if not ended else len(rest)
        if self._n_held > MOST_CHARACTERS:
            raise ServerFailed("sends a line that does not end")

    def finish(self) -> Iterator[str]:
        """The stream has ended: some servers leave the last empty line out."""
        yield from self.feed(b"\n\n")

    def _take(self, line: str) -> Iterator[str]:
        if not line:
            data, self._data = self._data, []
            self._n_held = 0
            if data:
                yield "\n".join(data)
            return
        name, _, value = line.partition(":")
        if name == "data":  # not so: comments, which have no name, and the kinds of events
            self._data.append(value.removeprefix(" "))
            self._n_held += len(value)
