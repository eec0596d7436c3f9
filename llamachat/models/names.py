"""What a model may be called, in the catalogue, on the Hub and in the store.

"--" is kept out because it separates the parts of directory names; the Hub does not allow it either.
"""

from __future__ import annotations

import re

NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
"""One part of a name, as a regular expression."""

_MAX_CHARACTERS = 120
_WHOLE = re.compile(rf"{NAME}(?:/{NAME})?")


def is_valid_name(name: str) -> bool:
    """Whether a stored model can have this name, and be found by it again."""
    return (
        _WHOLE.fullmatch(name) is not None
        and len(name) <= _MAX_CHARACTERS
        and "--" not in name
        and ".." not in name
        and not name.lower().endswith(".gguf")
    )
