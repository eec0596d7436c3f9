"""Files that a message names: `@notes.txt` puts the text of notes.txt before it.

Only who types can name a file. Where a paste names one that is there, its `@` is doubled, for all to see, and sent as
it was; any other `@` is a character like others.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from llamachat.paths import expand_user

_MENTION = re.compile(r"(?<!\S)(@+)([^@\s]\S*)")
_CLOSING = ".,;:!?)]}'\"…、。，；：！？）」"
"""What may follow a name in a sentence."""


def mentioned_files(text: str) -> list[Path]:
    """The files that are named, in order, each once."""
    found = (_file(name) for mark, name in _MENTION.findall(text) if mark == "@")
    return list(dict.fromkeys(path for path in found if path))


def escape_mentions(text: str, before: str) -> str:
    """Text that is to name nothing; it goes after `before`, and an `@` that stands there is not touched."""
    last = before[-1:]

    def escape(found: re.Match[str]) -> str:
        return "@" * (found.start() >= len(last) and bool(_file(found[2]))) + found[0]

    return _MENTION.sub(escape, last + text)[len(last) :]


def unescape_mentions(text: str) -> str:
    """The text as it is sent."""
    return _MENTION.sub(lambda found: found[0][len(found[1]) > 1 and bool(_file(found[2])) :], text)


def _file(name: str) -> Path | None:
    """The file of that name, or of what stands before the punctuation at its end."""
    for candidate in (name, name.rstrip(_CLOSING)):
        with suppress(OSError, ValueError):  # such as a name that is too long
            path = expand_user(candidate)
            if candidate and path.is_file():
                return path
    return None
