"""Pieces of JSON text as GBNF: literals, numbers between bounds, characters within strings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import groupby
from typing import Any

MAX_DIGITS = 15
"""Longest whole part of numbers that have no bound, and longest fraction."""

_LAST = 0x10FFFF
_NAMED_ESCAPES = {'"': r"\"", "\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\b": r"\b", "\f": r"\f"}

Ranges = tuple[tuple[int, int], ...]
"""A set of characters: code points from and to, both included, in order and apart."""

JSON_RULES = {
    "space": r'(" " | "\n" [ \t]{0,20})?',
    "comma": '"," space',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" space (member (comma member)* space)? "}"',
    "member": 'string ":" space value',
    "array": '"[" space (value (comma value)* space)? "]"',
    "string": r'"\"" char* "\""',
    # What needs no escape, without lone surrogates, which not every reader of JSON takes.
    "char": r'[^"\\\x00-\x1F\x7F\uD800-\uDFFF] | "\\" (["\\/bfnrt] | "u" unit)',
    "unit": r"[0-9A-CEFa-cef] hex{3} | [Dd] [0-7] hex{2}",
    "hex": "[0-9A-Fa-f]",
    "integer": f'"-"? ("0" | [1-9] [0-9]{{0,{MAX_DIGITS}}})',
    "number": f'integer ("." [0-9]{{1,{MAX_DIGITS}}})? ([eE] [-+]? [0-9]{{1,2}})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
}
"""Rules for JSON of any shape; each needs those it names."""


def quote(text: str) -> str:
    """`text` as a GBNF literal."""
    escaped = "".join(f"\\x{ord(c):02X}" if c < " " else f"\\{c}" if c in '"\\' else c for c in text)
    return f'"{escaped}"'


def write_json(value: Any) -> str:
    """JSON text of a value, as a GBNF literal; characters stay themselves where UTF-8 has them."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value)
    return quote(text)


def one_of(alternatives: Iterable[str]) -> str:
    """A choice, in parentheses where there is one."""
    found = list(dict.fromkeys(alternatives))
    return found[0] if len(found) == 1 else f"({' | '.join(found)})"


# --- characters ----------------------------------------------------------------------------------------------


