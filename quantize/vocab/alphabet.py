"""GPT-2's letter for each byte, in which the tokens of a BPE vocabulary are spelled.

Source: `bytes_to_unicode` in openai/gpt-2's encoder.py.
"""

from __future__ import annotations

_VISIBLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}


def _letters() -> list[str]:
    """Its character in Latin-1 where that can be seen, else the next from U+0100 on."""
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in _VISIBLE else next(others)) for byte in range(256)]


LETTERS = _letters()
"""By byte."""

BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}
"""By letter."""
