"""What a model may be called, in the catalogue, on the Hub and in the store; and which file names are safe anywhere.

"--" is kept out because it separates the parts of directory names; the Hub does not allow it either.
"""

from __future__ import annotations

import re

NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
"""One part of a name, as a regular expression."""

_MAX_CHARACTERS = 120
_MAX_PATH_CHARACTERS = 500
_WHOLE = re.compile(rf"{NAME}(?:/{NAME})?")


_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"
}
"""Names that Windows takes for devices, whatever follows the first dot.
https://learn.microsoft.com/windows/win32/fileio/naming-a-file"""


def is_safe_file(name: str) -> bool:
    """Whether a path from elsewhere ("model.gguf", "original/params.json") stays in its folder on every system."""
    return len(name) <= _MAX_PATH_CHARACTERS and all(_is_safe_part(part) for part in name.split("/"))


def _is_safe_part(part: str) -> bool:
    return (
        part not in ("", ".", "..")
        and part.isprintable()
        and not set(part) & set('\\:*?"<>|')
        and part[-1] not in ". "
        and part.partition(".")[0].rstrip().lower() not in _DEVICES
    )


def is_valid_name(name: str) -> bool:
    """Whether a stored model can have this name, and be found by it again."""
    return (
        _WHOLE.fullmatch(name) is not None
        and len(name) <= _MAX_CHARACTERS
        and "--" not in name
        and ".." not in name
        and not name.lower().endswith(".gguf")
        and is_safe_file(name)
    )
