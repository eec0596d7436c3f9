"""Make control characters visible, so that no text can steer the terminal.

A model, a file name or a message from the Hub may hold escape sequences that recolour, retitle or overwrite what
the user sees (CWE-150), or bidi overrides that reverse it. They are shown as glyphs instead of obeyed.
"""

from __future__ import annotations

_ALLOWED = "\n\t"
_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

_GLYPHS = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in _ALLOWED}
_GLYPHS[0x7F] = "\u2421"
_GLYPHS.update({code: f"<{code:02X}>" for code in range(0x80, 0xA0)})
_GLYPHS.update({ord(character): f"<U+{ord(character):04X}>" for character in _BIDI})

_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in _GLYPHS if code >= 0x20}


def visible(text: str) -> str:
    """`text` with every control character but newline and tab replaced by something to see."""
    return text.translate(_GLYPHS)


def visible_json(document: str) -> str:
    """The same document: control and bidi characters that JSON lets stand in strings are escaped as it has it."""
    return document.translate(_JSON_ESCAPES)