def union(*sets: Ranges) -> Ranges:
    """Characters that are in any of the sets."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(span for ranges in sets for span in ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(ranges: Ranges) -> Ranges:
    """Characters that are not in the set."""
    found, start = [], 0
    for low, high in ranges:
        if start < low:
            found.append((start, low - 1))
        start = high + 1
    return (*found, (start, _LAST)) if start <= _LAST else tuple(found)


_ESCAPED = union(((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F), (0xD800, 0xDFFF)))


def character_in_string(ranges: Ranges) -> str | None:
    """One character of the set as it stands in a JSON string; None if a string can hold none of them."""
    plain = complement(union(complement(ranges), _ESCAPED))
    shown = "".join(_code(low) if low == high else f"{_code(low)}-{_code(high)}" for low, high in plain)
    escaped = [quote(text) for c, text in _NAMED_ESCAPES.items() if any(low <= ord(c) <= high for low, high in ranges)]
    found = ([f"[{shown}]"] if shown else []) + escaped
    return one_of(found) if found else None


def _code(point: int) -> str:
    if chr(point).isascii() and chr(point).isalnum():
        return chr(point)
    return f"\\u{point:04X}" if point <= 0xFFFF else f"\\U{point:08X}"


# --- numbers -------------------------------------------------------------------------------------------------


def integers_between(low: int | None, high: int | None) -> str | None:
    """Whole numbers from `low` to `high`, both included; None: no bound. None if there is no such number."""
    top = 10 ** max(MAX_DIGITS, *(len(str(abs(bound))) for bound in (low or 0, high or 0)))
    low, high = -top if low is None else low, top if high is None else high
    found = []
    if low < 0:
        found += ['"-" ' + digits for digits in _decimals(max(1, -high), -low, 0)]
    if high >= 0:
        found += _decimals(max(0, low), high, 0)
    return one_of(found) if found else None


def numbers_between(
    low: Decimal | None, high: Decimal | None, *, low_open: bool = False, high_open: bool = False
) -> str | None:
    """Numbers without exponent between bounds, which belong to them unless open. None if there are none."""
    top = Decimal(10) ** MAX_DIGITS
    low, low_open = (-top, False) if low is None else (low, low_open)
    high, high_open = (top, False) if high is None else (high, high_open)
    if low > high or (low == high and (low_open or high_open)):
        return None
    found = []
    if low < 0:
        is_clamped = high > 0
        found += [
            '"-" ' + digits for digits in _magnitudes(-min(high, Decimal()), -low, high_open or is_clamped, low_open)
        ]
    if high >= 0:
        found += _magnitudes(max(low, Decimal()), high, low_open and low >= 0, high_open)
    return one_of(found) if found else None


def _magnitudes(low: Decimal, high: Decimal, low_open: bool, high_open: bool) -> Iterator[str]:
    """Numbers ≥ 0: with fewer decimals than the bounds have, then with as many and any digits after them."""
    n_decimals = max(0, *(-int(bound.normalize().as_tuple().exponent) for bound in (low, high)))
    for n in range(n_decimals):
        first, last = low * 10**n, high * 10**n
        start = int(first) + (first != int(first) or low_open)
        yield from _decimals(start, int(last) - (last == int(last) and high_open), n)
    first, last = int(low * 10**n_decimals), int(high * 10**n_decimals)
    point = "" if n_decimals else '"." '
    for digits in _decimals(first + low_open, last - 1, n_decimals):
        yield f"{digits} ({point}[0-9]{{1,{MAX_DIGITS}}})?"
    if low_open and first < last:
        yield from (f"{digits} {point}[0-9]{{0,{MAX_DIGITS}}} [1-9]" for digits in _decimals(first, first, n_decimals))
    if not high_open and (first < last or not low_open):
        yield from _decimals(last, last, n_decimals)


def _decimals(low: int, high: int, n_decimals: int) -> Iterator[str]:
    """The numbers from `low` to `high` ≥ 0, written with a point before their last `n_decimals` digits."""
    for n_digits in range(n_decimals + 1, max(n_decimals + 1, len(str(max(high, 0)))) + 1):
        least = 0 if n_digits == n_decimals + 1 else 10 ** (n_digits - 1)
        first, last = max(low, least), min(high, 10**n_digits - 1)
        if first <= last:
            for spans in _digit_spans(str(first).zfill(n_digits), str(last).zfill(n_digits)):
                whole = [a if a == b else f"{a}-{b}" for a, b in spans]
                whole = [f"[{digit}]" for digit in whole]
                if n_decimals:
                    whole.insert(n_digits - n_decimals, '"."')
                yield " ".join(_counted(whole))


def _digit_spans(low: str, high: str) -> Iterator[list[tuple[str, str]]]:
    """Numbers of as many digits from `low` to `high`, as spans of digits place by place."""
    if not low:
        yield []
        return
    first, last, rest = low[0], high[0], len(low) - 1
    if first == last:
        yield from ([(first, first), *spans] for spans in _digit_spans(low[1:], high[1:]))
        return
    start, end = int(first), int(last)
    if low[1:] != "0" * rest:
        yield from ([(first, first), *spans] for spans in _digit_spans(low[1:], "9" * rest))
        start += 1
    if high[1:] != "9" * rest:
        yield from ([(last, last), *spans] for spans in _digit_spans("0" * rest, high[1:]))
        end -= 1
    if start <= end:
        yield [(str(start), str(end)), *[("0", "9")] * rest]


def _counted(parts: list[str]) -> Iterator[str]:
    """Equal neighbours written once, with how often."""
    for part, run in groupby(parts):
        n = len(list(run))
        yield part if n == 1 else f"{part}{{{n}}}"
